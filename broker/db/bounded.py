"""A statement that may have to look at every row gets so much time, and is stopped inside the database."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from broker import limits
from broker.errors import InvalidRequest

_INSTRUCTIONS: Final = 100_000
"""Of SQLite's machine between two looks at the time: about a millisecond."""
_CANCELED: Final = "57014"
"""Source: PostgreSQL, appendix A, ``query_canceled``."""


@contextmanager
def bounded(connection: Connection, *, milliseconds: int = limits.MAX_QUESTION) -> Iterator[None]:
    """Statements in it are stopped after that long; the transaction is of no more use then.

    Raises:
        InvalidRequest: One was.
    """
    lite = connection.dialect.name == "sqlite"
    try:
        if lite:
            with _watched(connection, milliseconds):
                yield
        else:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
            yield
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    except OperationalError as exc:
        if not _is_stopped(exc, lite=lite):
            raise
        raise InvalidRequest(
            "the question looks at too many entries",
            why=f"it was stopped after {milliseconds / 1000:g} seconds",
            next="narrow it: since:, until:, actor:, artifact:, grant:",
        ) from exc


@contextmanager
def _watched(connection: Connection, milliseconds: int) -> Iterator[None]:
    driver = cast(sqlite3.Connection, connection.connection.driver_connection)
    until = time.monotonic() + milliseconds / 1000
    driver.set_progress_handler(lambda: int(time.monotonic() > until), _INSTRUCTIONS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


def _is_stopped(exc: OperationalError, *, lite: bool) -> bool:
    if lite:
        return getattr(exc.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
    return getattr(exc.orig, "sqlstate", None) == _CANCELED
