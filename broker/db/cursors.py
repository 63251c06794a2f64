"""How far each destination of forwarding has come: one row for each, moved by whoever holds its lease.

A place carries a MAC (I19): whoever can write to the database, but has not the broker's integrity key,
cannot move it forward and so keep entries from those who watch.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, select, update
from sqlalchemy.exc import SQLAlchemyError

from broker import limits
from broker.db.engine import open_engine
from broker.db.macs import Macs, alarm
from broker.db.statements import insert_missing
from broker.db.tables import forward_cursors as table
from broker.db.tail import read_now
from broker.errors import Conflict, LedgerUnavailable, NotFound
from broker.outbox import Cursor
from broker.ports import Clock

_MAX_LEASE_MS: Final = 1000 * limits.MAX_FORWARD_LEASE


class CursorStore:
    """Implements ``outbox.ForwardCursors`` over SQLite or PostgreSQL, for any number of forwarders.

    Args:
        engine: From :func:`~broker.db.engine.open_engine`, for reading; writing uses a second one.
        integrity_key: The key that rows carry MACs under.
        clock: The time of leases on SQLite; on PostgreSQL the database's own counts.
    """

    def __init__(self, engine: Engine, *, integrity_key: bytes, clock: Clock) -> None:
        self._readers: Final = engine
        self._writers: Final = open_engine(engine.url, writes=True, pool_size=1)
        self._macs: Final = Macs(integrity_key)
        self._clock: Final = clock

    def close(self) -> None:
        """Close every connection."""
        self._writers.dispose()
        self._readers.dispose()

    def take(self, name: str, holder: str, *, start: int, lease: int) -> Cursor | None:
        """The destination for ``lease`` milliseconds; None while another has it.

        Raises:
            LedgerUnavailable: It is not known to be taken.
            IntegrityFailure: The row is not one that a broker wrote.
        """
        with self._writing() as connection:
            now = read_now(connection, self._clock)
            row = _locked(connection, name)
            if row is None:
                insert_missing(connection, table, [self._new(name, start)])
                row = _locked(connection, name)
            found = self._checked(row)
            # A lease beyond what anybody takes was not taken by the broker, or the clock was set back.
            if found.holder not in ("", holder) and now < found.until <= now + _MAX_LEASE_MS:
                return None
            _change(connection, name, holder=holder, until=now + lease)
        abandoned = found.holder not in ("", holder)
        return Cursor(
            next=found.next,
            holder=holder,
            until=now + lease,
            moved=found.moved,
            failures=found.failures,
            error=found.error,
            abandoned=abandoned,
        )

    def move(self, name: str, holder: str, *, before: int, after: int, lease: int) -> bool:
        """Durably from ``before`` to ``after``; False where holder or place is another by now.

        Raises:
            LedgerUnavailable: It is not known to be moved.
            IntegrityFailure: The row is not one that a broker wrote.
        """
        with self._writing() as connection:
            now = read_now(connection, self._clock)
            found = self._checked(_locked(connection, name))
            if (found.holder, found.next) != (holder, before):
                return False
            values = {"next": after, "mac": self._mac(name, after), "until": now + lease}
            # Back is no delivery: what failed is still to be told.
            told = {"moved": now, "failures": 0, "error": ""} if after >= before else {}
            _change(connection, name, **values, **told)
        return True

    def fail(self, name: str, holder: str, *, error: str) -> None:
        """One more try failed.

        Raises:
            LedgerUnavailable: It is not known to be told.
        """
        with self._writing() as connection:
            connection.execute(
                update(table)
                .where(table.c.name == name, table.c.holder == holder)
                .values(failures=table.c.failures + 1, error=error)
            )

    def release(self, name: str, holder: str) -> None:
        """Stopped: anybody may take it at once.

        Raises:
            LedgerUnavailable: It is not known to be released.
        """
        with self._writing() as connection:
            mine = (table.c.name == name, table.c.holder == holder)
            connection.execute(update(table).where(*mine).values(holder="", until=0))

    def rewind(self, name: str, to: int) -> None:
        """Durably back to an earlier entry, whoever holds it.

        Raises:
            NotFound: Nothing was ever sent to such a destination.
            Conflict: ``to`` is not before its place: nothing is ever skipped.
        """
        with self._writing() as connection:
            row = _locked(connection, name)
            if row is None:
                raise NotFound(f"nothing was ever forwarded to {name}")
            found = self._checked(row)
            if not 0 <= to < found.next:
                raise Conflict(
                    f"{name} gets entry {found.next} next: it goes back only", why="nothing is ever skipped"
                )
            _change(connection, name, next=to, mac=self._mac(name, to))

    def find(self, name: str) -> tuple[Cursor | None, int]:
        """(how far a destination is, None before its beginning; the time that leases are judged by).

        Raises:
            LedgerUnavailable: The database does not answer.
            IntegrityFailure: The row is not one that a broker wrote.
        """
        try:
            with self._readers.connect() as connection:
                row = connection.execute(select(table).where(table.c.name == name)).first()
                now = read_now(connection, self._clock)
        except SQLAlchemyError as exc:
            raise LedgerUnavailable("the cursors cannot be read", why=type(exc).__name__) from exc
        return None if row is None else self._checked(row), now

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._writers.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            raise LedgerUnavailable("a cursor cannot be written", why=type(exc).__name__) from exc

    def _new(self, name: str, start: int) -> dict[str, Any]:
        fresh = {"holder": "", "until": 0, "moved": 0, "failures": 0, "error": ""}
        return {"name": name, "next": start, "mac": self._mac(name, start), **fresh}

    def _mac(self, name: str, place: int) -> bytes:
        return self._macs.row(table=table.name, key=[name], columns={"next": place}, entry=0)

    def _checked(self, row: Row[Any] | None) -> Cursor:
        if row is None:
            raise LedgerUnavailable("the cursor is gone")
        numbers = (row.next, row.until, row.moved, row.failures)
        whole = all(type(value) is int for value in numbers) and row.next >= 0 and type(row.mac) is bytes
        if not whole or not hmac.compare_digest(self._mac(row.name, row.next), row.mac):
            raise alarm("a cursor of forwarding is not what the broker wrote")
        return Cursor(
            next=row.next,
            holder=row.holder,
            until=row.until,
            moved=row.moved,
            failures=row.failures,
            error=row.error,
        )


def _locked(connection: Connection, name: str) -> Row[Any] | None:
    # On SQLite the transaction is the lock already, and the words FOR UPDATE are left out.
    return connection.execute(select(table).where(table.c.name == name).with_for_update()).first()


def _change(connection: Connection, name: str, **values: Any) -> None:
    connection.execute(update(table).where(table.c.name == name).values(**values))
