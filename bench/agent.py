"""Reading through the loopback agent, beside the same tools reading the plaintext straight from the store.

Each tool runs twice a round: once against the store, where it reads the plaintext object with the store's
credentials, and once against the agent, which asks, has the read recorded, fetches ciphertext, decrypts and
verifies. What differs is the agent alone. It runs throughout, as it does beside a job.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import measure
from bench.peers import NotInstalled, Store, Tool, curl_hub, find_hub, find_peers
from broker.dev.child import stop_child
from broker.dev.stage import PROGRAM, Stage

_STOP_SECONDS = 15


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when every download was complete and equal."""
    folder = Path(tempfile.mkdtemp(prefix="broker-bench-"))
    try:
        return _run(folder, size_mib=size_mib, rounds=rounds, name=name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, *, size_mib: int, rounds: int, name: str) -> int:
    source = folder / measure.FILE
    digest = measure.write_source(source, size_mib)
    stage = Stage(folder, io.StringIO())
    with stage.stack("--workers", "2") as ready:
        state = json.loads((stage.home / "dev.json").read_text())
        store = Store(
            endpoint=ready["s3"]["endpoint"], access_key=state["access_key"], secret_key=state["secret_key"]
        )
        measure.put_plain(store, source)
        measure.publish(stage, source)
        with _agent(stage) as agent:
            tools, pairs, missing = _tools(store, agent)
            for peer, why in missing.items():
                sys.stdout.write(f"skipped: {peer}: {why}\n")
            sys.stdout.write(f"{size_mib} MiB, {rounds} rounds, tools: {', '.join(t.name for t in tools)}\n")
            runs = measure.take_turns(
                tools, rounds=rounds, folder=folder, store=stage.home / "store", digest=digest
            )
    measure.report(name, tools, runs, size_mib=size_mib, pairs=pairs, skipped=missing)
    return 0


@contextlib.contextmanager
def _agent(stage: Stage) -> Iterator[dict[str, Any]]:
    """``broker agent``; its one line of JSON says where it listens and what to export."""
    child = subprocess.Popen(
        [*PROGRAM, "agent", "-o", "jsonl", "--quiet"],
        env=stage.environment("bench"),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    try:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
    finally:
        stop_child(child, timeout=_STOP_SECONDS)


def _tools(
    store: Store, agent: dict[str, Any]
) -> tuple[list[Tool], dict[str, tuple[str, ...]], dict[str, str]]:
    """The tools, which are divided by which, and what is missing here."""
    exported = agent["export"]
    through = Store(
        endpoint=agent["endpoints"]["s3"],
        access_key=exported["AWS_ACCESS_KEY_ID"],
        secret_key=exported["AWS_SECRET_ACCESS_KEY"],
        bucket="bench",
        key="object/" + measure.FILE,
    )
    plain, missing = find_peers(store)
    ours, _ = find_peers(through)
    tools = []
    pairs: dict[str, tuple[str, ...]] = {}
    for direct, tool in zip(plain, ours, strict=True):
        named = replace(tool, name=f"{tool.name} by S3")
        tools += [direct, named]
        pairs[named.name] = (direct.name,)
    for make in (curl_hub, find_hub):
        try:
            tool = make(exported["HF_ENDPOINT"], exported["HF_TOKEN"], "bench/object", measure.FILE)
        except NotInstalled as exc:
            missing[make.__name__] = str(exc)
            continue
        tools.append(tool)
        pairs[tool.name] = tuple(name for name in ("curl", "boto3") if name in {t.name for t in plain})
    return tools, pairs, missing
