"""The ledger's tail: the one row that every append locks, and the checks made under that lock.

Rows that the broker did not write are never signed (I10): before anything is added, the tail carries
our MAC, its compact range gives its root, and the entries end exactly where the tail says.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import BigInteger, Connection, Table, bindparam, cast, extract, func, select, update
from sqlalchemy.sql.elements import ColumnElement

from broker.db.driver import read_rows, write_rows
from broker.db.macs import Macs, alarm
from broker.db.statements import insert_missing
from broker.db.tables import METADATA, ledger_entries, ledger_heads, ledger_tail
from broker.errors import MalformedRequest
from broker.model import Tail
from broker.ports import Clock

_MS: Final = 1000
_CLOCK: Final = cast(func.floor(extract("epoch", func.clock_timestamp()) * _MS), BigInteger)
_NOW: Final = select(_CLOCK)
TAIL: Final = select(
    ledger_tail.c.size,
    ledger_tail.c.root,
    ledger_tail.c.state_epoch,
    ledger_tail.c.frontier,
    ledger_tail.c.tail_mac,
)
"""The tail's row, as :func:`check_tail` takes it."""
_LOCKED: Final = TAIL.with_for_update()
_ENDS: Final = select(
    select(func.max(ledger_entries.c.idx)).scalar_subquery(),
    select(func.max(ledger_heads.c.size)).scalar_subquery(),
)
_MOVE: Final = update(ledger_tail).values(
    {name: bindparam(name) for name in ("size", "root", "state_epoch", "frontier", "tail_mac")}
)


class TreeRules(Protocol):
    """The Merkle rules, as the store needs them. A frontier is an opaque byte string."""

    def leaf_hash(self, data: bytes) -> bytes:
        """The leaf hash (32 bytes) of an entry."""

    def empty(self) -> bytes:
        """The frontier of the tree without leaves."""

    def size_root(self, frontier: bytes) -> tuple[int, bytes]:
        """Size and root (32 bytes) of a frontier's tree. Raises IntegrityFailure when it is malformed."""

    def extend(
        self, frontier: bytes, leaf_hashes: Iterable[bytes]
    ) -> tuple[bytes, bytes, list[tuple[int, int, bytes]]]:
        """(frontier, root, completed stored nodes as (level, index, hash)) with these leaves added."""


@dataclass(frozen=True, kw_only=True)
class StoredTail:
    """The tail's row: what :class:`~broker.model.Tail` says, and the frontier to go on from."""

    size: int
    root: bytes
    epoch: int
    frontier: bytes

    @property
    def tail(self) -> Tail:
        """The tail as the rest of the broker knows it."""
        return Tail(size=self.size, root=self.root, epoch=self.epoch)


def database_clock(connection: Connection) -> ColumnElement[int] | None:
    """The database's own clock in milliseconds since 1970, where it has one that replicas share."""
    if connection.dialect.name != "postgresql":
        return None
    return _CLOCK


def read_now(connection: Connection, clock: Clock) -> int:
    """The time that proofs and decisions are judged by: the database's clock, else ``clock``."""
    if connection.dialect.name != "postgresql":
        return clock.now()
    return int(read_rows(connection, _NOW, {})[0][0])


def check_tail(row: Sequence[Any] | None, macs: Macs) -> StoredTail:
    """The tail that a row of :data:`TAIL` holds.

    Raises:
        IntegrityFailure: There is no row, or its MAC does not hold.
    """
    if row is None:
        raise alarm("the ledger's tail is missing")
    size, root, epoch, frontier, mac = row
    types = [type(value) for value in (size, root, epoch, frontier, mac)]
    if types != [int, bytes, int, bytes, bytes]:
        raise alarm("the ledger's tail is not what the broker wrote", why="a column holds another type")
    try:
        expected = macs.tail(size=size, root=root, epoch=epoch, frontier=frontier)
    except MalformedRequest as exc:
        raise alarm("the ledger's tail is not what the broker wrote", why="a number is too large") from exc
    if not hmac.compare_digest(expected, mac):
        raise alarm("the ledger's tail is not what the broker wrote", why="its MAC does not hold")
    return StoredTail(size=size, root=root, epoch=epoch, frontier=frontier)


def _one_tail(rows: Sequence[Sequence[Any]], macs: Macs) -> StoredTail:
    return check_tail(rows[0] if rows else None, macs)


def read_tail(connection: Connection, macs: Macs) -> StoredTail:
    """The tail of the connection's snapshot.

    Raises:
        IntegrityFailure: There is none, or its MAC does not hold.
    """
    return _one_tail(read_rows(connection, TAIL, {}), macs)


def lock_tail(connection: Connection, macs: Macs, tree: TreeRules) -> StoredTail:
    """The tail, locked until the transaction ends, and proven to be where the broker left it.

    On SQLite ``BEGIN IMMEDIATE`` has taken the lock already; PostgreSQL locks the row.

    Raises:
        IntegrityFailure: The tail, or the end of the ledger's tables, is not what the broker wrote.
    """
    found = _one_tail(read_rows(connection, _LOCKED, {}), macs)
    if tree.size_root(found.frontier) != (found.size, found.root):
        raise alarm("the ledger's compact range does not give its root")
    # A statement of its own: under the lock, with a snapshot that is younger than the lock.
    last, head = read_rows(connection, _ENDS, {})[0]
    if (-1 if last is None else last) != found.size - 1:
        raise alarm(
            "the ledger's entries do not end where its tail says",
            why=f"the tail has {found.size} entries, the last stored index is {last}",
        )
    if head is not None and head > found.size:
        raise alarm("a tree head was signed for entries that the ledger no longer has")
    return found


def write_tail(connection: Connection, tail: StoredTail, macs: Macs) -> None:
    """Move the tail, which :func:`lock_tail` has locked."""
    write_rows(connection, _MOVE, [_columns(tail, macs)])


def create_tail(connection: Connection, macs: Macs, tree: TreeRules) -> None:
    """Begin an empty ledger, if there is none.

    An existing tail is left alone and not checked: every view and every append check it, and a
    ledger that was tampered with must still be open to those who find out how.

    Raises:
        IntegrityFailure: There is no tail although the database holds something else.
    """
    if _has_rows(connection, ledger_tail):
        return
    foreign = [table.name for table in METADATA.sorted_tables if _has_rows(connection, table)]
    # Whoever empties the ledger must not get a fresh one under the old rows. (A tail among them is
    # that of another process, which began the ledger since we looked.)
    if foreign and not _has_rows(connection, ledger_tail):
        raise alarm("the ledger's tail is missing", why=f"{', '.join(foreign)} not empty")
    frontier = tree.empty()
    size, root = tree.size_root(frontier)
    first = StoredTail(size=size, root=root, epoch=0, frontier=frontier)
    insert_missing(connection, ledger_tail, [{"id": 0, **_columns(first, macs)}])


def _has_rows(connection: Connection, table: Table) -> bool:
    return connection.execute(select(table).limit(1)).first() is not None


def _columns(tail: StoredTail, macs: Macs) -> dict[str, Any]:
    mac = macs.tail(size=tail.size, root=tail.root, epoch=tail.epoch, frontier=tail.frontier)
    return {
        "size": tail.size,
        "root": tail.root,
        "state_epoch": tail.epoch,
        "frontier": tail.frontier,
        "tail_mac": mac,
    }
