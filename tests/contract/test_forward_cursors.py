"""Cursors of forwarding in both databases: who sends, and from where, when several ask at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text

from broker.db.cursors import CursorStore
from broker.db.engine import open_engine, parse_database_url
from broker.errors import Conflict, IntegrityFailure, LedgerUnavailable, NotFound
from broker.runtime import SystemClock
from tests.databases import INTEGRITY_KEY, database_url

__all__ = ["database_url"]

LEASE = 60_000


def open_cursors(url: str, *, key: bytes = INTEGRITY_KEY) -> CursorStore:
    return CursorStore(open_engine(url, pool_size=2), integrity_key=key, clock=SystemClock())


@pytest.fixture
def cursors(database_url: str) -> Iterator[CursorStore]:
    made = open_cursors(database_url)
    yield made
    made.close()


def change(url: str, statement: str) -> None:
    plain = create_engine(parse_database_url(url))
    with plain.begin() as connection:
        connection.execute(text(statement))
    plain.dispose()


def place(cursors: CursorStore, name: str = "siem") -> int:
    found, _ = cursors.find(name)
    assert found is not None
    return found.next


def test_a_new_destination_begins_where_it_is_told(cursors: CursorStore) -> None:
    assert cursors.find("siem")[0] is None
    first = cursors.take("siem", "a", start=7, lease=LEASE)
    assert first is not None
    assert (first.next, first.holder, first.moved, first.failures, first.error, first.abandoned) == (
        7, "a", 0, 0, "", False,
    )  # fmt: skip
    again = cursors.take("siem", "a", start=99, lease=LEASE)
    assert again is not None
    assert (again.next, again.abandoned) == (7, False)
    other = cursors.take("other", "a", start=0, lease=LEASE)
    assert other is not None
    assert other.next == 0


def test_of_two_forwarders_one_sends_until_it_says_that_it_stopped(cursors: CursorStore) -> None:
    assert cursors.take("siem", "a", start=0, lease=LEASE)
    assert cursors.take("siem", "b", start=0, lease=LEASE) is None
    assert not cursors.move("siem", "b", before=0, after=5, lease=LEASE)
    assert cursors.move("siem", "a", before=0, after=5, lease=LEASE)
    cursors.release("siem", "b")
    assert cursors.take("siem", "b", start=0, lease=LEASE) is None
    cursors.release("siem", "a")
    taken = cursors.take("siem", "b", start=0, lease=LEASE)
    assert taken is not None
    assert (taken.next, taken.abandoned) == (5, False)
    assert not cursors.move("siem", "a", before=5, after=6, lease=LEASE)
    assert place(cursors) == 5


def test_a_forwarder_that_was_killed_is_followed_by_the_next(cursors: CursorStore) -> None:
    assert cursors.take("siem", "a", start=0, lease=0)
    taken = cursors.take("siem", "b", start=0, lease=LEASE)
    assert taken is not None
    assert taken.abandoned
    # It was not killed after all, and finishes a delivery: what it says counts no more.
    assert not cursors.move("siem", "a", before=0, after=9, lease=LEASE)
    assert cursors.move("siem", "b", before=0, after=3, lease=LEASE)


def test_a_lease_of_years_is_none(cursors: CursorStore, database_url: str) -> None:
    assert cursors.take("siem", "a", start=0, lease=LEASE)
    change(database_url, "UPDATE forward_cursors SET until = 9000000000000000")
    assert cursors.take("siem", "b", start=0, lease=LEASE)


def test_a_place_moves_only_from_where_it_is(cursors: CursorStore) -> None:
    assert cursors.take("siem", "a", start=0, lease=LEASE)
    assert cursors.move("siem", "a", before=0, after=4, lease=LEASE)
    assert not cursors.move("siem", "a", before=0, after=8, lease=LEASE)
    assert place(cursors) == 4


def test_failures_are_counted_until_something_is_delivered(cursors: CursorStore) -> None:
    assert cursors.take("siem", "a", start=2, lease=LEASE)
    cursors.fail("siem", "a", error="first")
    cursors.fail("siem", "a", error="second")
    cursors.fail("siem", "b", error="nobody asked")
    found, now = cursors.find("siem")
    assert found is not None
    assert (found.failures, found.error, found.moved) == (2, "second", 0)
    assert found.until > now
    # Back is no delivery.
    assert cursors.move("siem", "a", before=2, after=1, lease=LEASE)
    found, _ = cursors.find("siem")
    assert found is not None
    assert (found.failures, found.error, found.moved) == (2, "second", 0)
    assert cursors.move("siem", "a", before=1, after=3, lease=LEASE)
    found, now = cursors.find("siem")
    assert found is not None
    assert (found.failures, found.error) == (0, "")
    assert now - 60_000 < found.moved <= now


def test_an_operator_goes_back_and_never_forward(cursors: CursorStore) -> None:
    with pytest.raises(NotFound):
        cursors.rewind("siem", 0)
    assert cursors.take("siem", "a", start=0, lease=LEASE)
    assert cursors.move("siem", "a", before=0, after=10, lease=LEASE)
    for wrong in (10, 11, -1):
        with pytest.raises(Conflict, match="entry 10 next"):
            cursors.rewind("siem", wrong)
    cursors.rewind("siem", 3)
    assert place(cursors) == 3
    # Who holds it learns of it by what it cannot do.
    assert not cursors.move("siem", "a", before=10, after=12, lease=LEASE)


def test_of_many_that_take_at_once_one_has_it(cursors: CursorStore, database_url: str) -> None:
    stores = [open_cursors(database_url) for _ in range(4)]
    together, had = threading.Barrier(4), []

    def take(at: int) -> None:
        together.wait()
        if stores[at].take("siem", f"h{at}", start=0, lease=LEASE) is not None:
            had.append(at)

    threads = [threading.Thread(target=take, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(had) == 1
    for made in stores:
        made.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE forward_cursors SET next = next + 1",
        "UPDATE forward_cursors SET name = 'other'",
        "UPDATE forward_cursors SET next = -1",
    ],
    ids=["forward", "renamed", "negative"],
)
def test_a_place_that_somebody_else_wrote_is_not_believed(
    cursors: CursorStore, database_url: str, statement: str
) -> None:
    assert cursors.take("siem", "a", start=5, lease=LEASE)
    change(database_url, statement)
    name = "other" if "name" in statement else "siem"
    for ask in (
        lambda: cursors.take(name, "a", start=0, lease=LEASE),
        lambda: cursors.find(name),
        lambda: cursors.rewind(name, 0),
        lambda: cursors.move(name, "a", before=5, after=6, lease=LEASE),
    ):
        with pytest.raises(IntegrityFailure):
            ask()


def test_another_integrity_key_is_another_broker(cursors: CursorStore, database_url: str) -> None:
    assert cursors.take("siem", "a", start=5, lease=LEASE)
    stranger = open_cursors(database_url, key=bytes(32))
    with pytest.raises(IntegrityFailure):
        stranger.find("siem")
    stranger.close()


def test_a_database_without_the_table_is_unavailable(cursors: CursorStore, database_url: str) -> None:
    change(database_url, "DROP TABLE forward_cursors")
    for ask in (
        lambda: cursors.find("siem"),
        lambda: cursors.take("siem", "a", start=0, lease=LEASE),
        lambda: cursors.move("siem", "a", before=0, after=1, lease=LEASE),
        lambda: cursors.fail("siem", "a", error="x"),
        lambda: cursors.release("siem", "a"),
        lambda: cursors.rewind("siem", 0),
    ):
        with pytest.raises(LedgerUnavailable):
            ask()


def test_a_row_that_goes_away_is_no_place(cursors: CursorStore, database_url: str) -> None:
    assert cursors.take("siem", "a", start=5, lease=LEASE)
    change(database_url, "DELETE FROM forward_cursors")
    with pytest.raises(LedgerUnavailable):
        cursors.move("siem", "a", before=5, after=6, lease=LEASE)
