"""Whether the broker can serve: asked by load balancers, often, without credentials."""

from __future__ import annotations

import threading
from typing import Final

from broker.errors import BrokerError
from broker.services.house import House
from broker.web.logs import get_logger

_KEEP_MS: Final = 2000
"""How long an answer is good for: a flood of checks costs the database one in that time (I17)."""


class Readiness:
    """Asks database, tail, store and custody whether they answer, and remembers that for two seconds."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._lock = threading.Lock()
        self._asked_at: int | None = None
        self._ready = False

    def check(self) -> bool:
        """Whether everything that a read needs answers, and the tail is as the broker wrote it."""
        with self._lock:
            now = self._house.clock.now()
            if self._asked_at is None or not 0 <= now - self._asked_at < _KEEP_MS:
                self._ready = self._ask()
                self._asked_at = now
            return self._ready

    def _ask(self) -> bool:
        try:
            self._house.guard.check()
            with self._house.ledger.view() as view:
                view.tail()
            self._house.store.check()
            self._house.custody.check()
        except BrokerError as exc:
            get_logger().warning("not ready", code=exc.code, what=exc.what, why=exc.why)
            return False
        return True
