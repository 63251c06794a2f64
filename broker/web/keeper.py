"""The thread of each server process that brings signed heads out of the house while nobody asks."""

from __future__ import annotations

import threading
from typing import Final

from broker.errors import BrokerError
from broker.services.house import House
from broker.web.logs import describe_fault, get_logger

INTERVAL_SECONDS: Final = 1.0
"""Between two looks; the head of an idle log is outside after that time."""


class KeeperThread:
    """Calls ``keep_head`` once a second, so that requests seldom wait for the outside store.

    A rollback or fork that it finds is logged once as ``ROLLBACK DETECTED`` with its reason; by then
    the house refuses. A store that fails is logged when it begins to fail and when it is back.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing: str | None = None

    def start(self) -> None:
        """Begin; again is fine. Only in the process that serves: threads do not survive a fork."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="head-keeper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it, and wait for a look that is under way (seconds at most: the stores have time limits)."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """One look: keep what is due, tell the log what changed. Never raises."""
        try:
            self._house.keep_head()
        except BrokerError as exc:
            self._tell(exc.code, exc)
        except Exception as exc:  # a thread that ended would keep nothing any more, and nobody would know
            self._tell("internal", exc)
        else:
            if self._failing is not None:
                get_logger().info("tree heads are kept again")
            self._failing = None

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.look()

    def _tell(self, code: str, exc: Exception) -> None:
        if self._failing == code:
            return
        self._failing = code
        if self._house.guard.is_shut and isinstance(exc, BrokerError):
            get_logger().critical("ROLLBACK DETECTED", code=code, what=exc.what, why=exc.why, next=exc.next)
        else:
            get_logger().error("tree heads are not kept", code=code, fault=describe_fault(exc))
