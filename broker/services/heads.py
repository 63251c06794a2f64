"""Signed tree heads kept outside the append path, and the start-up check against them (I10)."""

from __future__ import annotations

import threading

from broker.errors import RollbackDetected
from broker.ledger import merkle, note
from broker.services.house import House
from broker.services.record import sign_head


class HeadKeeper:
    """Puts the newest signed head into the database and the outside store, at most once a second."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._lock = threading.Lock()
        self._kept_size = -1
        self._kept_at = 0

    def keep(self, *, force: bool = False) -> None:
        """Keep the newest head if it grew and a second has passed, or at once with ``force``.

        Raises:
            RollbackDetected: The outside store has another head of that size.
            LedgerUnavailable: It cannot be written: nothing more is released until it can.
        """
        now = self._house.clock.now()
        if not force and now - self._kept_at < 1000:
            return
        if not self._lock.acquire(blocking=force):
            return
        try:
            with self._house.ledger.view() as view:
                tail = view.tail()
            if tail.size != self._kept_size:
                text = sign_head(self._house, tail)
                if self._house.heads is not None:
                    self._house.heads.publish(tail.size, text)
                self._house.ledger.keep_head(tail.size, text)
            self._kept_size, self._kept_at = tail.size, now
        finally:
            self._lock.release()


def check_extends(house: House) -> None:
    """The stored log extends the newest head that the outside store knows; else nothing is served.

    Raises:
        RollbackDetected: The log is shorter than, or differs from, what was published.
        IntegrityFailure: The outside store holds something that this log never signed.
    """
    newest = house.heads.newest() if house.heads is not None else None
    if newest is None:
        return
    head = note.open_head(newest[1], house.verifier())
    with house.ledger.view() as view:
        size = view.tail().size
        same = head.size <= size and merkle.frontier_at(head.size, view.hashes).root() == head.root
    if not same:
        raise RollbackDetected(
            "the ledger does not extend the newest tree head that was published",
            why=f"the outside store has a head of {head.size} entries, the database has {size}",
            next="restore the newest database; see docs/operations/database.md",
        )
