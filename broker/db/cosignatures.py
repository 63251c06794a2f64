"""What witnesses signed, beside the log: one line for each tree head and witness, insert-only."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from broker.db.engine import open_engine
from broker.db.statements import insert_missing
from broker.db.tables import ledger_cosignatures as table
from broker.errors import LedgerUnavailable


class CosignatureStore:
    """Implements ``ports.Cosignatures`` over SQLite or PostgreSQL, for any number of replicas.

    Nothing here is believed: whoever uses a line verifies it first.

    Args:
        engine: From :func:`~broker.db.engine.open_engine`, for reading; writing uses a second one.
    """

    def __init__(self, engine: Engine) -> None:
        self._readers: Final = engine
        self._writers: Final = open_engine(engine.url, writes=True, pool_size=1)

    def close(self) -> None:
        """Close every connection."""
        self._writers.dispose()
        self._readers.dispose()

    def keep(self, size: int, *, witness: str, line: str, time: int) -> None:
        """Keep a line durably; the first one of a size and witness stays.

        Raises:
            LedgerUnavailable: It is not known to be kept.
        """
        row = {"size": size, "witness": witness, "line": line, "time": time}
        taken = select(table.c.size).where(table.c.size == size, table.c.witness == witness)
        try:
            with self._writers.begin() as connection:
                if connection.execute(taken).first() is None:
                    insert_missing(connection, table, [row])
        except SQLAlchemyError as exc:
            raise LedgerUnavailable("a cosignature cannot be kept", why=type(exc).__name__) from exc

    def newest_of(self, witness: str) -> tuple[int, int] | None:
        """(size, time) of the largest head that a witness signed.

        Raises:
            LedgerUnavailable: The database does not answer.
        """
        wanted = (
            select(table.c.size, table.c.time)
            .where(table.c.witness == witness)
            .order_by(table.c.size.desc())
            .limit(1)
        )
        try:
            with self._readers.connect() as connection:
                row = connection.execute(wanted).first()
        except SQLAlchemyError as exc:
            raise _unreadable(exc) from exc
        return None if row is None else (row.size, row.time)

    def newest(self, *, above: int, most: int) -> list[tuple[int, dict[str, str]]]:
        """The largest sizes that anybody signed, descending: (size, witness -> line).

        Args:
            above: Only larger sizes.
            most: So many sizes at most.

        Raises:
            LedgerUnavailable: The database does not answer.
        """
        sizes = (
            select(table.c.size)
            .where(table.c.size > above)
            .group_by(table.c.size)
            .order_by(table.c.size.desc())
            .limit(most)
        )
        try:
            with self._readers.connect() as connection:
                smallest = connection.execute(select(func.min(sizes.subquery().c.size))).scalar()
                if smallest is None:
                    return []
                wanted = select(table).where(table.c.size >= smallest).order_by(table.c.size.desc())
                rows = connection.execute(wanted.order_by(table.c.witness)).all()
        except SQLAlchemyError as exc:
            raise _unreadable(exc) from exc
        found: dict[int, dict[str, str]] = {}
        for row in rows:
            found.setdefault(row.size, {})[row.witness] = row.line
        return list(found.items())[:most]

    def of_size(self, size: int) -> dict[str, str]:
        """Witness -> line of one tree size.

        Raises:
            LedgerUnavailable: The database does not answer.
        """
        try:
            with self._readers.connect() as connection:
                rows = connection.execute(select(table).where(table.c.size == size)).all()
        except SQLAlchemyError as exc:
            raise _unreadable(exc) from exc
        return {row.witness: row.line for row in rows}


def _unreadable(exc: SQLAlchemyError) -> LedgerUnavailable:
    return LedgerUnavailable("the cosignatures cannot be read", why=type(exc).__name__)
