"""Work that follows an answer instead of delaying it: sweeping dead uploads."""

from __future__ import annotations

import threading
from typing import Final

from broker.errors import BrokerError
from broker.services import sweeping
from broker.services.house import House
from broker.web.logs import describe_fault, get_logger

SWEEP_MS: Final = 60_000
"""At least this long between two sweeps of one process."""


class Upkeep:
    """Runs after answers, in the thread that gave them. A failure is logged and changes no answer."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._lock = threading.Lock()
        self._swept_at = house.clock.now()

    def run(self) -> None:
        """Sweep if it is time."""
        now = self._house.clock.now()
        try:
            if self._is_sweep_due(now):
                sweeping.sweep(self._house)
        except BrokerError as exc:
            _tell(exc)

    def finish(self) -> None:
        """Keep the newest tree head, due or not: the last thing that a process does."""
        try:
            self._house.keep_head(force=True)
        except BrokerError as exc:
            _tell(exc)

    def _is_sweep_due(self, now: int) -> bool:
        with self._lock:
            if 0 <= now - self._swept_at < SWEEP_MS:
                return False
            self._swept_at = now
            return True


def _tell(exc: BrokerError) -> None:
    get_logger().error("upkeep failed", code=exc.code, fault=describe_fault(exc))
