"""I10: what the broker did not write is never signed, and a ledger does not go back."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from broker.db import LedgerStore
from broker.drafts import NewEntry
from broker.errors import IntegrityFailure, RollbackDetected
from broker.ledger import merkle
from broker.ledger.audit import Auditor, Verdict
from broker.ledger.entry import build_entry, index_row, parse_entry
from broker.ledger.note import TreeHead
from tests.databases import (
    append_together,
    check_ledger,
    database_url,  # noqa: F401 - a fixture
    draft,
    entry,
    intruder,  # noqa: F401 - a fixture
    open_store,
    store,  # noqa: F401 - a fixture
)
from tests.unit.ledger.samples import sample_log

SIZE = 10


@pytest.fixture
def filled(store: LedgerStore) -> LedgerStore:
    append_together(store, [draft() for _ in range(SIZE - 1)])
    store.append(draft(bumps_epoch=True))
    return store


def run(intruder: Engine, statement: str, **values: object) -> None:
    with intruder.begin() as connection:
        assert connection.execute(text(statement), values).rowcount != 0


def count(intruder: Engine, table: str) -> int:
    with intruder.begin() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def refused(store: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture) -> None:
    before = count(intruder, "ledger_entries")
    caplog.clear()
    with caplog.at_level(logging.CRITICAL, "broker.alarm"), pytest.raises(IntegrityFailure):
        store.append(draft())
    assert [record.name for record in caplog.records] == ["broker.alarm"]
    assert count(intruder, "ledger_entries") == before


@pytest.mark.parametrize("index", [SIZE, SIZE + 5])
def test_I10_an_entry_that_the_broker_did_not_write_is_not_signed(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture, index: int
) -> None:
    run(
        intruder,
        "INSERT INTO ledger_entries (idx, entry, leaf_hash) VALUES (:i, :e, :h)",
        i=index,
        e=b"forged",
        h=merkle.leaf_hash(b"forged"),
    )
    refused(filled, intruder, caplog)
    # The rest of what is there can still be read, to find out what happened.
    with filled.reader() as reader:
        assert [i for i, _, _ in reader.entries(0, 99)] == [*range(SIZE), index]


@pytest.mark.parametrize(
    ("table", "columns", "values"),
    [
        ("ledger_index", "idx, time, type, policies", f"{SIZE}, 1, 'x', '[]'"),
        ("ledger_evidence", "idx, salt, body", f"{SIZE}, '', ''"),
        ("ledger_hashes", "level, idx, hash", "8, 0, ''"),
    ],
)
def test_I10_a_row_that_waits_where_the_broker_will_write_is_an_alarm(
    filled: LedgerStore,
    intruder: Engine,
    caplog: pytest.LogCaptureFixture,
    table: str,
    columns: str,
    values: str,
) -> None:
    run(intruder, f"INSERT INTO {table} ({columns}) VALUES ({values})")
    whole = replace(entry(), evidence=b"e", evidence_salt=b"s" * 32)
    with caplog.at_level(logging.CRITICAL, "broker.alarm"), pytest.raises(IntegrityFailure):
        filled.append(draft(entries=(whole, *(entry() for _ in range(250)))))
    assert "broker.alarm" in {record.name for record in caplog.records}
    assert count(intruder, "ledger_entries") == SIZE
    run(intruder, f"DELETE FROM {table} WHERE {'level = 8' if table == 'ledger_hashes' else f'idx = {SIZE}'}")
    filled.append(draft())
    assert check_ledger(filled) == SIZE + 1


def test_I10_a_missing_last_entry_is_not_written_over(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    run(intruder, f"DELETE FROM ledger_entries WHERE idx = {SIZE - 1}")
    refused(filled, intruder, caplog)


@pytest.mark.parametrize(
    "change",
    [
        "size = size - 1",
        "size = size + 1",
        "size = 9007199254740992",
        "state_epoch = state_epoch - 1",
        "state_epoch = state_epoch + 1",
        "root = :other",
        "frontier = :other",
        "tail_mac = :other",
        "tail_mac = ''",
    ],
)
def test_I10_a_tail_that_was_edited_is_refused(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    values = {"other": b"x" * 32} if ":other" in change else {}
    run(intruder, f"UPDATE ledger_tail SET {change}", **values)
    refused(filled, intruder, caplog)
    with pytest.raises(IntegrityFailure), filled.view():
        pass
    with filled.reader() as reader:
        assert len(list(reader.entries(0, 99))) == SIZE
        with pytest.raises(IntegrityFailure):
            reader.tail()


def saved_tail(intruder: Engine) -> dict[str, object]:
    with intruder.begin() as connection:
        return dict(connection.execute(text("SELECT * FROM ledger_tail")).mappings().one())


def restore_tail(intruder: Engine, tail: dict[str, object]) -> None:
    names = [name for name in tail if name != "id"]
    run(intruder, "UPDATE ledger_tail SET " + ", ".join(f"{name} = :{name}" for name in names), **tail)


def test_I10_an_older_tail_of_our_own_is_refused(
    filled: LedgerStore, intruder: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    older = saved_tail(intruder)
    filled.append(draft())
    restore_tail(intruder, older)
    refused(filled, intruder, caplog)


def test_I10_a_whole_ledger_that_went_back_is_refused_by_who_saw_more(
    filled: LedgerStore, intruder: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    older = saved_tail(intruder)
    filled.append(draft())
    filled.keep_head(SIZE + 1, "note")
    for table in ("ledger_entries", "ledger_index"):
        run(intruder, f"DELETE FROM {table} WHERE idx >= {SIZE}")
    restore_tail(intruder, older)
    other = open_store(database_url)
    refused(other, intruder, caplog)  # a kept tree head is larger
    run(intruder, "DELETE FROM ledger_heads")
    with pytest.raises(RollbackDetected):  # and this process has seen it itself
        filled.append(draft())
    with pytest.raises(IntegrityFailure):
        other.keep_head(SIZE + 1, "note")
    other.close()


def test_I10_a_ledger_that_was_emptied_does_not_begin_again(
    filled: LedgerStore, intruder: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for table in ("ledger_tail", "ledger_entries", "ledger_index"):
        run(intruder, f"DELETE FROM {table}")
    filled_with_others = count(intruder, "requests") + count(intruder, "ledger_hashes")
    assert filled_with_others == 0
    run(intruder, "INSERT INTO meters (holder, opened_bytes) VALUES ('user:ana', 1)")
    other = open_store(database_url)
    with pytest.raises(IntegrityFailure):
        other.initialize()
    refused(other, intruder, caplog)
    other.close()


# -- what the auditor finds ---------------------------------------------------------------------------


def audit(store: LedgerStore, heads: list[TreeHead], *, search: bool = True) -> Verdict:
    with store.reader() as reader:
        auditor = Auditor(heads=heads, stored_hashes=reader.hashes, full=True)
        rows = reader.index_rows(0, 1 << 40) if search else None
        auditor.feed(reader.entries(0, 1 << 40), index_rows=rows)
        return auditor.finish()


FORGED = build_entry(type="abandon", time=1, salt=bytes(16), upload="u_forged")


@pytest.mark.parametrize(
    ("statements", "index", "interval"),
    [
        (["UPDATE ledger_entries SET entry = :forged WHERE idx = 3"], 3, None),
        (["UPDATE ledger_entries SET leaf_hash = :leaf WHERE idx = 5"], 5, None),
        (["DELETE FROM ledger_entries WHERE idx = 7"], 7, None),
        (["DELETE FROM ledger_entries WHERE idx = 299"], 299, None),
        (["INSERT INTO ledger_entries (idx, entry, leaf_hash) VALUES (300, :forged, :other)"], 300, None),
        (
            [
                "UPDATE ledger_entries SET idx = -1 WHERE idx = 8",
                "UPDATE ledger_entries SET idx = 8 WHERE idx = 9",
                "UPDATE ledger_entries SET idx = 9 WHERE idx = -1",
            ],
            None,
            (0, 100),
        ),
        (["UPDATE ledger_entries SET entry = :forged, leaf_hash = :leaf WHERE idx = 150"], None, (100, 200)),
        (["UPDATE ledger_index SET purpose = 'another' WHERE idx = 11"], 11, None),
        (["DELETE FROM ledger_index WHERE idx = 12"], 12, None),
        (["UPDATE ledger_hashes SET hash = :leaf"], 0, None),
    ],
    ids=["entry", "hash", "gap", "end", "insert", "swap", "rewrite", "search", "search-gap", "node"],
)
def test_I10_a_changed_row_is_named(
    caplog: pytest.LogCaptureFixture,
    store: LedgerStore,
    intruder: Engine,
    statements: list[str],
    index: int | None,
    interval: tuple[int, int] | None,
) -> None:
    heads = []
    log = sample_log(300)
    for start in range(0, 300, 100):
        made = [NewEntry(data=d, index=index_row(parse_entry(d))) for d in log[start : start + 100]]
        tail = store.append(draft(entries=tuple(made))).tail
        heads.append(TreeHead(origin="log.example", size=tail.size, root=tail.root))
    assert audit(store, heads).ok
    assert caplog.records == []
    values = {"forged": FORGED, "leaf": merkle.leaf_hash(FORGED), "other": b"h" * 32}
    for statement in statements:
        run(intruder, statement, **{name: value for name, value in values.items() if f":{name}" in statement})
    # Whoever rewrites entries with their hashes can rewrite the search rows as well.
    verdict = audit(store, heads, search=index is not None)
    assert not verdict.ok
    assert (verdict.first_bad_index, verdict.first_bad_interval) == (index, interval), verdict.problems


def test_I10_a_tail_under_another_integrity_key_is_refused(filled: LedgerStore, database_url: str) -> None:
    other = open_store(database_url, key=b"another key of thirty-two bytes.")
    other.initialize()
    with pytest.raises(IntegrityFailure):
        other.append(draft())
    with pytest.raises(IntegrityFailure), other.view():
        pass
    other.close()
    assert filled.append(draft()).index == SIZE
