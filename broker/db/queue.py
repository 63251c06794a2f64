"""Who commits for whom: threads that wait are led by one of them, which commits for all."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from broker import limits
from broker.drafts import Appended, Draft
from broker.errors import BrokerError, InternalError, LedgerUnavailable

Outcome = Appended | BrokerError
"""What became of a draft."""
Commit = Callable[[Sequence[Draft]], Sequence[Outcome]]
"""Makes drafts durable; one outcome for each. What it raises is the outcome of all."""


_GATHER: Final = 0.5
"""A leader waits for company for at most this part of the time that the last commit took."""
_LONGEST_GATHER: Final = 0.002
"""Seconds for which a leader waits at most."""


class _Latch:
    """One thread waits until another lets it go. A plain lock: a condition costs more than a whole append."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float = -1) -> None:
        """Until it was opened, or for that long; the next wait needs another opening."""
        self._lock.acquire(timeout=seconds)

    def open(self) -> None:
        """Let the waiting thread go, or the next one that waits. Twice is as once."""
        with suppress(RuntimeError):
            self._lock.release()


class _Waiting:
    """A draft whose thread waits, until it is answered or is called to lead."""

    def __init__(self, draft: Draft) -> None:
        self.draft: Final = draft
        self.outcome: Outcome | None = None
        self.leads = False
        self.latch: Final = _Latch()

    def answer(self) -> Appended:
        if isinstance(self.outcome, Appended):
            return self.outcome
        cause = self.outcome or _interrupted()
        # A new exception for each thread: one batch's failure is raised by many of them at once.
        raise type(cause)(cause.what, why=cause.why, next=cause.next) from cause


class CommitQueue:
    """Group commit inside one process.

    Whoever was answered by the last commit and comes back at once would find the first of them committing
    alone. So a leader waits for as many as were answered together before, for a part of the time that a
    commit takes; somebody who is alone never waits.

    Args:
        commit: Makes at most ``limits.MAX_BATCH`` drafts durable in one transaction.
    """

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._mutex = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._led = False
        self._wanted = 0
        self._gathered = _Latch()
        self._last_size = 1
        self._last_seconds = 0.0

    def append(self, draft: Draft) -> Appended:
        """The draft's outcome, together with whatever else waits. Raises what refused the draft."""
        mine = _Waiting(draft)
        with self._mutex:
            self._waiting.append(mine)
            leads, self._led = not self._led, True
            if len(self._waiting) == self._wanted:
                self._gathered.open()
        if not leads:
            self._wait(mine)
        if mine.outcome is None:
            self._lead(mine)
        return mine.answer()

    def _wait(self, mine: _Waiting) -> None:
        try:
            mine.latch.wait()
        except BaseException:
            # A signal ended the wait: whoever is called to lead and is gone must not stop the rest.
            with self._mutex:
                leads = mine.leads and mine.outcome is None
                if mine in self._waiting:
                    self._waiting.remove(mine)
                if leads:
                    self._call_next()
            raise

    def _call_next(self) -> None:
        following = self._waiting[0] if self._waiting else None
        self._led = following is not None
        if following is not None:
            following.leads = True
            following.latch.open()

    def _gather(self) -> None:
        with self._mutex:
            wanted = min(self._last_size, limits.MAX_BATCH)
            if len(self._waiting) >= wanted:
                return
            self._wanted, self._gathered = wanted, _Latch()
        self._gathered.wait(min(self._last_seconds * _GATHER, _LONGEST_GATHER))
        self._wanted = 0

    def _lead(self, mine: _Waiting) -> None:
        batch: list[_Waiting] = []
        try:
            self._gather()
            # Whoever leads is the head of the queue: the one before answered all that it took.
            with self._mutex:
                size = min(len(self._waiting), limits.MAX_BATCH)
                batch += [self._waiting.popleft() for _ in range(size)]
            began = time.monotonic()
            self._answer(batch)
            self._last_size, self._last_seconds = len(batch), time.monotonic() - began
        finally:
            # Also when this thread is being interrupted: nobody may wait for a leader that is gone.
            for waiting in batch:
                waiting.outcome = waiting.outcome or _interrupted()
                waiting.latch.open()
            with self._mutex:
                if mine.outcome is None and mine in self._waiting:
                    self._waiting.remove(mine)
                self._call_next()

    def _answer(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = self._commit([waiting.draft for waiting in batch])
        except BrokerError as exc:
            outcomes = [exc] * len(batch)
        except Exception as exc:
            failure = InternalError("the ledger could not be written because of a bug")
            failure.__cause__ = exc
            outcomes = [failure] * len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.outcome = outcome


def _interrupted() -> LedgerUnavailable:
    return LedgerUnavailable("the ledger was interrupted while it wrote")
