"""Signed tree heads kept outside the append path, and the checks against them (I10)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from broker.errors import LedgerUnavailable, RollbackDetected
from broker.ledger import merkle, note
from broker.services.house import House
from broker.services.log_names import own_verifiers
from broker.services.record import sign_head

LOOK_MS: Final = 10_000
"""At least this long between two looks at what the outside store knows (a folder is listed whole)."""


class HeadKeeper:
    """Puts the newest signed head into the database and the outside store, at most once a second.

    Every ten seconds it first looks at what the outside store knows, so that a log which does not
    extend that is found by every replica, also when another replica published the head.

    Args:
        house: Whose heads.
        expect: Told the size and root of each head outside that the log was seen to extend.
        max_lag: Milliseconds for which the outside store may fail before nothing more is released.
    """

    def __init__(self, house: House, *, expect: Callable[[int, bytes], None], max_lag: int) -> None:
        self._expect = expect
        self._house = house
        self._max_lag = max_lag
        self._lock = threading.Lock()
        self._kept_size = -1
        self._tried_at = 0
        self._looked_at: int | None = None
        self._failing_since: int | None = None

    def keep(self, *, force: bool = False) -> None:
        """Keep the newest head if a second has passed, or at once with ``force``.

        Raises:
            RollbackDetected: The log does not extend what is known outside, now or earlier: this process
                refuses from then on.
            LedgerUnavailable: The outside store has failed for longer than it may: nothing more is
                released until it can be written.
        """
        self._house.guard.check()
        now = self._house.clock.now()
        if not force and 0 <= now - self._tried_at < 1000:
            self._check_lag(now)
            return
        if not self._lock.acquire(blocking=force):
            self._check_lag(now)
            return
        try:
            self._try(now)
        finally:
            self._lock.release()

    def _try(self, now: int) -> None:
        try:
            self._keep(now)
        except RollbackDetected as found:
            self._house.guard.shut(found)
            raise
        except LedgerUnavailable:
            if self._failing_since is None:
                self._failing_since = now
            if now - self._failing_since >= self._max_lag:
                raise
            self._tried_at = now
        else:
            self._failing_since, self._tried_at = None, now

    def _keep(self, now: int) -> None:
        # What is known outside is looked at first, the log after it: a head that another replica
        # publishes meanwhile covers entries that our later snapshot has.
        if self._looked_at is None or not 0 <= now - self._looked_at < LOOK_MS:
            self._look()
            self._looked_at = now
        with self._house.ledger.view() as view:
            tail = view.tail()
        if tail.size == self._kept_size:
            return
        text = sign_head(self._house, tail)
        if self._house.heads is not None:
            self._house.heads.publish(tail.size, text)
            self._expect(tail.size, tail.root)
        # Crash here: the head is known outside and not beside the log. The next one is kept in both.
        self._house.ledger.keep_head(tail.size, text)
        self._kept_size = tail.size

    def _look(self) -> None:
        head = check_extends(self._house)
        if head is not None:
            self._expect(head.size, head.root)

    def _check_lag(self, now: int) -> None:
        since = self._failing_since
        if since is not None and now - since >= self._max_lag:
            raise LedgerUnavailable("the outside store of tree heads does not answer")


def check_extends(house: House) -> note.TreeHead | None:
    """The stored log extends the newest head that the outside store knows; else nothing is served.

    Returns:
        That head, None when nothing is known outside.

    Raises:
        RollbackDetected: The log is shorter than, or differs from, what was published.
        IntegrityFailure: The outside store holds something that this log never signed.
        LedgerUnavailable: The outside store or the database does not answer.
    """
    newest = house.heads.newest() if house.heads is not None else None
    if newest is None:
        return None
    with house.ledger.view() as view:
        head = note.open_head(newest[1], own_verifiers(house, view))
        tail = view.tail()
        if head.size == tail.size:
            same = head.root == tail.root
        else:
            same = head.size < tail.size and merkle.frontier_at(head.size, view.hashes).root() == head.root
    if not same:
        raise RollbackDetected(
            "the ledger does not extend the newest tree head that was published",
            why=f"the outside store has a head of {head.size} entries, the database has {tail.size}",
            next="restore the newest database; see docs/operations/rollback.md",
        )
    return head
