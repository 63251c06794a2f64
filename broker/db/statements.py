"""Statements that SQLite and PostgreSQL share but the SQL standard does not: insert or else."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

from broker.db.driver import write_rows


def dialect_insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ``ON CONFLICT``."""
    return _dialect_insert(connection.dialect.name, table)


def _dialect_insert(dialect: str, table: Table) -> Any:
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def insert_rows(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    """Insert rows, if there are any; a key that is taken is an error."""
    if values:
        write_rows(connection, _insert(table), values)


def insert_missing(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    """Insert the rows whose keys are free, and leave the others as they are."""
    if values:
        write_rows(connection, _insert_missing(connection.dialect.name, table), values)


def upsert_rows(connection: Connection, table: Table, values: list[dict[str, Any]]) -> None:
    """Insert rows, or replace everything but the key of those that are there."""
    if values:
        write_rows(connection, _upsert(connection.dialect.name, table), values)


# A statement takes longer to build than to run; there are as many as there are tables.


@cache
def _insert(table: Table) -> Any:
    return table.insert().inline()


@cache
def _insert_missing(dialect: str, table: Table) -> Any:
    return _dialect_insert(dialect, table).inline().on_conflict_do_nothing()


@cache
def _upsert(dialect: str, table: Table) -> Any:
    statement = _dialect_insert(dialect, table).inline()
    changed = {c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)
