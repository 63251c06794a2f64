"""Reading through the loopback agent, beside the same tools reading the plaintext straight from the store.

Each tool runs twice a round: once against the store, where it reads the plaintext object with the store's
credentials, and once against the agent, which asks, has the read recorded, fetches ciphertext, decrypts and
verifies. What differs is the agent alone. It runs throughout, as it does beside a job.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench import measure
from bench.peers import NotInstalled, Store, Tool, curl_hub, find_hub, find_peers
from broker.dev.child import stop_child
from broker.dev.stage import PROGRAM, Stage

_STOP_SECONDS = 15


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when every download was complete and equal."""
    with measure.set_scene(size_mib) as scene, _agent(scene.stage) as agent:
        tools, pairs, missing = _tools(scene.store, agent)
        measure.say_what_runs(tools, missing, size_mib=size_mib, rounds=rounds)
        runs = scene.take_turns(tools, rounds=rounds)
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
