"""Runs the migrations on a connection, one process at a time."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from broker.db.engine import open_engine
from broker.db.migrate import lock_schema
from broker.db.tables import METADATA
from broker.errors import ConfigurationError


def migrate(connection: Connection) -> None:
    lock_schema(connection)
    # The caller's transaction is the only one: PostgreSQL and SQLite both take DDL back.
    context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


def migrate_by_url() -> None:
    url = context.get_x_argument(as_dictionary=True).get("url")
    if context.is_offline_mode() or not url:
        raise ConfigurationError(
            "migrations need a database", next="alembic -x url=sqlite:////path/to/db ..."
        )
    engine = open_engine(url, writes=True, pool_size=1)
    try:
        with engine.begin() as connection:
            migrate(connection)
    finally:
        engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    migrate_by_url()
else:
    migrate(given)
