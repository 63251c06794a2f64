"""Following the ledger: rows as they are appended, by index, over interruptions of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from broker import limits
from broker.canonical import Json
from broker.errors import BrokerError, RateLimited, RollbackDetected, Unavailable, Unreachable

PAUSE: Final = 1.0
"""Seconds between two looks."""
LONGEST_PAUSE: Final = 30.0
"""Seconds between two looks while the server does not answer."""


def follow_rows(
    search: Callable[[int | None, int], Json],
    *,
    after: int | None,
    wait: Callable[[float], Any],
    on_trouble: Callable[[BrokerError], Any],
) -> Iterator[Json]:
    """Every row that matches, each once and ascending by index, for ever.

    Entries are dense and never change, so the next look begins after the last index that was looked at:
    nothing is missed or repeated, however long the server was away.

    Args:
        search: One page of rows past an index, at most so many.
        after: Only rows past this index; None for all.
        wait: Waits so many seconds.
        on_trouble: Told when an answer that came before stops coming; once for each time.

    Raises:
        Unreachable: The first look failed, or an answer is no page of rows.
        RollbackDetected: The ledger is smaller than it was.
        BrokerError: The query or the caller is refused.
    """
    size, failures = -1, 0
    while True:
        try:
            page = search(after, limits.MAX_PAGE)
        except (Unavailable, RateLimited) as exc:
            if size < 0:
                raise
            failures += 1
            if failures == 1:
                on_trouble(exc)
            wait(min(LONGEST_PAUSE, PAUSE * 2.0 ** min(failures, 10)))
            continue
        failures = 0
        if _number(page.get("size")) < size:
            raise RollbackDetected("the ledger went back", why=f"it has fewer entries than the {size} it had")
        size = _number(page["size"])
        for row in page["entries"]:
            index = _number(row.get("index"))
            if not (-1 if after is None else after) < index < size:
                raise Unreachable("the server's answer is not a page of ledger rows")
            after = index
            yield row
        if page["next_after"] is None:
            # What matches not is behind us as well: a search for rare rows does not begin anew each time.
            after = max(size - 1, -1 if after is None else after) if size else after
            wait(PAUSE)


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Unreachable("the server's answer is not a page of ledger rows")
    return value
