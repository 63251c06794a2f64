"""A whole log in a folder, verified: by one process and by one for each core, beside a loop that only hashes.

The log is written as an export writes it, with entries of about 330 bytes in 256 a file. Verifying reads
every file, hashes each entry and the tree above, compares every tile, and checks the signed root. The loop
hashes the same entries, which it holds in memory, and nothing else. Rounds are interleaved; ratios are of
medians; memory is the largest resident size of a process that does nothing but verify.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench import machine
from bench.measure import RESULTS
from broker.client import verifying
from broker.client.static_log import LogWriter, verify_static_log
from broker.ledger import merkle, note

_BATCH = 65_536
_MEMORY = """
import resource, sys
from pathlib import Path
from broker.client.static_log import verify_static_log
verify_static_log(Path(sys.argv[1]), sys.argv[2])
# Not of getrusage: that counts what the parent had when this process was forked.
status = Path("/proc/self/status").read_text().split()
print(status[status.index("VmHWM:") + 1])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when the log verifies.

    ``size_mib`` chooses the entries: a thousand for each MiB that the other benchmarks move.
    """
    count = size_mib * 1000
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as place:
        folder = Path(place) / "log"
        vkey, entries = _write(folder, count)
        found: dict[str, list[float]] = {"hashlib loop": [], "one process": [], "every core": []}
        for _ in range(rounds):
            found["hashlib loop"].append(count / _timed(lambda: _hash_all(entries)))
            found["one process"].append(count / _timed(lambda: _verify(folder, vkey, many=1 << 60)))
            found["every core"].append(count / _timed(lambda: _verify(folder, vkey, many=0)))
        measured = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(folder), vkey], check=True, capture_output=True, text=True
        )
        own, child = (int(kib) // 1024 for kib in measured.stdout.split())
    middle = {what: statistics.median(rates) for what, rates in found.items()}
    ratios = {f"{what} / hashlib loop": middle[what] / middle["hashlib loop"] for what in list(middle)[1:]}
    cores = len(os.sched_getaffinity(0))
    for what, rate in middle.items():
        sys.stdout.write(f"{what:<28} {rate:>12,.0f} entries/s\n")
    for what, ratio in ratios.items():
        sys.stdout.write(f"{what:<28} {ratio:>12.2f}\n")
    sys.stdout.write(f"resident: {own} MiB, and {child} MiB for each of {cores} cores\n")
    summary = {
        "machine": machine.describe(RESULTS),
        "entries": count,
        "cores": cores,
        "per_second": found,
        "ratios": ratios,
        "resident_mib": {"parent": own, "child": child},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _write(folder: Path, count: int) -> tuple[str, list[bytes]]:
    key = Ed25519PrivateKey.generate()
    verifier = note.Verifier(name="bench.example/log", public=key.public_key().public_bytes_raw())
    folder.mkdir()
    writer, frontier = LogWriter(folder), merkle.Frontier()
    entries = [secrets.token_hex(160).encode() + b"%012d" % at for at in range(count)]
    for start in range(0, count, _BATCH):
        batch = entries[start : start + _BATCH]
        writer.add(batch)
        frontier, _ = frontier.extend(map(merkle.leaf_hash, batch))
    head = note.TreeHead(origin=verifier.name, size=count, root=frontier.root())
    writer.finish(note.sign_head(head, verifier, key.sign), head)
    return verifier.vkey, entries


def _hash_all(entries: list[bytes]) -> None:
    for entry in entries:
        hashlib.sha256(b"\0" + entry).digest()


def _verify(folder: Path, vkey: str, *, many: int) -> None:
    verifying.MANY = many  # type: ignore[misc] - the benchmark chooses, whatever the length
    verify_static_log(folder, vkey)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
