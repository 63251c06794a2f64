"""The schema's migrations, run from inside the program and safe to start in parallel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from broker.db.engine import open_engine, parse_database_url
from broker.errors import ConfigurationError, LedgerUnavailable

_LOCK: Final = 0x62726F6B65720001
"""Number of the advisory lock on PostgreSQL; the only advisory lock that the broker takes."""
_PACKAGE: Final = Path(__file__).resolve().parents[1]


def migrations_folder() -> Path:
    """Where the scripts are: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigurationError: Neither is there.
    """
    for folder in (_PACKAGE / "_migrations", _PACKAGE.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError("the database migrations are not installed")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config


def lock_schema(connection: Connection) -> None:
    """Let one process migrate at a time.

    Taken before the present revision is read, held until the transaction ends. On SQLite a writer's
    transaction is that lock already.
    """
    if connection.dialect.name != "postgresql":
        return
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


def upgrade(url: str) -> str:
    """Bring the database to the newest schema, making it first if it is a missing SQLite file.

    All steps run in one transaction: a crash leaves the schema as it was. Running it again, or in
    several processes at once, is fine.

    Returns:
        The revision that the database now has.

    Raises:
        ConfigurationError: The URL cannot be used, the migrations are missing, or the database has
            a schema from another version of the program.
        LedgerUnavailable: The database does not answer.
    """
    _create_file(url)
    engine = open_engine(url, writes=True, pool_size=1)
    config = _config()
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as exc:
        raise ConfigurationError("the database has a schema that this program does not know") from exc
    except SQLAlchemyError as exc:
        raise LedgerUnavailable("the database cannot be upgraded", why=type(exc).__name__) from exc
    finally:
        engine.dispose()
    return head_revision()


def _create_file(url: str) -> None:
    parsed = parse_database_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return
    try:
        # For its owner only, before SQLite would make it for everybody; its WAL inherits the mode.
        os.close(os.open(parsed.database, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as exc:
        raise ConfigurationError("the SQLite database file cannot be made", why=exc.strerror) from exc


def head_revision() -> str:
    """The revision that this program's schema has."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current_revision(engine: Engine) -> str | None:
    """The revision that the database has; None when it has no schema.

    Raises:
        LedgerUnavailable: The database does not answer.
    """
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as exc:
        raise LedgerUnavailable("the database does not answer", why=type(exc).__name__) from exc
