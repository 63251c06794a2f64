"""Statements that every request makes, as the driver takes them.

A grant makes some thirty of them. SQLAlchemy takes several times as long to pass one on as the database takes
to answer it, so these texts are compiled once and go to the driver's cursor. They begin a transaction where
there is none, and fail, as SQLAlchemy's own do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import ClauseElement, Connection, Dialect
from sqlalchemy.exc import DBAPIError


def read_rows(connection: Connection, statement: ClauseElement, values: Mapping[str, Any]) -> list[Any]:
    """The rows of a statement, as tuples of what the driver makes of them.

    Args:
        connection: Its transaction, begun here if it has none.
        statement: The same object each time: its text is compiled once for each database.
        values: By the names of its parameters.

    Raises:
        DBAPIError: As :meth:`Connection.execute` raises it.
    """
    text, arrange = _compiled(statement, connection.dialect)
    _begin(connection)
    with _cursor(connection) as cursor:
        connection.dialect.do_execute(cursor, text, arrange(values))
        return list(cursor.fetchall())


def write_rows(connection: Connection, statement: ClauseElement, values: Sequence[Mapping[str, Any]]) -> None:
    """Run a statement that answers with nothing, once for each of ``values``.

    Raises:
        DBAPIError: As :meth:`Connection.execute` raises it.
    """
    text, arrange = _compiled(statement, connection.dialect)
    rows = list(map(arrange, values))
    _begin(connection)
    with _cursor(connection) as cursor:
        if len(rows) == 1:
            connection.dialect.do_execute(cursor, text, rows[0])
        else:
            connection.dialect.do_executemany(cursor, text, rows)


def run_text(connection: Connection, text: str) -> None:
    """Run one statement that has no parameters and answers with nothing.

    Raises:
        DBAPIError: As :meth:`Connection.execute` raises it.
    """
    with _cursor(connection) as cursor:
        connection.dialect.do_execute(cursor, text, ())


def _begin(connection: Connection) -> None:
    # As SQLAlchemy's own first statement does: otherwise its commit would have nothing to commit.
    if not connection.in_transaction():
        connection.begin()


@contextmanager
def _cursor(connection: Connection) -> Iterator[Any]:
    driver = connection.connection
    dialect = connection.dialect
    cursor = driver.cursor()
    try:
        yield cursor
    except dialect.loaded_dbapi.Error as exc:
        gone = dialect.is_disconnect(exc, cast(Any, driver), cursor)
        if gone:
            # SQLAlchemy did not see it, so it is shown: it raises, and replaces every connection of the pool,
            # since the others ended with this one.
            connection.exec_driver_sql("SELECT 1")
        elif not connection.in_transaction():
            # A BEGIN that failed may have happened all the same.
            driver.rollback()
        # Parameters are left out: they hold wrapped keys and hashes of secrets (I11).
        raise DBAPIError.instance(
            None,
            None,
            exc,
            cast(Any, dialect.loaded_dbapi.Error),
            hide_parameters=True,
            connection_invalidated=gone,
            dialect=dialect,
        ) from exc
    finally:
        # Of a connection that is gone even closing fails, and would hide why.
        with suppress(dialect.loaded_dbapi.Error):
            cursor.close()


@lru_cache(maxsize=1024)
def _compiled(statement: ClauseElement, dialect: Dialect) -> tuple[str, Callable[[Mapping[str, Any]], Any]]:
    """The text, and what puts its parameters into the form that the driver wants."""
    compiled = cast(Any, statement.compile(dialect=dialect))
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    names = compiled.positiontup
    if names is None:
        return str(compiled), (lambda values: {**constants, **values})
    if constants:
        return str(compiled), (lambda values: [{**constants, **values}[name] for name in names])
    if len(names) > 1:
        return str(compiled), itemgetter(*names)
    return str(compiled), (lambda values: [values[name] for name in names])
