"""How many denials of each principal were recorded lately, and how many were only counted."""

from __future__ import annotations

import threading
from typing import Final

from broker import limits

MINUTE_MS: Final = 60_000


class DenialMeter:
    """Counts a principal's recorded denials over a sliding minute, in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: dict[str, list[int]] = {}
        self._dropped: dict[str, tuple[int, int]] = {}

    def admit(self, principal: str, now: int) -> bool:
        """Whether one more denial gets an entry of its own; else it is counted for the summary."""
        with self._lock:
            recent = [t for t in self._recent.get(principal, ()) if t > now - MINUTE_MS]
            admitted = len(recent) < limits.DENIALS_PER_MINUTE
            if admitted:
                recent.append(now)
            else:
                count, since = self._dropped.get(principal, (0, now))
                self._dropped[principal] = (count + 1, since)
            self._recent[principal] = recent
            return admitted

    def take_dropped(self, principal: str) -> tuple[int, int] | None:
        """(count, since) of denials that were only counted, and forget them: for the summary entry."""
        with self._lock:
            return self._dropped.pop(principal, None)

    def take_all_dropped(self, before: int) -> dict[str, tuple[int, int]]:
        """What :meth:`take_dropped` gives, for every principal whose count began before ``before``."""
        with self._lock:
            due = {who: dropped for who, dropped in self._dropped.items() if dropped[1] < before}
            for who in due:
                del self._dropped[who]
            return due

    def give_back(self, principal: str, count: int, since: int) -> None:
        """Count again what could not be recorded."""
        with self._lock:
            more, later = self._dropped.get(principal, (0, since))
            self._dropped[principal] = (count + more, min(since, later))

    def retry_after(self, principal: str, now: int) -> int:
        """Seconds until one more denial gets an entry."""
        with self._lock:
            recent = self._recent.get(principal) or [now]
            return max(1, (recent[0] + MINUTE_MS - now + 999) // 1000)
