"""The ledger beside what it is built on: durable appends, the whole log verified, inclusion proofs.

Appends run on a new SQLite database with full syncs: one caller alone; 64 drafts handed over in one
commit; then 64 callers at once, whose entries are committed together. Their peer writes the very same rows
of the log and its search index into an empty database of the same schema, 64 rows a transaction, with
Python's sqlite3 alone. Verification is set beside a loop that only hashes the same entries. Rounds are
interleaved; ratios are of medians.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from bench import machine
from bench.measure import RESULTS
from broker.canonical import sha256_digest
from broker.db import migrate
from broker.db.engine import open_engine
from broker.db.ledger_store import LedgerStore
from broker.drafts import Draft, NewEntry
from broker.ledger import merkle
from broker.ledger.audit import Auditor
from broker.ledger.entry import build_entry, index_row, parse_entry
from broker.ledger.nodes import NodeCache
from broker.ledger.note import TreeHead
from broker.runtime import SystemClock
from broker.wiring import MerkleRules

TOGETHER: Final = 64
ALONE: Final = 200
_PROOFS: Final = 500
TABLES: Final = ("ledger_entries", "ledger_index")


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when the log that was written verifies.

    ``size_mib`` chooses how long the log is: eight entries for each MiB that the other benchmarks move.
    """
    count = max(1, size_mib * 8 // TOGETHER) * TOGETHER
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
        for at in range(rounds):
            for what, rate in _round(Path(folder), at, count).items():
                found.setdefault(what, []).append(rate)
    middle = {what: statistics.median(rates) for what, rates in found.items()}
    ratios = {
        "64 in one commit / alone": middle["appends, 64 in one commit"] / middle["appends, 1 caller"],
        "64 in one commit / plain INSERT": middle["appends, 64 in one commit"]
        / middle["plain INSERT, 64 rows"],
        "64 together / alone": middle["appends, 64 callers"] / middle["appends, 1 caller"],
        "64 together / plain INSERT": middle["appends, 64 callers"] / middle["plain INSERT, 64 rows"],
        "verification / hashlib loop": middle["verification"] / middle["hashlib loop"],
    }
    for what, rate in middle.items():
        sys.stdout.write(f"{what:<28} {rate:>12,.0f} /s\n")
    for what, ratio in ratios.items():
        sys.stdout.write(f"{what:<28} {ratio:>12.2f}\n")
    summary = {"machine": machine.describe(RESULTS), "entries": count, "per_second": found, "ratios": ratios}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _round(folder: Path, at: int, count: int) -> dict[str, float]:
    with closing(open_new(f"sqlite:///{folder}/alone-{at}.db")) as store:
        alone = appends(store, min(count, ALONE), callers=1)
    with closing(open_new(f"sqlite:///{folder}/handed-{at}.db")) as store:
        handed = commits(store, count)
    path = folder / f"together-{at}.db"
    with closing(open_new(f"sqlite:///{path}")) as store:
        together = appends(store, count, callers=TOGETHER)
        verification, loop, proofs = _reading(store, count)
    return {
        "appends, 1 caller": alone,
        "appends, 64 in one commit": handed,
        "appends, 64 callers": together,
        "plain INSERT, 64 rows": _inserts(path, folder / f"plain-{at}.db", count),
        "verification": verification,
        "hashlib loop": loop,
        "inclusion proofs": proofs,
    }


def _draft(at: int) -> Draft:
    data = build_entry(
        type="audit-query",
        time=1_700_000_000_000 + at,
        salt=secrets.token_bytes(16),
        principal=f"user:bench-{at % 50}",
        action="audit",
        query="search type:grant",
        hour="2026-01-01T00:00:00.000Z",
        evidence=sha256_digest(b"bench"),
    )
    return Draft(entries=(NewEntry(data=data, index=index_row(parse_entry(data))),))


def open_new(url: str) -> LedgerStore:
    """A store in a new database."""
    migrate.upgrade(url)
    store = LedgerStore(
        open_engine(url), tree=MerkleRules(), integrity_key=secrets.token_bytes(32), clock=SystemClock()
    )
    store.initialize()
    return store


def commits(store: LedgerStore, count: int) -> float:
    """Entries a second without the threads' waiting for each other: the queue's own call, 64 at a time."""
    drafts = [_draft(at) for at in range(count)]

    def commit() -> None:
        for start in range(0, count, TOGETHER):
            store._commit(drafts[start : start + TOGETHER])

    return count / timed(commit)


def appends(store: LedgerStore, count: int, *, callers: int) -> float:
    """Entries a second of so many threads, each of which appends one at a time."""
    drafts = [_draft(at) for at in range(count)]

    def call(at: int) -> None:
        for draft in drafts[at::callers]:
            store.append(draft)

    threads = [threading.Thread(target=call, args=(at,)) for at in range(callers)]

    def run_all() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return count / timed(run_all)


def _inserts(source: Path, target: Path, count: int) -> float:
    migrate.upgrade(f"sqlite:///{target}")
    with closing(sqlite3.connect(source)) as log, closing(sqlite3.connect(target)) as plain:
        plain.execute("PRAGMA journal_mode=WAL")
        plain.execute("PRAGMA synchronous=FULL")
        rows = {table: log.execute(f"SELECT * FROM {table} ORDER BY idx").fetchall() for table in TABLES}

        def insert() -> None:
            for start in range(0, count, TOGETHER):
                for table, found in rows.items():
                    marks = ",".join("?" * len(found[0]))
                    plain.executemany(
                        f"INSERT INTO {table} VALUES ({marks})", found[start : start + TOGETHER]
                    )
                plain.commit()

        return count / timed(insert)


def _reading(store: LedgerStore, count: int) -> tuple[float, float, float]:
    with store.reader() as reader:
        rows = list(reader.entries(0, count))
        tail = reader.tail()
        head = TreeHead(origin="bench", size=tail.size, root=tail.root)

        def verify() -> None:
            auditor = Auditor(heads=[head])
            auditor.feed(rows)
            if not auditor.finish().ok:
                raise SystemExit("the log that was written does not verify")

        verification = count / timed(verify)
        loop = count / timed(lambda: [hashlib.sha256(b"\0" + entry).digest() for _, entry, _ in rows])
        wanted = [secrets.randbelow(count) for _ in range(_PROOFS)]
        nodes = NodeCache()
        proofs = timed(
            lambda: [merkle.inclusion_proof(at, count, reader.hashes, nodes=nodes) for at in wanted]
        )
    return verification, loop, _PROOFS / proofs


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
