"""Downloading one object: ``broker get`` beside plain S3 clients, from the same server to the same disk.

The peers read the plaintext object; ``broker get`` reads the ciphertext, and asks, verifies, decrypts and
digests.
"""

from __future__ import annotations

from bench import measure
from bench.peers import Tool, find_peers
from broker import __version__
from broker.dev.stage import PROGRAM, Stage

OURS = "broker get"


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when every download was complete and equal."""
    with measure.set_scene(size_mib) as scene:
        peers, missing = find_peers(scene.store)
        tools = [_ours(scene.stage), *peers]
        measure.say_what_runs(tools, missing, size_mib=size_mib, rounds=rounds)
        runs = scene.take_turns(tools, rounds=rounds)
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
