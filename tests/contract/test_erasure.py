"""Erasure in both databases: whose evidence goes, and which role may delete it."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from broker.db import LedgerStore
from broker.db.engine import parse_database_url
from broker.drafts import NewEntry
from broker.errors import LedgerUnavailable, NotFound
from tests.databases import (
    append_together,
    appended,
    database_url,  # noqa: F401 - a fixture
    draft,
    entry,
    open_store,
    store,  # noqa: F401 - a fixture
)
from tests.postgres import migrated_postgres_url  # noqa: F401 - a fixture

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations" / "retention.md"


def kept(principal: str, time: int) -> NewEntry:
    made = entry(principal=principal, time=time)
    return replace(made, evidence=b'{"method":"POST"}', evidence_salt=bytes(32))


def fill(store: LedgerStore, *wanted: tuple[str, int]) -> list[int]:
    outcomes = append_together(store, [draft(entries=(kept(who, time),)) for who, time in wanted])
    found = [appended(outcome).index for outcome in outcomes]
    return [index for index in found if index is not None]


def has_evidence(store: LedgerStore, index: int) -> bool:
    with store.reader() as reader:
        try:
            reader.evidence(index)
        except NotFound:
            return False
    return True


def test_the_evidence_of_one_principal_goes_up_to_a_time(store: LedgerStore) -> None:
    ours = fill(store, ("user:ana", 1_000), ("user:ana", 1_999), ("user:ana", 2_000), ("user:bob", 1_000))
    with store.reader() as reader:
        assert reader.count_evidence("user:ana", 2_000) == 2
        assert reader.count_evidence("user:an", 2_000) == 0
        before = [data for _, data, _ in reader.entries(0, 9)]
    assert store.erase_evidence("user:ana", 2_000) == 2
    assert [has_evidence(store, index) for index in ours] == [False, False, True, True]
    assert store.erase_evidence("user:ana", 2_000) == 0
    with store.reader() as reader:
        assert [data for _, data, _ in reader.entries(0, 9)] == before


def test_much_evidence_goes_in_runs(store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.db.ledger_store._ERASED_AT_ONCE", 3)
    ours = fill(store, *[("user:ana", 1_000)] * 7)
    assert store.erase_evidence("user:ana", 2_000) == 7
    assert not any(has_evidence(store, index) for index in ours)


@pytest.mark.postgres
def test_only_the_role_of_the_page_may_delete(migrated_postgres_url: str) -> None:
    store = open_store(migrated_postgres_url)
    store.initialize()
    [index] = fill(store, ("user:ana", 1_000))
    block = re.search(r"```sql\n(.*?)```", PAGE.read_text(), re.S)
    assert block is not None
    url = make_url(migrated_postgres_url)
    names = {name: f"{name}_{url.database}" for name in ("broker_eraser", "broker_reader")}
    granted = block[1].replace("DATABASE broker ", f'DATABASE "{url.database}" ')
    owner = create_engine(parse_database_url(migrated_postgres_url))
    try:
        with owner.begin() as connection:
            for name, own in names.items():
                statements = granted.replace("broker_eraser", f'"{own}"').split(";")
                keep = [each for each in statements if name == "broker_eraser" or "DELETE" not in each]
                for each in filter(str.strip, keep):
                    connection.execute(text(each))
        for name in ("broker_reader", "broker_eraser"):
            role = open_store(url.set(username=names[name]).render_as_string(hide_password=False))
            try:
                if name == "broker_reader":
                    with pytest.raises(LedgerUnavailable):
                        role.erase_evidence("user:ana", 2_000)
                    assert has_evidence(store, index)
                else:
                    assert role.erase_evidence("user:ana", 2_000) == 1
            finally:
                role.close()
        assert not has_evidence(store, index)
    finally:
        store.close()
        with owner.begin() as connection:
            for own in names.values():
                connection.execute(text(f'DROP OWNED BY "{own}"'))
                connection.execute(text(f'DROP ROLE "{own}"'))
        owner.dispose()
