"""The thread of each server process that asks the witnesses, so that no request waits for them."""

from __future__ import annotations

from typing import Final

from broker.errors import BrokerError, InternalError, Unavailable
from broker.services.cosigning import CosigningRound
from broker.services.house import House
from broker.web.logs import describe_fault, get_logger
from broker.web.looks import LookThread

INTERVAL_SECONDS: Final = 1.0
"""Between two rounds; the newest head of an idle log is cosigned after that time."""
_DATABASE: Final = ""
"""Stands for the round itself where a witness's name would stand."""


def examine(house: House) -> str:
    """Ask every witness once, and say what came of it.

    Raises:
        Unavailable: The newest head has no quorum.
        RollbackDetected: A witness saw a rollback or a fork.
    """
    known = house.witnessed
    if known is None:
        return "none configured"
    with house.ledger.view() as view:
        size = view.tail().size  # the log may grow while they are asked
    failures = CosigningRound(house, known).run()
    why = "; ".join(f"{name}: {exc.why or exc.what}" for name, exc in failures.items())
    if known.size < size:
        raise Unavailable(f"no quorum of the witnesses signed the newest head, of {size} entries", why=why)
    return f"a quorum signed the head of {known.size} entries" + (f"; but {why}" if why else "")


class CosignerThread(LookThread):
    """Asks once a second whoever has not signed the newest head; nothing at all without witnesses.

    A witness that fails is logged when it begins to fail, and when it signs again. A rollback or fork
    that one saw is logged as ``ROLLBACK DETECTED``; by then the house refuses.
    """

    def __init__(self, house: House) -> None:
        super().__init__("cosigner", INTERVAL_SECONDS)
        self._house = house
        self._round = None if house.witnessed is None else CosigningRound(house, house.witnessed)
        self._failing: dict[str, str] = {}

    def start(self) -> None:
        """Begin, where there are witnesses."""
        if self._round is not None:
            super().start()

    def look(self) -> None:
        """One round, and what changed told to the log."""
        if self._round is None:
            return
        try:
            failures = self._round.run()
        except BrokerError as exc:
            failures = {_DATABASE: exc}
        except Exception as exc:
            failures = {_DATABASE: InternalError("asking the witnesses failed")}
            get_logger().error("witnesses are not asked", fault=describe_fault(exc))
        for name, failure in failures.items():
            self._tell(name, failure)
        for name in self._round.signed & self._failing.keys():
            get_logger().info("a witness signs again", witness=name)
            del self._failing[name]
        if _DATABASE not in failures:
            self._failing.pop(_DATABASE, None)

    def _tell(self, name: str, exc: BrokerError) -> None:
        if self._failing.get(name) == exc.code:
            return
        self._failing[name] = exc.code
        if self._house.guard.is_shut:
            tell, what = get_logger().critical, "ROLLBACK DETECTED"
        else:
            tell, what = get_logger().error, "a witness does not sign"
        tell(what, witness=name or None, code=exc.code, what=exc.what, why=exc.why, next=exc.next)
