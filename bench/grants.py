"""The grant path: signed requests decided, recorded, and answered with sealed leases, at several loads.

Every request is a new one: its own request id, its own HPKE key, its own proof. They are signed before the
clock starts, so that the client's work is not measured; the load generator is one process beside the server
on the same machine, with one connection for each caller. The floor is a route of the same server that does
nothing but answer. Rounds are interleaved; figures are medians of the rounds.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench import machine
from bench.measure import RESULTS
from broker.canonical import b64url, canonical_bytes
from broker.client.session import Session
from broker.client.settings import load_profile
from broker.dev.stage import Stage
from broker.envelope import seal
from broker.identity import proof
from broker.runtime import SystemClock

CALLERS: Final = (1, 4, 32, 64)
SHARDS: Final = (1, 30)
"""Files of a grant, of 64 KiB each: a checkpoint's shards, as far as the broker's work is concerned."""
_SHARD_BYTES: Final = 64 * 1024
_FEWEST: Final = 60
_TARGET: Final = "/v1/grants"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One request, ready to be sent."""

    target: str
    method: str = "GET"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Load:
    """What came of one load: answers a second, and the time that each answer took in milliseconds."""

    rate: float
    milliseconds: Sequence[float]


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when every grant was given.

    ``size_mib`` chooses how many grants a load has: one for each four MiB that the other benchmarks move.
    """
    count = max(_FEWEST, size_mib // 4)
    found: dict[str, list[_Load]] = {}
    with scene() as session:
        for _ in range(rounds):
            for what, load in _round(session, count):
                found.setdefault(what, []).append(load)
    summary: dict[str, Any] = {
        "machine": machine.describe(RESULTS),
        "grants": count,
        "rounds": rounds,
        "loads": {what: _summary(loads) for what, loads in found.items()},
    }
    _show(summary["loads"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _round(session: Session, count: int) -> Iterator[tuple[str, _Load]]:
    for callers in CALLERS:
        yield f"floor, {callers} callers", _send(session.server, [_Asked(target="/livez")] * count, callers)
        for shards in SHARDS:
            asked = [_sign(session, f"bench/shards-{shards}") for _ in range(count)]
            yield f"grants of {shards} shards, {callers} callers", _send(session.server, asked, callers)


def _summary(loads: Sequence[_Load]) -> dict[str, Any]:
    every = sorted(took for load in loads for took in load.milliseconds)
    rates = [load.rate for load in loads]
    return {
        "per_second": round(statistics.median(rates), 1),
        "spread": [round(min(rates), 1), round(max(rates), 1)],
        "p50_ms": round(every[len(every) // 2], 2),
        "p99_ms": round(every[min(len(every) - 1, len(every) * 99 // 100)], 2),
    }


def _show(loads: dict[str, Any]) -> None:
    for what, row in loads.items():
        times = f"p50 {row['p50_ms']:>7.2f} ms   p99 {row['p99_ms']:>7.2f} ms"
        sys.stdout.write(f"{what:<34} {row['per_second']:>9,.0f} /s   {times}\n")


# -- the scene --------------------------------------------------------------------------------------------


@contextmanager
def scene() -> Iterator[Session]:
    """The embedded stack with two workers, and a publisher who has published what is asked for."""
    folder = Path(tempfile.mkdtemp(prefix="broker-bench-"))
    try:
        stage = Stage(folder, io.StringIO())
        with stage.stack("--workers", "2"):
            words = ("principal", "add", "bench", "--role", "publisher", "--group", "bench", "-o", "json")
            added = stage.run("admin", "admin", *words).json()
            stage.run("bench", *added["login"].split()[1:])
            for shards in SHARDS:
                tree = folder / f"shards-{shards}"
                tree.mkdir()
                for at in range(shards):
                    (tree / f"model-{at:05}.bin").write_bytes(os.urandom(_SHARD_BYTES))
                stage.run("bench", "put", tree.name, f"bench/shards-{shards}@v1")
            yield Session.of(load_profile(stage.profiles / "bench"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sign(session: Session, artifact: str) -> _Asked:
    public = b64url(seal.Recipient.generate().public_bytes)
    body = canonical_bytes(
        {
            "request_id": str(uuid.uuid4()),
            "artifact": artifact,
            "version": "v1",
            "include": ["**"],
            "exclude": [],
            "recipient": {"kem": seal.KEM, "public_key": public},
        }
    )
    token = session.access_token()
    profile = session.profile
    if profile is None:
        raise SystemExit("the session has no profile")
    made = proof.build_proof(
        key=profile.key,
        method="POST",
        url=session.server + _TARGET,
        now=SystemClock().now(),
        jti=str(uuid.uuid4()),
        body=body,
        query=None,
        access_token=token,
        nonce=None,
    )
    headers = {"Authorization": f"DPoP {token}", "DPoP": made, "Content-Type": "application/json"}
    return _Asked(target=_TARGET, method="POST", body=body, headers=tuple(headers.items()))


# -- the load ---------------------------------------------------------------------------------------------


def _send(server: str, asked: Sequence[_Asked], callers: int) -> _Load:
    """Send every request, ``callers`` at a time, each over a connection that is open already."""
    netloc = urlsplit(server).netloc
    connections = [http.client.HTTPConnection(netloc, timeout=60) for _ in range(callers)]
    for connection in connections:
        _exchange(connection, _Asked(target="/livez"))

    def call(at: int) -> list[float]:
        return [_timed(connections[at], one) for one in asked[at::callers]]

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        began = time.perf_counter()
        took = [each for times in pool.map(call, range(callers)) for each in times]
        seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return _Load(rate=len(asked) / seconds, milliseconds=took)


def _exchange(connection: http.client.HTTPConnection, one: _Asked) -> None:
    connection.request(one.method, one.target, body=one.body or None, headers=dict(one.headers))
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{one.target} answered {answer.status}: {said[:300]!r}")


def _timed(connection: http.client.HTTPConnection, one: _Asked) -> float:
    began = time.perf_counter()
    _exchange(connection, one)
    return (time.perf_counter() - began) * 1000
