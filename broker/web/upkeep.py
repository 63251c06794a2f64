"""Work that follows an answer instead of delaying it: summing up junk, sweeping, the last head."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from broker.services import denials
from broker.services.house import House
from broker.services.junk import JunkMeter
from broker.services.sweeping import sweep
from broker.web.cosigner import CosignerThread
from broker.web.keeper import KeeperThread
from broker.web.logs import describe_fault, get_logger
from broker.web.publisher import PublisherThread

SWEEP_MS: Final = 60_000
"""At least this long between two sweeps of one process."""


class Upkeep:
    """Runs after answers, in the thread that gave them. A failure is logged and changes no answer.

    Attributes:
        junk: Counts the requests that nobody is known to have made.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._lock = threading.Lock()
        self._swept_at = house.clock.now()
        self.junk = JunkMeter(house)
        self._keeper = KeeperThread(house)
        self._cosigner = CosignerThread(house)
        self._publisher = PublisherThread(house)

    def start(self) -> None:
        """Begin what runs without requests: the first thing that a serving process does."""
        self._keeper.start()
        self._cosigner.start()
        self._publisher.start()

    def run(self) -> None:
        """Record the last minute's junk and unrecorded denials, sweep dead uploads: each when it is time."""
        _attempt("summary of junk", self.junk.summarise)
        _attempt("summary of denials", lambda: denials.summarise(self._house))
        if self._is_sweep_due(self._house.clock.now()):
            _attempt("sweep", lambda: sweep(self._house))

    def finish(self) -> None:
        """Record the junk and denials that are left, keep the newest head: the last thing a process does."""
        _attempt("summary of junk", lambda: self.junk.summarise(force=True))
        _attempt("summary of denials", lambda: denials.summarise(self._house, force=True))
        self._keeper.stop()
        self._cosigner.stop()
        self._publisher.stop()
        _attempt("last tree head", lambda: self._house.keep_head(force=True))

    def _is_sweep_due(self, now: int) -> bool:
        with self._lock:
            if 0 <= now - self._swept_at < SWEEP_MS:
                return False
            self._swept_at = now
            return True


def _attempt(what: str, work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as exc:  # the answer is out: whatever this is, there is nobody left to tell it to
        get_logger().error("upkeep failed", what=what, fault=describe_fault(exc))
