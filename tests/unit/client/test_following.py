"""Following: each row once, in order, over gaps; never on from a ledger that went back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.canonical import Json
from broker.client.following import LONGEST_PAUSE, follow_rows
from broker.errors import BrokerError, Denied, LedgerUnavailable, RollbackDetected, Unreachable


class _Stopped(Exception):
    """The end of what a test looks at."""


class _Log:
    """A ledger of which every third entry matches; each wait adds some, or does what is next."""

    def __init__(self, *events: int | BrokerError) -> None:
        self.size = 0
        self.failure: BrokerError | None = None
        self.events = iter(events)
        self.waits: list[float] = []
        self.asked: list[int | None] = []
        self.troubles: list[BrokerError] = []
        self.step()

    def step(self) -> None:
        event = next(self.events, None)
        if event is None:
            raise _Stopped
        self.failure = event if isinstance(event, BrokerError) else None
        self.size += event if isinstance(event, int) else 0

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.step()

    def search(self, after: int | None, limit: int) -> Json:
        self.asked.append(after)
        if self.failure is not None:
            raise self.failure
        start = -1 if after is None else after
        found = [{"index": at} for at in range(0, self.size, 3) if at > start]
        more = len(found) > limit
        found = found[:limit]
        return {"entries": found, "next_after": found[-1]["index"] if more else None, "size": self.size}

    def follow(self, after: int | None = None) -> Iterator[Json]:
        return follow_rows(self.search, after=after, wait=self.wait, on_trouble=self.troubles.append)


def _indices(log: _Log, after: int | None = None) -> list[int]:
    found: list[int] = []
    with pytest.raises(_Stopped):
        found.extend(row["index"] for row in log.follow(after))
    return found


def test_each_row_comes_once_and_in_order() -> None:
    log = _Log(0, 7000, 1, 1, 5)
    assert _indices(log) == list(range(0, 7007, 3))
    assert log.asked[-1] == 7001


def test_it_begins_past_an_index() -> None:
    assert _indices(_Log(10, 10), after=9) == [12, 15, 18]
    assert _indices(_Log(10, 2, 3), after=50) == []


def test_a_server_that_was_away_is_asked_again() -> None:
    away = LedgerUnavailable("away")
    log = _Log(4, *[away] * 9, 3, Unreachable("gone"), 3)
    assert _indices(log) == [0, 3, 6, 9]
    assert len(log.troubles) == 2
    assert max(log.waits) == LONGEST_PAUSE


def test_a_server_that_never_answered_is_an_error() -> None:
    with pytest.raises(Unreachable):
        next(_Log(Unreachable("nobody")).follow())


def test_a_refusal_ends_it() -> None:
    log = _Log(1, Denied("no"))
    rows = log.follow()
    assert next(rows)["index"] == 0
    with pytest.raises(Denied):
        next(rows)


def test_a_ledger_that_went_back_ends_it() -> None:
    log = _Log(7, -2)
    rows = log.follow()
    assert [next(rows)["index"] for _ in range(3)] == [0, 3, 6]
    with pytest.raises(RollbackDetected):
        next(rows)


@pytest.mark.parametrize("index", [-1, 3, 9, "5", None])
def test_an_answer_that_is_no_page_is_refused(index: object) -> None:
    rows = follow_rows(
        lambda after, limit: {"entries": [{"index": index}], "next_after": None, "size": 9},
        after=3,
        wait=lambda seconds: None,
        on_trouble=lambda exc: None,
    )
    with pytest.raises(Unreachable):
        next(rows)
