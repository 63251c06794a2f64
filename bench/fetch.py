"""Downloading one object: ``broker get`` beside plain S3 clients, from the same server to the same disk.

The peers read the plaintext object; ``broker get`` reads the ciphertext, and asks, verifies, decrypts and
digests.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

from bench import measure
from bench.peers import Store, Tool, find_peers
from broker import __version__
from broker.dev.stage import PROGRAM, Stage

OURS = "broker get"


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
        peers, missing = find_peers(store)
        for peer, why in missing.items():
            sys.stdout.write(f"skipped: {peer}: {why}\n")
        tools = [_ours(stage), *peers]
        sys.stdout.write(f"{size_mib} MiB, {rounds} rounds, tools: {', '.join(t.name for t in tools)}\n")
        runs = measure.take_turns(
            tools, rounds=rounds, folder=folder, store=stage.home / "store", digest=digest
        )
    pairs = {OURS: [peer.name for peer in peers]}
    measure.report(name, tools, runs, size_mib=size_mib, pairs=pairs, skipped=missing)
    return 0


def _ours(stage: Stage) -> Tool:
    return Tool(
        name=OURS,
        version=__version__,
        command=lambda dest: [*PROGRAM, "get", measure.REF, str(dest), "--quiet"],
        env=stage.environment("bench"),
        into_folder=True,
    )
