"""Who commits for whom: threads that wait are led by one of them, which commits for all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from broker import limits
from broker.drafts import Appended, Draft
from broker.errors import BrokerError, InternalError, LedgerUnavailable

Outcome = Appended | BrokerError
"""What became of a draft."""
Commit = Callable[[Sequence[Draft]], Sequence[Outcome]]
"""Makes drafts durable; one outcome for each. What it raises is the outcome of all."""


class _Waiting:
    """A draft whose thread waits, until it is answered or is called to lead."""

    def __init__(self, draft: Draft) -> None:
        self.draft: Final = draft
        self.outcome: Outcome | None = None
        self.called: Final = threading.Event()

    def answer(self) -> Appended:
        if isinstance(self.outcome, Appended):
            return self.outcome
        cause = self.outcome or _interrupted()
        # A new exception for each thread: one batch's failure is raised by many of them at once.
        raise type(cause)(cause.what, why=cause.why, next=cause.next) from cause


class CommitQueue:
    """Group commit inside one process.

    Args:
        commit: Makes at most ``limits.MAX_BATCH`` drafts durable in one transaction.
    """

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._mutex = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._led = False

    def append(self, draft: Draft) -> Appended:
        """The draft's outcome, together with whatever else waits. Raises what refused the draft."""
        mine = _Waiting(draft)
        with self._mutex:
            self._waiting.append(mine)
            leads, self._led = not self._led, True
        if not leads:
            self._wait(mine)
        if mine.outcome is None:
            self._lead()
        return mine.answer()

    def _wait(self, mine: _Waiting) -> None:
        try:
            mine.called.wait()
        except BaseException:
            # A signal ended the wait: whoever is called to lead and is gone must not stop the rest.
            with self._mutex:
                leads = mine.called.is_set() and mine.outcome is None
                if mine in self._waiting:
                    self._waiting.remove(mine)
                if leads:
                    self._call_next()
            raise

    def _call_next(self) -> None:
        following = self._waiting[0] if self._waiting else None
        self._led = following is not None
        if following is not None:
            following.called.set()

    def _lead(self) -> None:
        # Whoever leads is the head of the queue: the one before answered all that it took.
        with self._mutex:
            size = min(len(self._waiting), limits.MAX_BATCH)
            batch = [self._waiting.popleft() for _ in range(size)]
        try:
            self._answer(batch)
        finally:
            # Also when this thread is being interrupted: nobody may wait for a leader that is gone.
            for waiting in batch:
                waiting.outcome = waiting.outcome or _interrupted()
                waiting.called.set()
            with self._mutex:
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
