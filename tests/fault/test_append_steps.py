"""Each step of an append broken twice: failed, and done but reported as failed (I16)."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, make_url, text

from broker.db import LedgerStore
from broker.db.tables import METADATA
from broker.drafts import Absent, Charge, Draft
from broker.errors import InternalError, LedgerUnavailable
from broker.model import Principal
from tests import postgres
from tests.databases import (
    append_together,
    appended,
    check_ledger,
    database_url,  # noqa: F401 - a fixture
    draft,
    entry,
    kinds,
    open_store,
    proof,
    request,
    store,  # noqa: F401 - a fixture
)
from tests.postgres import CommitCutter, migrated_postgres_url  # noqa: F401 - a fixture

ANA = Principal(id="user:ana", roles=(), groups=(), disabled=False, created=1)


def lasting(store: LedgerStore) -> Exception:
    """The disk is full: trying again does not help."""
    if store._writers.dialect.name == "postgresql":
        return psycopg.errors.DiskFull("disk full")
    failure = sqlite3.OperationalError("database or disk is full")
    failure.sqlite_errorcode = sqlite3.SQLITE_FULL
    return failure


def passing(store: LedgerStore) -> Exception:
    """Somebody was in the way: trying again helps."""
    if store._writers.dialect.name == "postgresql":
        return psycopg.errors.SerializationFailure("could not serialize access")
    failure = sqlite3.OperationalError("database is locked")
    failure.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return failure


class Faults:
    """Breaks the n-th call of the database driver, once, before or after it was made."""

    def __init__(self, store: LedgerStore, patch: pytest.MonkeyPatch) -> None:
        self._store = store
        self.fired = False
        self._calls = 0
        self._at = -1
        self._failure = Exception()
        self._after = False
        dialect = store._writers.dialect
        for name in ("do_execute", "do_executemany"):
            patch.setattr(dialect, name, self._wrapped(getattr(dialect, name)))

    def arm(self, at: int, failure: Exception, *, after: bool) -> None:
        self.fired, self._calls, self._at, self._failure, self._after = False, 0, at, failure, after

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            at, self._calls = self._calls, self._calls + 1
            if at != self._at:
                return real(*args, **kwargs)
            self.fired = True
            if self._after:
                real(*args, **kwargs)
            raise self._failure

        return call


def full_draft() -> Draft:
    """A draft that writes to every table."""
    whole = replace(entry(), record=b"list", evidence=b"why", evidence_salt=b"s" * 32)
    charge = Charge(holder="h", version_id=b"v" * 16, total_extents=8, extents=((1, 5),))
    return draft(entries=(whole, entry()), proof=proof(), request=request(), charges=(charge,), rows=(ANA,))


def everything(store: LedgerStore) -> dict[str, list[Any]]:
    with store._snapshot() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(table.select()).all()))
            for table in METADATA.sorted_tables
        }


@pytest.fixture
def faults(store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(store, monkeypatch)


@pytest.mark.parametrize("after", [False, True], ids=["failed", "done-but-reported-failed"])
def test_a_lasting_failure_of_any_step_leaves_nothing(
    store: LedgerStore, faults: Faults, after: bool
) -> None:
    # 254 and 2 are 256: every attempt also completes a node of the tree.
    store.append(draft(entries=tuple(entry() for _ in range(254)), proof=proof()))
    before = everything(store)
    for step in range(100):
        faults.arm(step, lasting(store), after=after)
        outcome: object = None
        try:
            outcome = store.append(full_draft())
        except LedgerUnavailable:
            assert everything(store) == before, step
        assert faults.fired == (outcome is None), step
        if not faults.fired:
            break
    assert step > 15
    assert appended(outcome).index == 254
    assert check_ledger(store) == 256


@pytest.mark.parametrize("after", [False, True], ids=["failed", "done-but-reported-failed"])
def test_a_passing_failure_of_any_step_is_tried_again(
    store: LedgerStore, faults: Faults, after: bool
) -> None:
    size = 0
    for step in range(100):
        faults.arm(step, passing(store), after=after)
        done = store.append(full_draft())
        assert (done.index, done.tail.size, done.repeated) == (size, size + 2, False), step
        size += 2
        if not faults.fired:
            break
    assert step > 14
    assert check_ledger(store) == size
    with store.view() as view:
        assert view.meter("h") == 5


def test_attempts_are_bounded(store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refuse(*_: Any) -> None:
        calls.append(1)
        raise passing(store)

    monkeypatch.setattr(store._writers.dialect, "do_executemany", refuse)
    monkeypatch.setattr(store._writers.dialect, "do_execute", refuse)
    with pytest.raises(LedgerUnavailable):
        store.append(draft())
    assert len(calls) == 4


# -- the commit itself -----------------------------------------------------------------------------


def break_commit(
    store: LedgerStore, patch: pytest.MonkeyPatch, failure: Exception, *, after: bool, times: int = 1
) -> None:
    real = store._writers.dialect.do_commit
    left = [times]

    def commit(connection: Any) -> None:
        broken = left[0] > 0
        left[0] -= 1
        if broken and not after:
            raise failure
        real(connection)
        if broken:
            raise failure

    patch.setattr(store._writers.dialect, "do_commit", commit)


def test_a_commit_that_failed_leaves_nothing(store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = full_draft()
    break_commit(store, monkeypatch, lasting(store), after=False)
    with pytest.raises(LedgerUnavailable):
        store.append(mine)
    assert check_ledger(store) == 0
    done = store.append(mine)
    assert (done.index, done.repeated) == (0, False)
    assert check_ledger(store) == 2


def test_a_commit_that_failed_in_passing_is_tried_again(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_commit(store, monkeypatch, passing(store), after=False)
    assert store.append(full_draft()).index == 0
    assert check_ledger(store) == 2


@pytest.mark.parametrize("failure", [lasting, passing])
def test_a_commit_that_only_its_answer_was_lost_of_is_found(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch, failure: Callable[[LedgerStore], Exception]
) -> None:
    store.append(draft())
    break_commit(store, monkeypatch, failure(store), after=True)
    outcomes = append_together(store, [full_draft(), draft(epoch=9), draft(proof=proof())])
    assert kinds(outcomes) == ["Appended", "StaleDecision", "Appended"]
    assert [appended(o).index for o in (outcomes[0], outcomes[2])] == [1, 3]
    assert check_ledger(store) == 4
    with store.view() as view:
        assert view.meter("h") == 5


def test_a_commit_whose_fate_cannot_be_read_is_not_answered(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = full_draft()
    store.append(draft())
    break_commit(store, monkeypatch, passing(store), after=True)
    dead = [True]

    @event.listens_for(store._writers, "do_connect")
    def refuse(*_: Any) -> None:
        if dead[0]:
            raise passing(store)

    with pytest.raises(LedgerUnavailable):
        store.append(mine)
    dead[0] = False
    # The record is there without a release; the same request finds it, and is charged once.
    again = store.append(replace(mine, proof=proof()))
    assert (again.index, again.repeated) == (1, True)
    assert check_ledger(store) == 3
    with store.view() as view:
        assert view.meter("h") == 5


def test_a_batch_of_unknown_fate_is_not_written_twice(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(draft())
    break_commit(store, monkeypatch, passing(store), after=True)
    refusals = [passing(store) for _ in range(4)]

    @event.listens_for(store._writers, "do_connect")
    def refuse(*_: Any) -> None:
        if refusals:  # the database is back just after the last look at what became of the commit
            raise refusals.pop()

    with pytest.raises(LedgerUnavailable):
        store.append(draft())
    assert refusals == []
    assert check_ledger(store) == 2


def test_a_lost_commit_without_an_entry_is_not_answered(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_commit(store, monkeypatch, passing(store), after=True)
    with pytest.raises(LedgerUnavailable):
        store.append(Draft(proof=proof()))
    assert store.append(Draft(proof=proof())).index is None


@pytest.fixture
def behind_proxy(migrated_postgres_url: str) -> Iterator[tuple[LedgerStore, CommitCutter]]:
    proxy = CommitCutter()
    url = make_url(migrated_postgres_url)
    made = open_store(
        postgres.text_of(url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable"}))
    )
    made.initialize()
    yield made, proxy
    made.close()
    proxy.close()


@pytest.mark.postgres
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_lost_at_the_commit_is_settled(
    behind_proxy: tuple[LedgerStore, CommitCutter], cut: str
) -> None:
    made, proxy = behind_proxy
    made.append(draft())
    for at in range(1, 9, 2):
        proxy.cut = cut
        mine = full_draft()
        done = made.append(mine)
        assert (done.index, done.repeated, proxy.cut) == (at, False, None)
        assert made.append(replace(mine, proof=proof())).index == at
    assert check_ledger(made) == 9


# -- the database as a whole ---------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk_makes_the_ledger_unavailable(store: LedgerStore) -> None:
    store.append(draft())
    with store._writers.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    big = replace(entry(), evidence=bytes(1 << 20), evidence_salt=b"s" * 32)
    with pytest.raises(LedgerUnavailable):
        store.append(draft(entries=(big,)))
    with store._writers.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.append(draft(entries=(big,))).index == 1
    assert check_ledger(store) == 2


def test_a_tail_that_stays_locked_makes_the_ledger_unavailable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.db.engine.BUSY_SECONDS", 0.02)
    monkeypatch.setattr("broker.db.engine._SESSION", ("SET lock_timeout = '20ms'",))
    made, other = open_store(database_url), open_store(database_url)
    made.initialize()
    with other._writers.begin() as held:
        held.execute(text("UPDATE ledger_tail SET size = size"))
        with pytest.raises(LedgerUnavailable):
            made.append(draft())
    assert made.append(draft()).index == 0
    made.close()
    other.close()


@pytest.mark.postgres
def test_connections_that_the_server_ended_are_replaced(migrated_postgres_url: str) -> None:
    made = open_store(migrated_postgres_url)
    made.initialize()
    for index in range(3):
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{make_url(migrated_postgres_url).database}'"
        )
        assert made.append(full_draft()).index == 2 * index
    assert check_ledger(made) == 6
    made.close()


@pytest.mark.postgres
def test_one_failure_is_enough_to_replace_every_connection(migrated_postgres_url: str) -> None:
    made = open_store(migrated_postgres_url)
    made.initialize()
    with ExitStack() as opened:
        for _ in range(5):
            opened.enter_context(made.view())
    postgres.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{make_url(migrated_postgres_url).database}'"
    )
    with pytest.raises(LedgerUnavailable), made.view():
        pass
    with ExitStack() as opened:
        for _ in range(5):
            assert opened.enter_context(made.view()).tail().size == 0
    made.close()


def test_a_database_that_is_gone_is_unavailable_and_says_no_secret(tmp_path: Any) -> None:
    made = open_store("postgresql://someone:hunter2@127.0.0.1:1/nothing")
    for act in (lambda: made.append(draft()), made.initialize, lambda: made.view().__enter__()):
        with pytest.raises(LedgerUnavailable) as caught:
            act()
        assert "hunter2" not in f"{caught.value!r} {caught.value.why} {caught.value.__cause__}"
    made.close()


def test_a_bug_in_one_draft_is_its_own(store: LedgerStore) -> None:
    broken = draft(rows=(replace(ANA, groups=("a", 5)),))  # type: ignore[arg-type]
    assert kinds(append_together(store, [draft(), broken, draft()])) == [
        "Appended",
        "InternalError",
        "Appended",
    ]
    for expected in (
        object(),
        Absent(row=Principal, key=()),
        Absent(row=Principal, key=(1,)),
        Absent(row=object, key=("x",)),
    ):
        with pytest.raises(InternalError):
            store.append(draft(expects=(expected,)))  # type: ignore[arg-type]
    assert check_ledger(store) == 2
