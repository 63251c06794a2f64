"""A thread of a server process that looks at something again and again, while nobody asks."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from broker.errors import BrokerError
from broker.services.house import House
from broker.web.logs import describe_fault, get_logger


class LookThread(ABC):
    """Calls :meth:`look` now and then every so many seconds, until it is stopped.

    Args:
        name: The thread's.
        seconds: Between the end of one look and the next.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def look(self) -> None:
        """One look. Never raises: a thread that ended would look no more, and nobody would know."""

    def start(self) -> None:
        """Begin; again is fine. Only in the process that serves: threads do not survive a fork."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it, and wait for a look that is under way (seconds at most: what is asked has time limits)."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def is_stopped(self) -> bool:
        """Whether it was told to end: for a look that takes long, to leave the rest to the next process."""
        return self._stop.is_set()

    def _run(self) -> None:
        self.look()
        while not self._stop.wait(self._seconds):
            self.look()


class HouseLook(LookThread):
    """A look that does one thing for the house, and tells the log when it begins to fail and when it is back.

    A rollback or fork that it finds is logged once as ``ROLLBACK DETECTED`` with its reason; by then the
    house refuses.

    Args:
        house: The house.
        name: The thread's.
        seconds: Between two looks.
        fails: What the log says when it begins to fail.
        works: What the log says when it is back.
    """

    def __init__(self, house: House, name: str, seconds: float, *, fails: str, works: str) -> None:
        super().__init__(name, seconds)
        self._house = house
        self._fails, self._works = fails, works
        self._failing: str | None = None

    @abstractmethod
    def act(self) -> None:
        """The one thing. What it raises is told."""

    def look(self) -> None:
        """Do it, and tell the log what changed."""
        try:
            self.act()
        except BrokerError as exc:
            self._tell(exc.code, exc)
        except Exception as exc:
            self._tell("internal", exc)
        else:
            if self._failing is not None:
                get_logger().info(self._works)
            self._failing = None

    def _tell(self, code: str, exc: Exception) -> None:
        if self._failing == code:
            return
        self._failing = code
        if self._house.guard.is_shut and isinstance(exc, BrokerError):
            get_logger().critical("ROLLBACK DETECTED", code=code, what=exc.what, why=exc.why, next=exc.next)
        else:
            get_logger().error(self._fails, code=code, fault=describe_fault(exc))
