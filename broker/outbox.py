"""The seams of forwarding: how far every destination has come, and what it is told.

The ledger itself is the outbox. See :mod:`broker.services.forwarding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """How far a destination of forwarding has come.

    Attributes:
        next: Index of the entry that it gets next; every one before was delivered.
        holder: Who may send to it, empty when nobody does.
        until: Until when, in milliseconds since 1970.
        moved: When it got something last, in milliseconds; 0 before the first time.
        failures: Tries that failed since.
        error: What the last one of them said; empty after a delivery.
        abandoned: Whoever sent before did not say that it stopped: it may have been killed.
    """

    next: int
    holder: str
    until: int
    moved: int
    failures: int
    error: str
    abandoned: bool = False


class ForwardCursors(Protocol):
    """One durable row for each destination, shared by every forwarder of the log.

    Every method raises LedgerUnavailable when the database does not answer, and IntegrityFailure when the
    row is not one that a broker with this integrity key wrote.
    """

    def take(self, name: str, holder: str, *, start: int, lease: int) -> Cursor | None:
        """The destination for ``lease`` milliseconds from now, again or anew; None while another has it.

        A destination that is new begins at ``start``. Of any number of callers one has it.
        """

    def move(self, name: str, holder: str, *, before: int, after: int, lease: int) -> bool:
        """Durably from ``before`` to ``after``, and the lease begun again.

        False, and nothing changed, where the holder or the place is another by now.
        """

    def fail(self, name: str, holder: str, *, error: str) -> None:
        """One more try failed. Nothing happens where the holder is another by now."""

    def release(self, name: str, holder: str) -> None:
        """Stopped: anybody may take it at once."""

    def rewind(self, name: str, to: int) -> None:
        """Durably back to an earlier entry, whoever holds it.

        Raises NotFound when there is no such destination, Conflict when ``to`` is not before its place.
        """

    def find(self, name: str) -> tuple[Cursor | None, int]:
        """(how far a destination is, None before its beginning; the time that leases are judged by)."""

    def close(self) -> None:
        """Close every connection."""


@dataclass(frozen=True, kw_only=True)
class Forwarded:
    """One entry on its way to a destination.

    Attributes:
        index: The entry's index.
        time: Its time in milliseconds since 1970.
        type: Its type, an ASCII word.
        severity: As syslog counts: 6 informational, 4 warning.
        leaf_hash: 32 bytes that identify the entry in this log.
        body: One JSON object, in ASCII, without line breaks.
    """

    index: int
    time: int
    type: str
    severity: int
    leaf_hash: bytes
    body: bytes


class Receiver(Protocol):
    """Somebody who is told of entries. For one thread."""

    @property
    def unsure(self) -> int:
        """So many of the newest entries may be lost where the process that sent them was killed.

        0 for a receiver that says what it has.
        """

    def deliver(self, messages: Sequence[Forwarded]) -> None:
        """Hand these over, in their order; on return the receiver has them, as far as it lets one know.

        Raises:
            RateLimited: Later, and it says when.
            Unavailable: It does not take them now. It may have some.
            ConfigurationError: It will not take them, or cannot be asked, until somebody changes something.
        """

    def doubtful(self) -> int | None:
        """Index of the oldest message that was delivered and may be lost, once that is noticed."""

    def close(self) -> bool:
        """Part with it; whether what was delivered and is not doubtful is known to have been read."""
