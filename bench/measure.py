"""One download by one tool, measured as a whole process; and what many of them come to.

Rounds are interleaved, so that whatever the machine does meanwhile hits everybody. Before each run dirty
pages are written out and the store's files are read into the page cache, so that the network stack, the
server and the client are measured, not the disk that the store reads from.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from bench import machine
from bench.peers import BUCKET, KEY, Store, Tool
from broker.dev.stage import Stage

RESULTS = Path(__file__).resolve().parent / "results"
REF = "bench/object@v1"
FILE = "plain.bin"
MIB = 2**20
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Run:
    """One download."""

    seconds: float
    client_cpu: float
    store_cpu: float
    peak_mib: float


def write_source(path: Path, size_mib: int) -> str:
    """Random bytes in a file; their SHA-256."""
    hasher = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(size_mib):
            piece = os.urandom(MIB)
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest()


def put_plain(store: Store, source: Path) -> None:
    """The plaintext, for the peers."""
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        config=config,
    )
    client.create_bucket(Bucket=BUCKET)
    client.upload_file(str(source), BUCKET, KEY)


def publish(stage: Stage, source: Path) -> None:
    """The same object by us: somebody is enrolled, and has published it."""
    added = stage.run(
        "admin", "admin", "principal", "add", "bench", "--role", "publisher", "--group", "bench", "-o", "json"
    ).json()
    stage.run("bench", *added["login"].split()[1:])
    stage.run("bench", "put", source.name, REF)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A broker and a store that hold the same object: ciphertext by us, plaintext for the peers.

    Attributes:
        folder: Where downloads go; it is gone at the end.
        stage: The embedded stack, with ``bench`` as an enrolled user.
        store: The S3 server and the plaintext object.
        digest: SHA-256 of the object.
    """

    folder: Path
    stage: Stage
    store: Store
    digest: str

    def take_turns(self, tools: list[Tool], *, rounds: int) -> dict[str, list[Run]]:
        """Every tool once a round; each round begins with another, so nobody always comes after the pause."""
        runs: dict[str, list[Run]] = {tool.name: [] for tool in tools}
        for at in range(rounds):
            for tool in tools[at % len(tools) :] + tools[: at % len(tools)]:
                runs[tool.name].append(measure(tool, self.folder, self.stage.home / "store", self.digest))
        return runs


@contextlib.contextmanager
def set_scene(size_mib: int) -> Iterator[Scene]:
    """A running scene with an object of that size."""
    folder = Path(tempfile.mkdtemp(prefix="broker-bench-"))
    try:
        source = folder / FILE
        digest = write_source(source, size_mib)
        stage = Stage(folder, io.StringIO())
        with stage.stack("--workers", "2") as ready:
            state = json.loads((stage.home / "dev.json").read_text())
            store = Store(
                endpoint=ready["s3"]["endpoint"],
                access_key=state["access_key"],
                secret_key=state["secret_key"],
            )
            put_plain(store, source)
            publish(stage, source)
            yield Scene(folder=folder, stage=stage, store=store, digest=digest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say_what_runs(tools: Sequence[Tool], missing: Mapping[str, str], *, size_mib: int, rounds: int) -> None:
    """The head of the output."""
    for peer, why in missing.items():
        sys.stdout.write(f"skipped: {peer}: {why}\n")
    sys.stdout.write(f"{size_mib} MiB, {rounds} rounds, tools: {', '.join(t.name for t in tools)}\n")


def report(
    name: str,
    tools: Sequence[Tool],
    runs: Mapping[str, Sequence[Run]],
    *,
    size_mib: int,
    pairs: Mapping[str, Sequence[str]],
    skipped: Mapping[str, str],
) -> None:
    """The table on stdout and ``bench/results/NAME.json``.

    Args:
        pairs: Tool -> the tools that its time is divided by.
        skipped: What did not run, and why.
    """
    summary = {
        "benchmark": name,
        "bytes": size_mib * MIB,
        "rounds": len(next(iter(runs.values()))),
        "machine": machine.describe(RESULTS),
        "tools": {tool.name: _summary(tool, runs[tool.name], size_mib) for tool in tools},
        "ratios": {ours: _ratios(ours, theirs, runs) for ours, theirs in pairs.items()},
        "skipped": dict(skipped),
    }
    _show(summary)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")


def measure(tool: Tool, folder: Path, store: Path, digest: str) -> Run:
    """One download, started with everything warm and compared when it is done.

    Args:
        tool: What downloads.
        folder: Where it may write.
        store: Home of the store that serves.
        digest: SHA-256 of what must come out.
    """
    target = folder / "out"
    dest = target if tool.into_folder else target / FILE
    if not tool.into_folder:
        target.mkdir()
    _warm(store / "data")
    server = machine.find_process("weed", store)
    before = machine.cpu_seconds(server) if server is not None else 0.0
    started = time.monotonic()
    child = subprocess.Popen(
        list(tool.command(dest)),
        env={**os.environ, **tool.env},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stderr is not None
    child.stdin.write(tool.stdin(dest).encode())
    child.stdin.close()
    peak = _Peak(child.pid)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    served = machine.cpu_seconds(server) - before if server is not None else 0.0
    child.stderr.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{tool.name} fails with {child.returncode}: {said.decode('utf-8', 'replace')}")
    if _digest(_only_file(target)) != digest:
        raise SystemExit(f"{tool.name} downloaded something else")
    shutil.rmtree(target)
    return Run(
        seconds=seconds,
        client_cpu=usage.ru_utime + usage.ru_stime,
        store_cpu=served,
        peak_mib=peak.stop() / 2**20,
    )


class _Peak:
    """The most memory that a process had resident, sampled: what the kernel reports at its end begins
    with the size of the process that started it.
    """

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self._bytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._end.wait(_SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                found = re.search(r"^VmHWM:\s+(\d+) kB", self._path.read_text(), re.MULTILINE)
                self._bytes = int(found[1]) * 1024 if found else self._bytes

    def stop(self) -> int:
        """End the sampling; the last value in bytes."""
        self._end.set()
        self._thread.join()
        return self._bytes


def _warm(data: Path) -> None:
    """Write out what is dirty, then have the store's files in memory."""
    os.sync()
    buffer = bytearray(MIB)
    for path in sorted(data.rglob("*.dat")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _only_file(folder: Path) -> Path:
    """What was downloaded: some tools keep their own records in a folder beside it."""
    return next(folder / name for name in (FILE, KEY) if (folder / name).is_file())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summary(tool: Tool, runs: Sequence[Run], size_mib: int) -> dict[str, Any]:
    times = sorted(run.seconds for run in runs)
    median = statistics.median(times)
    return {
        "version": tool.version,
        "median_seconds": round(median, 4),
        "fastest": round(times[0], 4),
        "slowest": round(times[-1], 4),
        "mib_per_second": round(size_mib / median, 1),
        "client_cpu_seconds": round(statistics.median(run.client_cpu for run in runs), 3),
        "store_cpu_seconds": round(statistics.median(run.store_cpu for run in runs), 3),
        "peak_memory_mib": round(max(run.peak_mib for run in runs), 1),
        "runs": [{name: round(value, 4) for name, value in asdict(run).items()} for run in runs],
    }


def _ratios(
    ours: str, theirs: Sequence[str], runs: Mapping[str, Sequence[Run]]
) -> dict[str, dict[str, float]]:
    """The one's time divided by the other's, round by round: below 1 is faster than they are."""
    found = {}
    for name in theirs:
        each = [a.seconds / b.seconds for a, b in zip(runs[ours], runs[name], strict=True)]
        found[name] = {
            "median": round(statistics.median(each), 3),
            "least": round(min(each), 3),
            "most": round(max(each), 3),
        }
    return found


def _show(summary: dict[str, Any]) -> None:
    wide = max(len(name) for name in summary["tools"]) + 2
    head = f"{'tool':<{wide}}{'version':<22}{'median s':>9}{'spread s':>16}{'MiB/s':>8}"
    head += f"{'CPU s':>7}{'store':>7}{'MiB':>6}"
    lines = [head, "-" * len(head)]
    for name, found in summary["tools"].items():
        spread = f"{found['fastest']:.2f}-{found['slowest']:.2f}"
        lines.append(
            f"{name:<{wide}}{found['version'][:20]:<22}{found['median_seconds']:>9.2f}{spread:>16}"
            f"{found['mib_per_second']:>8.0f}{found['client_cpu_seconds']:>7.2f}"
            f"{found['store_cpu_seconds']:>7.2f}{found['peak_memory_mib']:>6.0f}"
        )
    lines.append("")
    for ours, others in summary["ratios"].items():
        for name, ratio in others.items():
            told = f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"
            lines.append(f"{ours} / {name}: {told}")
    sys.stdout.write("\n".join(lines) + "\n")
