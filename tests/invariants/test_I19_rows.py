"""I19: rows that were inserted, edited or moved behind the broker's back grant nothing."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, Table, and_, insert, select, text, update

from broker.db import LedgerStore
from broker.db.macs import Macs
from broker.db.rows import codec
from broker.db.tables import ROW_TABLES
from broker.errors import IntegrityFailure
from broker.model import ROW_KEYS, Grant, Principal, Upload, Version, row_key
from tests.databases import (
    append_together,
    database_url,  # noqa: F401 - a fixture
    draft,
    intruder,  # noqa: F401 - a fixture
    kinds,
    open_store,
    sample_rows,
    store,  # noqa: F401 - a fixture
)

MINE, OTHERS = sample_rows("a"), sample_rows("b")
BY_CLASS = {type(row): (row, other) for row, other in zip(MINE, OTHERS, strict=True)}
EVERY_CLASS = pytest.mark.parametrize("cls", list(ROW_TABLES), ids=[t.name for t in ROW_TABLES.values()])


@pytest.fixture
def filled(store: LedgerStore) -> LedgerStore:
    store.append(draft(rows=tuple(OTHERS)))
    store.append(draft(rows=tuple(MINE)))
    return store


def where(table: Table, row: Any) -> Any:
    keys = ROW_KEYS[type(row)]
    return and_(*(table.c[name] == value for name, value in zip(keys, row_key(row), strict=True)))


def stored(intruder: Engine, row: Any) -> dict[str, Any]:
    table = ROW_TABLES[type(row)]
    with intruder.begin() as connection:
        return dict(connection.execute(select(table).where(where(table, row))).mappings().one())


def write(intruder: Engine, row: Any, **values: Any) -> None:
    table = ROW_TABLES[type(row)]
    with intruder.begin() as connection:
        assert connection.execute(update(table).where(where(table, row)).values(**values)).rowcount == 1


def refused(
    store: LedgerStore, cls: type[Any], key: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with store.view() as view:
        caplog.clear()
        with caplog.at_level(logging.CRITICAL, "broker.alarm"), pytest.raises(IntegrityFailure):
            view.find(cls, *key)
        assert [record.name for record in caplog.records] == ["broker.alarm"]
        with pytest.raises(IntegrityFailure):
            view.list(cls)


def edited(value: Any) -> Any:
    """Another value of the same type, that the column would hold."""
    if isinstance(value, int):
        return value + 1
    if isinstance(value, bytes):
        return value + b"x"
    return '["x"]' if str(value).startswith("[") and str(value) != "[]" else f"{value}x"


@EVERY_CLASS
def test_I19_every_edit_of_every_column_is_found(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture, cls: type[Any]
) -> None:
    row, _ = BY_CLASS[cls]
    original = stored(intruder, row)
    loose = {member.name for member in codec(cls).members if member.loose}
    tried = 0
    for name in original:
        if name in ROW_KEYS[cls] or name in loose:
            continue
        write(intruder, row, **{name: edited(original[name])})
        refused(filled, cls, row_key(row), caplog)
        write(intruder, row, **{name: original[name]})
        tried += 1
    assert tried == len(original) - len(ROW_KEYS[cls]) - len(loose)
    with filled.view() as view:
        assert len(view.list(cls)) == 2


@EVERY_CLASS
def test_I19_a_row_under_another_key_is_found(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture, cls: type[Any]
) -> None:
    row, _ = BY_CLASS[cls]
    copy = stored(intruder, row)
    for name in ROW_KEYS[cls]:
        forged = {**copy, name: edited(copy[name])}
        with intruder.begin() as connection:
            connection.execute(insert(ROW_TABLES[cls]).values(**forged))
        refused(filled, cls, tuple(forged[part] for part in ROW_KEYS[cls]), caplog)
        with intruder.begin() as connection:
            table = ROW_TABLES[cls]
            connection.execute(table.delete().where(table.c[name] == forged[name]))


@EVERY_CLASS
def test_I19_the_mac_of_another_row_does_not_help(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture, cls: type[Any]
) -> None:
    row, other = BY_CLASS[cls]
    write(intruder, row, mac=stored(intruder, other)["mac"])
    refused(filled, cls, row_key(row), caplog)


@EVERY_CLASS
def test_I19_the_content_of_another_row_does_not_help(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture, cls: type[Any]
) -> None:
    row, other = BY_CLASS[cls]
    content = {name: value for name, value in stored(intruder, other).items() if name not in ROW_KEYS[cls]}
    write(intruder, row, **content)
    refused(filled, cls, row_key(row), caplog)


@EVERY_CLASS
def test_I19_a_row_under_another_integrity_key_is_found(
    filled: LedgerStore, intruder: Engine, database_url: str, cls: type[Any]
) -> None:
    """Whoever has the program, but not the key, cannot make rows."""
    row, _ = BY_CLASS[cls]
    forged = codec(cls).encode(row, entry=1, macs=Macs(b"another key of thirty-two bytes."))
    write(intruder, row, **{name: value for name, value in forged.items() if name not in ROW_KEYS[cls]})
    with filled.view() as view, pytest.raises(IntegrityFailure):
        view.find(cls, *row_key(row))


@EVERY_CLASS
def test_I19_a_draft_that_rests_on_a_forged_row_is_refused_alone(
    filled: LedgerStore, intruder: Engine, cls: type[Any]
) -> None:
    row, other = BY_CLASS[cls]
    write(intruder, row, entry=0)
    outcomes = append_together(
        filled, [draft(), draft(expects=(replace(row, entry=0),)), draft(expects=(replace(other, entry=0),))]
    )
    assert kinds(outcomes) == ["Appended", "IntegrityFailure", "Appended"]


def test_I19_a_forged_version_is_neither_the_newest_nor_listed(filled: LedgerStore, intruder: Engine) -> None:
    row, _ = BY_CLASS[Version]
    forged = {**stored(intruder, row), "version": "v-evil", "committed": 99}
    with intruder.begin() as connection:
        connection.execute(insert(ROW_TABLES[Version]).values(**forged))
    with filled.view() as view:
        for act in (
            lambda: view.newest_version(row.collection, row.name),
            lambda: view.versions(row.collection, row.name),
            lambda: view.version_by_digest(row.collection, row.name, row.manifest),
        ):
            with pytest.raises(IntegrityFailure):
                act()


def test_I19_loose_bookkeeping_is_outside_the_mac(filled: LedgerStore, intruder: Engine) -> None:
    row, _ = BY_CLASS[Upload]
    write(intruder, row, parts='{"o":"1"}')
    with filled.view() as view:
        found = view.find(Upload, row.id)
    assert found is not None
    assert found.parts == '{"o":"1"}'


# PostgreSQL's columns take no value of a foreign type.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (Principal, "disabled = 2"),
        (Principal, "disabled = 'no'"),
        (Principal, "created = 'one'"),
        (Principal, "created = 1.5"),
        (Principal, "roles = 'engineer'"),
        (Principal, "roles = '[1]'"),
        (Principal, 'roles = \'["engineer","engineer"]\''),
        (Principal, "roles = x'5b5d'"),
        (Principal, "groups = CAST(x'ff' AS TEXT)"),
        (Principal, "mac = 'text'"),
        (Principal, "mac = x''"),
        (Principal, "entry = 9223372036854775807"),
        (Grant, "version_id = 1000000000"),
        (Grant, "purpose = CAST(x'fe' AS TEXT)"),
    ],
)
def test_I19_sqlite_values_of_a_foreign_type_are_found(
    filled: LedgerStore,
    intruder: Engine,
    caplog: pytest.LogCaptureFixture,
    cls: type[Any],
    change: str,
) -> None:
    row, _ = BY_CLASS[cls]
    with intruder.begin() as connection:
        connection.execute(text(f"UPDATE {ROW_TABLES[cls].name} SET {change}"))
    refused(filled, cls, row_key(row), caplog)


def test_I19_the_sample_covers_every_row_class() -> None:
    assert set(BY_CLASS) == set(ROW_TABLES) == set(ROW_KEYS)


def test_I19_rows_of_one_store_are_rows_of_its_replica(filled: LedgerStore, database_url: str) -> None:
    replica = open_store(database_url)
    with replica.view() as view:
        for row in (*MINE, *OTHERS):
            assert view.find(type(row), *row_key(row)) is not None
    replica.close()


def test_a_row_that_was_read_before_is_not_taken_on_trust(filled: LedgerStore, intruder: Engine) -> None:
    principal = next(row for row in MINE if isinstance(row, Principal))
    for _ in range(2):
        with filled.view() as view:
            assert view.find(Principal, principal.id) is not None
    before = stored(intruder, principal)
    write(intruder, principal, roles='["admin"]')
    with filled.view() as view, pytest.raises(IntegrityFailure):
        view.find(Principal, principal.id)
    write(intruder, principal, roles=before["roles"])
    with filled.view() as view:
        assert view.find(Principal, principal.id) is not None
    write(intruder, principal, mac=bytes(32))
    with filled.view() as view, pytest.raises(IntegrityFailure):
        view.find(Principal, principal.id)
