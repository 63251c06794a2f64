"""Statements that SQLite and PostgreSQL share but the SQL standard does not: insert or else."""

from __future__ import annotations

from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite


def dialect_insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ``ON CONFLICT``."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def insert_rows(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    """Insert rows, if there are any; a key that is taken is an error."""
    if values:
        # As the driver takes them: SQLAlchemy would look at every value of every row again.
        text, names = _compiled_insert(connection.dialect, table)
        if names is None:
            connection.exec_driver_sql(text, values)
        else:
            # Every table here has two columns or more, so each row becomes a tuple.
            connection.exec_driver_sql(text, list(map(itemgetter(*names), values)))


def insert_missing(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    """Insert the rows whose keys are free, and leave the others as they are."""
    if values:
        connection.execute(dialect_insert(connection, table).on_conflict_do_nothing(), values)


def upsert_rows(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    """Insert rows, or replace everything but the key of those that are there."""
    if values:
        connection.execute(_upsert(connection.dialect.name, table), values)


# A statement takes longer to build than to run; there are as many as there are tables.


@cache
def _compiled_insert(dialect: Dialect, table: Table) -> tuple[str, tuple[str, ...] | None]:
    """The text of an INSERT of all columns, and the order of its parameters, None where they have names."""
    compiled = table.insert().inline().compile(dialect=dialect)
    names = compiled.positiontup
    return str(compiled), None if names is None else tuple(names)


@cache
def _upsert(dialect: str, table: Table) -> Any:
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)
