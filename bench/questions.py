"""Audit questions over a long ledger: how long the database takes for one page, and for one count.

The search rows are those of a year of a busy broker, made by a fixed seed: grants, leases, completions and
denials of 500 principals over 2,000 artifacts, one in fifty refused. They are put into the table that
searches read, without the log behind it; a question reads nothing else. A question is what an auditor
asks, with a value that the seed draws anew each time; a page has 100 rows.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Final

from sqlalchemy import insert

from bench import machine
from bench.measure import RESULTS
from broker.db import migrate
from broker.db.engine import open_engine
from broker.db.ledger_store import LedgerStore
from broker.db.search import encode_index_row
from broker.db.tables import ledger_index
from broker.model import IndexRow, Query
from broker.ports import LedgerReader
from broker.runtime import SystemClock
from broker.wiring import MerkleRules

PAGE: Final = 100
_BEGAN: Final = 1_700_000_000_000
_YEAR_MS: Final = 365 * 86_400_000
_BATCH: Final = 10_000
_PRINCIPALS, _ARTIFACTS = 500, 2_000
_KINDS: Final = ("grant", "lease", "completion", "audit-query")

Ask = Callable[[LedgerReader, random.Random], object]


def _search(reader: LedgerReader, **members: Any) -> object:
    return reader.search(Query(**members), after=-1, limit=PAGE)


def _since(draw: random.Random, days: int) -> dict[str, int]:
    since = _BEGAN + draw.randrange(_YEAR_MS - days * 86_400_000)
    return {"since": since, "until": since + days * 86_400_000}


def _middle(reader: LedgerReader, draw: random.Random) -> object:
    return reader.search(Query(principal=_principal(draw)), after=draw.randrange(10**6), limit=PAGE)


QUESTIONS: Final[dict[str, Ask]] = {
    "of a principal": lambda reader, draw: _search(reader, principal=_principal(draw)),
    "of a principal, from a place on": _middle,
    "of a principal, in one week": lambda reader, draw: _search(
        reader, principal=_principal(draw), **_since(draw, 7)
    ),
    "of an artifact": lambda reader, draw: _search(reader, artifact=_artifact(draw)),
    "of an artifact, refused": lambda reader, draw: _search(
        reader, artifact=_artifact(draw), decision="deny"
    ),
    "refused": lambda reader, _: _search(reader, decision="deny"),
    "of a type": lambda reader, _: _search(reader, type="completion"),
    "of a key": lambda reader, draw: _search(reader, jkt=f"key-{draw.randrange(_PRINCIPALS)}"),
    "of a grant": lambda reader, draw: _search(reader, grant=f"g_{draw.randrange(10**5)}"),
    "in one hour": lambda reader, draw: reader.search(Query(**_hour(draw)), after=-1, limit=PAGE),
    "count of a principal by type": lambda reader, draw: reader.count(
        Query(principal=_principal(draw)), by="type", top=20
    ),
    "count of a day by principal": lambda reader, draw: reader.count(
        Query(**_since(draw, 1)), by="principal", top=20
    ),
    "count of everything by type": lambda reader, _: reader.count(Query(), by="type", top=20),
    "text that is nowhere": lambda reader, _: _search(reader, text=("no-such-text",)),
}
SCANS: Final = frozenset({"count of everything by type", "text that is nowhere"})
"""Questions that have to look at every row."""


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; always 0.

    ``size_mib`` chooses the rows: a thousand for each MiB that the other benchmarks move.
    """
    rows = size_mib * 1000
    with (
        tempfile.TemporaryDirectory(prefix="broker-bench-") as folder,
        closing(_store(f"sqlite:///{folder}/questions.db", rows)) as store,
    ):
        found = _ask_all(store, asked=20 * rounds)
    sys.stdout.write(f"{'milliseconds, of ' + format(rows, ',') + ' rows':<36} {'p50':>9} {'p99':>9}\n")
    for what, times in found.items():
        sys.stdout.write(f"{what:<36} {times['p50']:>9.2f} {times['p99']:>9.2f}\n")
    summary = {"machine": machine.describe(RESULTS), "rows": rows, "milliseconds": found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _store(url: str, rows: int) -> LedgerStore:
    migrate.upgrade(url)
    store = LedgerStore(open_engine(url), tree=MerkleRules(), integrity_key=bytes(32), clock=SystemClock())
    store.initialize()
    engine = open_engine(url, writes=True, pool_size=1)
    made = _rows(rows)
    while batch := list(islice(made, _BATCH)):
        with engine.begin() as connection:
            connection.execute(insert(ledger_index), batch)
    engine.dispose()
    return store


def _rows(count: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(7)
    for index in range(count):
        refused = draw.random() < 0.02
        number = draw.randrange(_PRINCIPALS)
        row = IndexRow(
            time=_BEGAN + index * _YEAR_MS // count,
            type="denial" if refused else draw.choice(_KINDS),
            principal=f"user:p{number}",
            jkt=f"key-{number}",
            action="read",
            artifact=_artifact(draw),
            version=f"step-{draw.randrange(50)}",
            decision="deny" if refused else "allow",
            policies=("readers-by-group",),
            bytes=draw.randrange(10**10),
            grant=f"g_{index // 8}",
            purpose="evaluation",
        )
        yield {"idx": index, **encode_index_row(row)}


def _principal(draw: random.Random) -> str:
    return f"user:p{draw.randrange(_PRINCIPALS)}"


def _artifact(draw: random.Random) -> str:
    return f"c{draw.randrange(40)}/m{draw.randrange(_ARTIFACTS // 40)}"


def _hour(draw: random.Random) -> dict[str, int]:
    since = _BEGAN + draw.randrange(_YEAR_MS)
    return {"since": since, "until": since + 3_600_000}


def _ask_all(store: LedgerStore, *, asked: int) -> dict[str, dict[str, float]]:
    draw = random.Random(11)
    taken: dict[str, list[float]] = {what: [] for what in QUESTIONS}
    for turn in range(asked):
        for what, ask in QUESTIONS.items():
            if what in SCANS and turn % 20:
                continue
            with store.reader() as reader:
                began = time.perf_counter()
                ask(reader, draw)
                taken[what].append((time.perf_counter() - began) * 1000)
    return {
        what: {"p50": statistics.median(times), "p99": sorted(times)[int(len(times) * 0.99)]}
        for what, times in taken.items()
    }
