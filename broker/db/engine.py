"""Opening the database so that what is committed is durable, and nothing else is possible.

SQLite: WAL, ``synchronous=FULL`` on every connection, transactions begun by us (``BEGIN IMMEDIATE``
for writers, deferred for readers). PostgreSQL: refused with ``fsync`` or ``synchronous_commit`` off.
Readers and writers use different engines: a reader's connection cannot write.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from broker.db.driver import run_text
from broker.errors import ConfigurationError, LedgerUnavailable

BUSY_SECONDS: Final = 5
"""How long a SQLite connection waits for another's lock."""
_WAL_ATTEMPTS: Final = 200
_BUSY_PAUSE_SECONDS: Final = 0.0005
_WAL_PAUSE_SECONDS: Final = 0.02
_CONNECT_SECONDS: Final = 5
_POOL_SECONDS: Final = 10
_SESSION: Final = (
    "SET statement_timeout = '30s'",
    "SET lock_timeout = '10s'",
    # A replica that hangs while it holds the tail must not stop the others for ever.
    "SET idle_in_transaction_session_timeout = '60s'",
)
_POSTGRESQL_ARGUMENTS: Final[dict[str, Any]] = {
    "connect_timeout": _CONNECT_SECONDS,
    "application_name": "broker",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_WRITER: Final[dict[str, Any]] = {"isolation_level": "READ COMMITTED"}
_READER: Final[dict[str, Any]] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_TRANSIENT_STATES: Final = frozenset(("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300"))
_SQLITE_BUSY: Final = 5
_SQLITE_LOCKED: Final = 6


def parse_database_url(url: str | URL) -> URL:
    """The URL of a database that the broker can use: ``sqlite:///FILE`` or ``postgresql://...``.

    Raises:
        ConfigurationError: Another kind of database, or a SQLite database that is not a file.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise ConfigurationError("the database URL cannot be parsed") from exc
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigurationError("the database is neither SQLite nor PostgreSQL")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise ConfigurationError("a SQLite database must be a file: sqlite:////path/to/broker.db")
    return parsed.set(drivername="sqlite+pysqlite")


def open_engine(url: str | URL, *, writes: bool = False, pool_size: int = 16) -> Engine:
    """An engine for snapshots, or with ``writes`` for the ledger's own transactions.

    Nothing is connected yet. An engine must not be used on both sides of a ``fork``.

    Args:
        url: See :func:`parse_database_url`.
        writes: Whether its connections may write.
        pool_size: Connections kept open; as many again are opened under load.

    Raises:
        ConfigurationError: The URL is not of a database that the broker can use. When connecting:
            the database does not keep what it commits.
    """
    parsed = parse_database_url(url)
    lite = parsed.get_backend_name() == "sqlite"
    arguments = {"timeout": BUSY_SECONDS, "check_same_thread": False} if lite else _POSTGRESQL_ARGUMENTS
    options: dict[str, Any] = {} if lite else {"execution_options": _WRITER if writes else _READER}
    engine = create_engine(
        parsed,
        connect_args=dict(arguments),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=_POOL_SECONDS,
        # Parameters hold wrapped keys and hashes of secrets: never in a message (I11).
        hide_parameters=True,
        **options,
    )
    if lite:
        _prepare_sqlite(engine, writes=writes)
    else:
        event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_sqlite(engine: Engine, *, writes: bool) -> None:
    def on_connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None
        # Bytes that are no UTF-8 become a text that no MAC covers, and so are found.
        connection.text_factory = lambda raw: str(raw, "utf-8", "replace")
        with closing(connection.cursor()) as cursor:
            _enter_wal(cursor)
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute("PRAGMA recursive_triggers=ON")
            cursor.execute("PRAGMA trusted_schema=OFF")
            cursor.execute(f"PRAGMA query_only={'OFF' if writes else 'ON'}")

    def on_begin(connection: Connection) -> None:
        if writes:
            _begin_to_write(connection)
        else:
            run_text(connection, "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _begin_to_write(connection: Connection) -> None:
    # SQLite itself looks again after 1, 2, 5, ... 100 ms: with several processes that commit every few
    # milliseconds, one of them may then wait for a second. So it is asked more often, and as long.
    run_text(connection, "PRAGMA busy_timeout=0")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            run_text(connection, "BEGIN IMMEDIATE")
        except DBAPIError as exc:
            if not is_transient(exc) or time.monotonic() > deadline:
                raise
            threading.Event().wait(_BUSY_PAUSE_SECONDS)
        else:
            run_text(connection, f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
            return


def _enter_wal(cursor: sqlite3.Cursor) -> None:
    # The mode is a property of the file, and the first connection sets it. Of several that are the
    # first SQLite refuses some without waiting, whatever their busy timeout.
    for attempt in range(_WAL_ATTEMPTS):
        try:
            if cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                raise ConfigurationError("the SQLite database cannot be put into WAL mode")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != _SQLITE_BUSY or attempt == _WAL_ATTEMPTS - 1:
                raise
            threading.Event().wait(_WAL_PAUSE_SECONDS)
        else:
            return


def _prepare_postgresql(connection: Any, _: object) -> None:
    connection.autocommit = True
    with closing(connection.cursor()) as cursor:
        cursor.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
        fsync, synchronous_commit = cursor.fetchone()
        if fsync == "off" or synchronous_commit == "off":
            raise ConfigurationError(
                "the database does not keep what it commits",
                why="PostgreSQL runs with fsync or synchronous_commit off",
                next="set both to on, for the server, the database and the role",
            )
        for statement in _SESSION:
            cursor.execute(statement)
    connection.autocommit = False


def is_transient(exc: SQLAlchemyError) -> bool:
    """Whether the same transaction may succeed when it is tried again.

    So it is after a lost connection, a lock that was held too long, a serialization failure.
    """
    if not isinstance(exc, DBAPIError):
        return False
    if isinstance(exc.orig, sqlite3.Error):
        code = getattr(exc.orig, "sqlite_errorcode", 0) & 0xFF
        return code in (_SQLITE_BUSY, _SQLITE_LOCKED)
    state = getattr(exc.orig, "sqlstate", None)
    if state is None:
        return exc.connection_invalidated
    return state in _TRANSIENT_STATES or state.startswith("08")


def role_may_change_ledger(engine: Engine) -> bool:
    """Whether this role could change or delete ledger entries if no trigger stopped it.

    Always true on SQLite, where whoever writes the file can do anything. On PostgreSQL true for a
    superuser, the table's owner, and a role with UPDATE, DELETE, TRUNCATE or TRIGGER on it.

    Raises:
        LedgerUnavailable: The database does not answer.
    """
    if engine.dialect.name == "sqlite":
        return True
    statement = text(
        "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
        " OR EXISTS (SELECT 1 FROM pg_tables WHERE tablename = 'ledger_entries'"
        " AND pg_has_role(current_user, tableowner, 'MEMBER'))"
        " OR has_table_privilege('ledger_entries', 'UPDATE, DELETE, TRUNCATE, TRIGGER')"
    )
    try:
        with engine.connect() as connection:
            return bool(connection.execute(statement).scalar_one())
    except SQLAlchemyError as exc:
        raise LedgerUnavailable("the database does not answer", why=type(exc).__name__) from exc
