"""Entries brought to those who watch: in order, none left out, each destination for itself.

The ledger is the outbox: an entry is durable in it before anything is released (I01), entries are dense and
ordered, and a destination needs no more than the index of the entry that it gets next. That index moves
after a delivery and never before. So a crash at any moment sends something again, and never skips.

An entry that is sent is the one that the log committed to: each batch is proven to be part of the tree
before it leaves (I10), so what somebody changed in the database goes to nobody.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from broker import limits
from broker.canonical import Json, b64url
from broker.errors import ConfigurationError, IntegrityFailure, RollbackDetected
from broker.ledger import merkle, ocsf
from broker.ledger.entry import index_row, parse_entry
from broker.outbox import Cursor, ForwardCursors, Forwarded, Receiver
from broker.ports import View
from broker.services.house import House

FORMATS: Final = ("ocsf", "jsonl")
_INFORMATIONAL: Final = 6
_WARNING: Final = 4
_WARNINGS: Final = frozenset({"denial"})

Render = Callable[[int, Json, bytes], Json]
"""(index, entry, leaf hash) -> the JSON object that is sent."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Somebody who watches.

    Attributes:
        name: Of its cursor: another name begins anew.
        kind: ``syslog``, ``webhook`` or ``file``.
        receiver: What reaches it.
        render: What it gets of an entry.
        types: Types of entries that it gets; all where empty.
        from_now: Whether it begins with the next entry, and not with the first of the log.
        batch: Entries that are looked at and delivered at once, at most.
        timeout: Seconds that one delivery may take.
    """

    name: str
    kind: str
    receiver: Receiver
    render: Render
    types: frozenset[str] = frozenset()
    from_now: bool = False
    batch: int = 100
    timeout: float = 15.0

    @property
    def lease(self) -> float:
        """Seconds for which it is held: a delivery begins with two thirds of it left at least."""
        return 2 * self.timeout + 1


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Entries [start, stop) of the log, and what the destination gets of them."""

    start: int
    stop: int
    messages: tuple[Forwarded, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step did.

    Attributes:
        held: Whether the destination is ours; False while another forwarder sends to it.
        moved: Entries that the destination is further.
        left: Entries that are still to be sent.
    """

    held: bool
    moved: int = 0
    left: int = 0


class Forwarder:
    """Sends to one destination. For one thread; any number of processes may have one for the same.

    Args:
        house: Whose log.
        cursors: How far every destination is.
        destination: Which one.
    """

    def __init__(self, house: House, cursors: ForwardCursors, destination: Destination) -> None:
        self._house: Final = house
        self._cursors: Final = cursors
        self._to: Final = destination
        self._holder: Final = house.new_id("fw_")
        self._lease_ms: Final = int(destination.lease * 1000)
        self._next: int | None = None
        self._taken = 0.0
        self._pending: _Batch | None = None

    @property
    def destination(self) -> Destination:
        """Which one."""
        return self._to

    def step(self) -> Step:
        """Deliver one batch, if there is one and nobody else sends.

        Raises:
            Unavailable, RateLimited: The receiver does not take it now; the cursor stays.
            ConfigurationError: It will not take it until somebody changes something.
            LedgerUnavailable: The database does not answer. What was delivered may be sent again.
            IntegrityFailure: The stored log is not what was written; nothing of it was sent.
            RollbackDetected: More was sent than the log has.
        """
        self._house.guard.check()
        if not self._hold():
            return Step(held=False)
        self._go_back()
        batch, tail = self._read()
        if batch is None:
            return Step(held=True)
        self._pending = batch
        if batch.messages:
            # If we are killed from here to the end of `_move`, the next one sends these once more.
            self._to.receiver.deliver(batch.messages)
        if not self._move(batch.start, batch.stop):
            return Step(held=False)
        return Step(held=True, moved=batch.stop - batch.start, left=tail - batch.stop)

    def failed(self, what: str) -> None:
        """Tell everybody what went wrong with the last step.

        Raises:
            LedgerUnavailable: The database does not answer.
            IntegrityFailure: The cursor is not what the broker wrote.
        """
        # First what may be lost: who follows a sender that failed relies on that.
        self._go_back()
        self._cursors.fail(self._to.name, self._holder, error=what[: limits.MAX_FORWARD_ERROR])

    def close(self) -> None:
        """Part with the receiver, and let another forwarder have the destination. Again is fine.

        Raises:
            LedgerUnavailable: The database does not answer: others wait until the lease is over.
        """
        doubt = self._to.receiver.doubtful()
        read = self._to.receiver.close()
        if self._next is None:
            return
        if doubt is None and not read:
            doubt = max(0, self._next - self._to.receiver.unsure)
        if doubt is not None and doubt < self._next:
            self._move(self._next, doubt)
        self._cursors.release(self._to.name, self._holder)
        self._forget()

    def _hold(self) -> bool:
        """Whether the destination is ours for long enough to deliver a batch."""
        now = time.monotonic()
        if self._next is not None and now - self._taken < self._to.lease / 3:
            return True
        start = self._tail() if self._to.from_now else 0
        cursor = self._cursors.take(self._to.name, self._holder, start=start, lease=self._lease_ms)
        if cursor is None:
            self._forget()
            return False
        if cursor.next != self._next:
            self._pending = None
        self._next, self._taken = cursor.next, now
        # One whose last word was a failure delivered nothing since, and went back for what was in doubt.
        if cursor.abandoned and not cursor.failures and self._to.receiver.unsure:
            self._move(cursor.next, max(0, cursor.next - self._to.receiver.unsure))
            # Said once: a process that is killed again and again goes back no further.
            self._cursors.fail(self._to.name, self._holder, error="a forwarder was killed while it sent")
        return self._next is not None

    def _go_back(self) -> None:
        """What may be lost is still to be sent: said durably, before anything else is."""
        doubt = self._to.receiver.doubtful()
        if doubt is not None and self._next is not None and doubt < self._next:
            self._move(self._next, doubt)

    def _move(self, before: int, after: int) -> bool:
        now = time.monotonic()
        moved = self._cursors.move(
            self._to.name, self._holder, before=before, after=after, lease=self._lease_ms
        )
        self._pending = None
        if moved:
            self._next, self._taken = after, now
        else:
            self._forget()
        return moved

    def _forget(self) -> None:
        self._next, self._pending = None, None

    def _tail(self) -> int:
        with self._house.ledger.view() as view:
            return view.tail().size

    def _read(self) -> tuple[_Batch | None, int]:
        """What is to be delivered next, and the size of the log."""
        start = self._next
        with self._house.ledger.view() as view:
            tail = view.tail()
            if start is None or start == tail.size:
                return None, tail.size
            if start > tail.size:
                raise RollbackDetected(
                    "more of the ledger was forwarded than it has",
                    why=f"{self._to.name} gets entry {start} next, the log has {tail.size} entries",
                    next="stop the broker and restore the newest database; see docs/operations/rollback.md",
                )
            # A batch that failed is tried again as it was: a receiver knows it by its id.
            if self._pending is not None and self._pending.start == start:
                return self._pending, tail.size
            # Of entries that it does not get, more are passed over at once: each batch costs a commit.
            reach = start + (limits.MAX_FORWARD_ENTRIES if self._to.types else self._to.batch)
            return self._load(view, start, min(tail.size, reach)), tail.size

    def _load(self, view: View, start: int, stop: int) -> _Batch:
        leaves: list[bytes] = []
        messages: list[Forwarded] = []
        size = 0
        for index, data, _ in view.entries(start, stop):
            if index != start + len(leaves):
                raise IntegrityFailure("the ledger lacks an entry", why=f"entry {start + len(leaves)}")
            leaf = merkle.leaf_hash(data)
            message = self._message(index, data, leaf)
            size += 0 if message is None else len(message.body)
            # The first one is sent whatever its size: nothing may stop those behind it.
            if leaves and size > limits.MAX_FORWARD_BATCH:
                break
            leaves.append(leaf)
            messages += [] if message is None else [message]
            if len(messages) == self._to.batch:
                break
        if not leaves:
            raise IntegrityFailure("the ledger lacks an entry", why=f"entry {start}")
        check_run(view, start, leaves)
        return _Batch(start=start, stop=start + len(leaves), messages=tuple(messages))

    def _message(self, index: int, data: bytes, leaf: bytes) -> Forwarded | None:
        entry = parse_entry(data)
        if self._to.types and entry["type"] not in self._to.types:
            return None
        return Forwarded(
            index=index,
            time=index_row(entry).time,
            type=entry["type"],
            severity=_WARNING if entry["type"] in _WARNINGS else _INFORMATIONAL,
            leaf_hash=leaf,
            body=to_ascii(self._to.render(index, entry, leaf)),
        )


def check_run(view: View, start: int, leaf_hashes: Iterable[bytes]) -> None:
    """Entries from ``start`` on, whose leaf hashes these are, are in the tree that the tail commits to.

    Raises:
        IntegrityFailure: They are not, or stored hashes are missing.
    """
    tail = view.tail()
    before = merkle.frontier_at(start, view.hashes)
    grown, _ = before.extend(leaf_hashes)
    proof = merkle.consistency_proof(grown.size, tail.size, view.hashes)
    merkle.verify_consistency(grown.size, tail.size, proof, grown.root(), tail.root)


def to_ascii(value: Json) -> bytes:
    """A JSON object on one line, in ASCII, so that nothing in it can end a line or a message."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode("ascii")


def render_as(format: str, *, origin: str, version: str) -> Render:
    """What a destination gets of an entry, in one of :data:`FORMATS`.

    ``ocsf`` is an event of the Open Cybersecurity Schema Framework, ``jsonl`` the whole entry with its
    index and leaf hash in the log of that name.

    Args:
        format: One of :data:`FORMATS`.
        origin: The log's name.
        version: The broker's release.

    Raises:
        ConfigurationError: There is no such format.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"entries are forwarded as {' or '.join(FORMATS)}")

    def whole(index: int, entry: Json, leaf: bytes) -> Json:
        return {"origin": origin, "index": index, "leaf_hash": b64url(leaf), "entry": entry}

    def event(index: int, entry: Json, leaf: bytes) -> Json:
        del leaf
        return ocsf.event(index, entry, origin=origin, product_version=version)

    return event if format == "ocsf" else whole


def describe(house: House, cursors: ForwardCursors, destination: Destination) -> Json:
    """How far a destination is: ``name``, ``kind``, ``next``, ``size``, ``lag``, ``state`` and more.

    Raises:
        LedgerUnavailable: The database does not answer.
        IntegrityFailure: The cursor or the tail does not hold.
    """
    cursor, now = cursors.find(destination.name)
    with house.ledger.view() as view:
        size = view.tail().size
        begin = size if destination.from_now else 0
        place = begin if cursor is None else cursor.next
        waiting = index_row(parse_entry(view.entry(place))).time if place < size else now
    return {
        "name": destination.name,
        "kind": destination.kind,
        "state": _state(cursor, now),
        "next": place,
        "size": size,
        "lag": max(0, size - place),
        "behind_ms": max(0, now - waiting),
        "moved_ms": cursor.moved if cursor is not None else 0,
        "failures": cursor.failures if cursor is not None else 0,
        "error": cursor.error if cursor is not None else "",
    }


def _state(cursor: Cursor | None, now: int) -> str:
    if cursor is None:
        return "new"
    # Between two tries a lease may be over.
    pause = 1000 * limits.MAX_FORWARD_PAUSE if cursor.failures else 0
    if not cursor.holder or cursor.until + pause <= now:
        return "stopped"
    return "failing" if cursor.failures else "sending"
