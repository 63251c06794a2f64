"""The contract of ``ports.View`` and of search, on SQLite and on PostgreSQL."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from broker import limits
from broker.canonical import sha256_digest
from broker.db import LedgerStore
from broker.db.bounded import bounded
from broker.db.engine import open_engine
from broker.db.search import _TELLING, search_statement
from broker.db.tables import INDEXED
from broker.errors import IntegrityFailure, InternalError, InvalidRequest
from broker.ledger.query import GROUPINGS, matches
from broker.model import IndexRow, Principal, Query
from broker.runtime import SystemClock
from tests.databases import (
    FixedClock,
    append_together,
    database_url,  # noqa: F401 - a fixture
    draft,
    entry,
    intruder,  # noqa: F401 - a fixture
    open_store,
    sample_version,
    store,  # noqa: F401 - a fixture
)

ANA = Principal(id="user:ana", roles=(), groups=(), disabled=False, created=1)


def test_a_view_does_not_move(store: LedgerStore) -> None:
    store.append(draft(rows=(ANA,)))
    with store.view() as view:
        store.append(draft(rows=(replace(ANA, disabled=True),), bumps_epoch=True))
        assert (view.tail().size, view.epoch) == (1, 0)
        assert view.find(Principal, "user:ana") == replace(ANA, entry=0)
        assert [index for index, _, _ in view.entries(0, 9)] == [0]
        with store.view() as later:
            assert (later.tail().size, later.epoch) == (2, 1)
            assert later.find(Principal, "user:ana") == replace(ANA, disabled=True, entry=1)


def test_a_question_without_an_end_is_stopped(database_url: str) -> None:
    """In the database, so that it costs no more than its time; the next question has its own."""
    endless = text("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c")
    open_store(database_url).close()
    engine = open_engine(database_url, pool_size=1)
    with (
        engine.connect() as connection,
        pytest.raises(InvalidRequest, match="too many") as stopped,
        bounded(connection, milliseconds=100),
    ):
        connection.execute(endless).scalar()
    assert "narrow" in (stopped.value.next or "")
    with engine.connect() as connection, bounded(connection):
        assert connection.execute(text("SELECT 7")).scalar() == 7
    with engine.connect() as connection, pytest.raises(DatabaseError), bounded(connection):
        connection.execute(text("SELECT * FROM there_is_no_such_table")).all()
    engine.dispose()


def test_every_member_that_an_index_serves_can_choose_it() -> None:
    assert set(_TELLING) == set(INDEXED)


def test_a_view_tells_the_time_of_the_database(database_url: str) -> None:
    made = open_store(database_url, clock=FixedClock(4_000_000_000_000))
    made.initialize()
    with made.view() as view:
        if database_url.startswith("sqlite"):
            assert view.now == 4_000_000_000_000
        else:
            # Replicas share PostgreSQL's clock, so none of them uses its own.
            assert abs(view.now - SystemClock().now()) < 60_000
    made.close()


def test_a_view_cannot_write(store: LedgerStore) -> None:
    with store._snapshot() as connection, pytest.raises(Exception, match=r"(?i)read.?only"):
        connection.execute(text("DELETE FROM replays"))


def test_ranges_are_cut_at_both_ends(store: LedgerStore) -> None:
    append_together(store, [draft() for _ in range(256)])
    append_together(store, [draft() for _ in range(256)])
    append_together(store, [draft() for _ in range(88)])
    with store.view() as view:
        for start, stop, expected in ((0, 600, 600), (3, 3, 0), (590, 700, 10), (-5, 2, 2), (100, 411, 311)):
            first = max(0, start)
            assert [i for i, _, _ in view.entries(start, stop)] == list(range(first, first + expected))
            assert [i for i, _ in view.index_rows(start, stop)] == list(range(first, first + expected))
        assert len(view.hashes(0, 100, 600)) == 500
        assert len(view.hashes(8, 0, 2)) == 2
        for level, start, stop in ((0, 599, 601), (8, 1, 3), (16, 0, 1)):
            with pytest.raises(IntegrityFailure):
                view.hashes(level, start, stop)


def test_versions_come_in_the_order_of_their_commits(store: LedgerStore) -> None:
    for name, committed in (("z", 10), ("a", 20), ("m", 20)):
        store.append(draft(rows=(sample_version("c", "n", name, committed=committed),)))
    store.append(draft(rows=(sample_version("c", "other", "x", committed=99),)))
    with store.view() as view:
        assert view.versions("c", "n") == ["z", "a", "m"]
        assert view.newest_version("c", "n") == "m"
        assert view.version_by_digest("c", "n", "sha256:a") == "a"
        assert view.version_by_digest("c", "n", "sha256:x") is None
        assert view.newest_version("c", "nothing") is None
        assert view.versions("c", "\0") == []


def test_a_record_must_have_its_digest(store: LedgerStore, intruder) -> None:
    digest = sha256_digest(b"list")
    store.append(draft(entries=(replace(entry(), record=b"list"),)))
    with intruder.begin() as connection:
        connection.execute(text("UPDATE ledger_records SET body = :b"), {"b": b"another"})
    with store.view() as view, pytest.raises(IntegrityFailure):
        view.record(digest)


# -- search ----------------------------------------------------------------------------------------

ROWS = [
    IndexRow(
        time=100 + at // 2 - 3 * (at % 5 == 0),
        type=kind,
        principal=principal,
        jkt=f"j{at % 3}",
        action="read" if at % 2 else None,
        artifact=artifact,
        version="v1" if at % 3 else "V1",
        decision=decision,
        policies=policies,
        bytes=at,
        grant=f"g_{at % 4}" if at % 4 else None,
        purpose=purpose,
    )
    for at, (kind, principal, artifact, decision, (policies, purpose)) in enumerate(
        itertools.product(
            ("grant", "lease"),
            ("user:ana", "user:an_", None),
            ("acme/llama", "acme/llama-2"),
            ("allow", None),
            (
                (("readers-by-group",), "Weekly EVAL"),
                ((), "100% of_it"),
                (("A", "b"), "back\\slash 'or' 1=1 --"),
                ((), None),
            ),
        )
    )
]


QUERIES = [
    Query(),
    Query(principal="user:ana"),
    Query(principal="user:an_"),
    Query(principal="user:%"),
    Query(artifact="acme/llama"),
    Query(artifact="acme/llama", decision="allow", type="lease"),
    Query(version="v1"),
    Query(action="read", jkt="j1"),
    Query(grant="g_2"),
    Query(purpose="100% of_it"),
    Query(since=105),
    Query(until=105),
    Query(since=105, until=108),
    Query(since=105, until=108, principal="user:ana"),
    Query(since=9_999),
    Query(until=0),
    Query(text=("eval",)),
    Query(text=("LLAMA-2", "ana")),
    Query(text=("%",)),
    Query(text=("_",)),
    Query(text=("\\",)),
    Query(text=("'or' 1=1 --",)),
    Query(text=("[",)),
    Query(text=('"',)),
    Query(text=("readers",)),
    Query(text=("a",), type="grant", since=101),
    Query(text=("É",)),
    Query(principal="\0"),
    Query(text=("\ud800",)),
    Query(principal="user:nobody' OR ''='"),
]


@pytest.fixture
def searchable(store: LedgerStore) -> LedgerStore:
    append_together(store, [draft(entries=(replace(entry(), index=row),)) for row in ROWS])
    return store


def test_a_search_finds_exactly_what_the_query_means(searchable: LedgerStore) -> None:
    found_something = 0
    with searchable.view() as view:
        for query in QUERIES:
            expected = [(at, row) for at, row in enumerate(ROWS) if matches(query, row)]
            assert view.search(query, after=-1, limit=1000) == expected, query
            found_something += bool(expected)
            paged: list[tuple[int, IndexRow]] = []
            while page := view.search(query, after=paged[-1][0] if paged else -1, limit=7):
                assert len(page) <= 7
                paged += page
            assert paged == expected, query
    assert found_something > 20


@pytest.mark.parametrize("by", GROUPINGS)
def test_counts_are_those_of_the_rows_that_match(searchable: LedgerStore, by: str) -> None:
    span = {"hour": 3_600_000, "day": 86_400_000}.get(by)
    several = 0
    with searchable.view() as view:
        for query in QUERIES:
            rows = [row for row in ROWS if matches(query, row)]
            expected = Counter(row.time - row.time % span if span else getattr(row, by) for row in rows)
            found = view.count(query, by=by, top=limits.MAX_PAGE)
            assert dict(found.groups) == expected, query
            assert (found.total, found.unnamed, found.unnamed_rows) == (len(rows), 0, 0)
            several += len(expected) > 1
            cut = view.count(query, by=by, top=1)
            assert cut.total == len(rows)
            assert cut.groups == (found.groups[-1:] if span else found.groups[:1])
            assert cut.unnamed == max(0, len(expected) - 1)
            assert cut.unnamed_rows == len(rows) - sum(rows for _, rows in cut.groups)
    assert several > 2 or span


def test_the_largest_groups_come_first_and_spans_of_time_in_their_order(store: LedgerStore) -> None:
    hour = 3_600_000
    rows = [
        IndexRow(time=at * hour + 7, type="grant", principal=who)
        for at, who in ((3, "b"), (1, None), (1, "b"), (2, "a"), (1, "c"), (1, None), (9, None))
    ]
    append_together(store, [draft(entries=(replace(entry(), index=row),)) for row in rows])
    with store.view() as view:
        assert view.count(Query(), by="principal", top=9).groups == ((None, 3), ("b", 2), ("a", 1), ("c", 1))
        assert view.count(Query(), by="hour", top=3).groups == ((2 * hour, 1), (3 * hour, 1), (9 * hour, 1))
        assert view.count(Query(), by="hour", top=3).unnamed_rows == 4
        with pytest.raises(InternalError):
            view.count(Query(), by="jkt", top=3)


def test_a_page_has_at_most_its_limit(store: LedgerStore) -> None:
    for _ in range(4):
        append_together(store, [draft() for _ in range(256)])
    with store.view() as view:
        assert len(view.search(Query(), after=-1, limit=10_000)) == limits.MAX_PAGE
        assert len(view.search(Query(), after=-1, limit=limits.MAX_PAGE)) == limits.MAX_PAGE
        assert view.search(Query(), after=1022, limit=5)[0][0] == 1023
        assert view.search(Query(), after=-1, limit=0) == []


@pytest.mark.parametrize("member", [*INDEXED, "since", "until"])
def test_every_filter_is_served_by_an_index(store: LedgerStore, member: str) -> None:
    many = [replace(entry(), index=IndexRow(time=at, type=f"t{at}", principal=f"p{at}")) for at in range(200)]
    store.append(draft(entries=tuple(many)))
    query = Query(**{member: 150 if member in ("since", "until") else "p5"})
    statement = search_statement(query, after=3, limit=10)
    assert statement is not None
    with store._snapshot() as connection:
        sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
        if connection.dialect.name == "sqlite":
            plan = "\n".join(str(row) for row in connection.execute(text("EXPLAIN QUERY PLAN " + sql)))
            assert "SCAN ledger_index'" not in plan, plan
            assert "TEMP B-TREE" not in plan, plan
        else:
            # A small table is always scanned unless scanning is made expensive.
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            plan = "\n".join(str(row) for row in connection.execute(text("EXPLAIN " + sql)))
            assert "Seq Scan" not in plan, plan
            # For a time the planner chooses between two indices, by what it knows of the table.
            assert member in ("since", "until") or f"ix_ledger_index_{member}" in plan, plan


def test_a_foreign_value_in_the_search_columns_is_shown_not_believed(store: LedgerStore, intruder) -> None:
    store.append(draft(entries=(entry(principal="user:ana"), entry(principal="user:ana"))))
    with intruder.begin() as connection:
        connection.execute(
            text("UPDATE ledger_index SET policies = 'no list', principal = 'user:eve' WHERE idx = 0")
        )
        if intruder.dialect.name == "sqlite":
            connection.execute(
                text("UPDATE ledger_index SET time = x'ff', type = CAST(x'fe' AS TEXT) WHERE idx = 1")
            )
    with store.view() as view:
        rows = dict(view.index_rows(0, 2))
    assert rows[0].principal == "user:eve"
    assert rows[0].policies == ("\ufffd",)
    if intruder.dialect.name == "sqlite":
        assert (rows[1].time, rows[1].type) == (-1, "\ufffd")
