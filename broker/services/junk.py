"""Unauthenticated junk: counted, never an entry of its own; one summary a minute says how much there was."""

from __future__ import annotations

import threading
from typing import Final

from broker.canonical import format_time
from broker.drafts import Draft
from broker.services.house import House
from broker.services.record import new_entry

INTERVAL_MS: Final = 60_000


class JunkMeter:
    """Counts refused requests that nobody is known to have made, by code, in this process."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._since = house.clock.now()

    def count(self, code: str) -> None:
        """One more refusal with a code of the error table: their number is small and fixed (I17)."""
        with self._lock:
            self._counts[code] = self._counts.get(code, 0) + 1

    def summarise(self, *, force: bool = False) -> None:
        """Record what was counted, if anything was and a minute has passed (or with ``force``).

        Raises:
            LedgerUnavailable: It cannot be written; the counts are kept for the next try.
        """
        now = self._house.clock.now()
        with self._lock:
            if not self._counts or (not force and now - self._since < INTERVAL_MS):
                return
            counts, since = self._counts, self._since
            self._counts, self._since = {}, now
        entry = new_entry(
            self._house,
            time=now,
            type="junk-summary",
            counts={code.replace("_", "-"): n for code, n in counts.items()},
            since=format_time(since),
            until=format_time(now),
        )
        try:
            self._house.ledger.append(Draft(entries=(entry,)))
        except Exception:
            with self._lock:
                for code, n in counts.items():
                    self._counts[code] = self._counts.get(code, 0) + n
                self._since = since
            raise
