"""I10 against a running broker: whatever an administrator of the database changes, an auditor finds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.ledger.merkle import leaf_hash
from tests.e2e.running import Stack, User, write_tree

TABLES = ("ledger_entries", "ledger_index")


@pytest.fixture(scope="module")
def own(new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A stack with a little history, and no triggers left to stop its administrator."""
    found = new_stack("--workers", "1")
    pub = found.add("pub", "--role", "publisher", "--group", "acme")
    ana = found.add("ana", "--role", "engineer", "--group", "acme")
    found.add("aud", "--role", "auditor")
    folder = tmp_path_factory.mktemp("history")
    pub.cli("put", write_tree(folder / "t", {"a.bin": b"a" * 1000}), "acme/a@v1")
    for at in range(3):
        ana.cli("get", "acme/a@v1", folder / f"out{at}", "--purpose", f"reading {at}")
    for name, table in found.sql("SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'"):
        if table in TABLES:
            found.sql(f'DROP TRIGGER "{name}"')
    return found


@pytest.fixture(scope="module")
def aud(own: Stack) -> User:
    return User(name="aud", stack=own)


@pytest.fixture
def as_it_was(own: Stack, aud: User) -> Iterator[None]:
    """The rows that a test changes are put back; what the broker itself added meanwhile stays."""
    saved = {table: own.sql(f"SELECT * FROM {table}") for table in TABLES}
    size = own.size()
    yield
    with contextlib.closing(sqlite3.connect(own.database, timeout=30)) as connection, connection:
        for table, rows in saved.items():
            connection.execute(f"DELETE FROM {table} WHERE idx < ?", (size,))
            marks = ",".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True


def verify(aud: User, *options: str) -> dict[str, Any]:
    done = aud.cli("ledger", "verify", *options, "-o", "json", expect=6)
    found: dict[str, Any] = done.json()
    assert found["ok"] is False
    return found


def grants(own: Stack) -> list[int]:
    return [at for at, entry in enumerate(own.entries()) if entry["type"] == "grant"]


def entry_of(own: Stack, index: int) -> bytes:
    return bytes(own.sql("SELECT entry FROM ledger_entries WHERE idx = ?", index)[0][0])


@pytest.mark.usefixtures("as_it_was")
class TestOneChange:
    def test_another_principal(self, own: Stack, aud: User) -> None:
        index = grants(own)[1]
        changed = entry_of(own, index).replace(b"user:ana", b"user:bob")
        own.sql("UPDATE ledger_entries SET entry = ? WHERE idx = ?", changed, index)
        assert verify(aud)["first_bad_index"] == index
        # Neither is the changed entry shown as if it were true.
        assert aud.cli("ledger", "show", index, expect=6).out == ""
        text = aud.cli("ledger", "verify", expect=6)
        assert str(index) in text.out + text.err

    @pytest.mark.parametrize("bit", [0, 77, 300])
    def test_one_bit(self, own: Stack, aud: User, bit: int) -> None:
        index = grants(own)[bit % 3]
        data = bytearray(entry_of(own, index))
        data[bit // 8] ^= 1 << bit % 8
        own.sql("UPDATE ledger_entries SET entry = ? WHERE idx = ?", bytes(data), index)
        assert verify(aud)["first_bad_index"] == index

    def test_a_stored_hash(self, own: Stack, aud: User) -> None:
        index = grants(own)[0]
        own.sql("UPDATE ledger_entries SET leaf_hash = ? WHERE idx = ?", bytes(32), index)
        assert verify(aud)["first_bad_index"] == index

    def test_a_row_removed(self, own: Stack, aud: User) -> None:
        index = grants(own)[1]
        own.sql("DELETE FROM ledger_entries WHERE idx = ?", index)
        assert verify(aud)["first_bad_index"] == index

    def test_the_last_rows_removed(self, own: Stack, aud: User) -> None:
        size = own.size()
        own.sql("DELETE FROM ledger_entries WHERE idx >= ?", size - 3)
        found = verify(aud)
        assert found.get("first_bad_index", found.get("first_bad_interval", [None])[0]) is not None

    def test_two_rows_swapped(self, own: Stack, aud: User) -> None:
        first, second, _ = grants(own)
        rows = {
            at: own.sql("SELECT entry, leaf_hash FROM ledger_entries WHERE idx = ?", at)[0]
            for at in (first, second)
        }
        own.sql("UPDATE ledger_entries SET entry = ?, leaf_hash = ? WHERE idx = ?", *rows[first], second)
        own.sql("UPDATE ledger_entries SET entry = ?, leaf_hash = ? WHERE idx = ?", *rows[second], first)
        found = verify(aud)
        assert _covers(found, first)

    def test_a_row_rewritten_with_its_hash(self, own: Stack, aud: User) -> None:
        """Consistent in itself: only signed heads know, so an interval between two of them is named."""
        index = grants(own)[1]
        changed = entry_of(own, index).replace(b"user:ana", b"user:bob")
        own.sql(
            "UPDATE ledger_entries SET entry = ?, leaf_hash = ? WHERE idx = ?",
            changed,
            leaf_hash(changed),
            index,
        )
        found = verify(aud)
        assert "first_bad_index" not in found
        start, stop = found["first_bad_interval"]
        assert start <= index < stop

    def test_a_row_that_the_broker_did_not_write(self, own: Stack, aud: User) -> None:
        aud.cli("ledger", "verify")
        head = aud.cli("ledger", "checkpoint").out
        size = own.size()
        forged = entry_of(own, grants(own)[0])
        own.sql("INSERT INTO ledger_entries VALUES (?, ?, ?)", size, forged, leaf_hash(forged))
        try:
            assert verify(aud)["first_bad_index"] == size
            # It is never signed, and nothing is recorded, so nothing released, after it.
            assert aud.cli("ledger", "checkpoint").out == head
            ana = User(name="ana", stack=own)
            ana.cli("get", "acme/a@v1", own.home / "never", expect=6)
            assert not (own.home / "never").exists()
            assert own.size() == size + 1
        finally:
            own.sql("DELETE FROM ledger_entries WHERE idx = ?", size)

    def test_the_search_index(self, own: Stack, aud: User) -> None:
        """Entries are untouched, but a search would no longer find ana's read."""
        index = grants(own)[2]
        own.sql("UPDATE ledger_index SET principal = 'user:bob' WHERE idx = ?", index)
        assert aud.cli("ledger", "verify", "-o", "json").json()["ok"] is True
        assert verify(aud, "--full")["first_bad_index"] == index

    def test_a_search_row_removed(self, own: Stack, aud: User) -> None:
        index = grants(own)[2]
        own.sql("DELETE FROM ledger_index WHERE idx = ?", index)
        assert verify(aud, "--full")["first_bad_index"] == index


def _covers(found: dict[str, Any], index: int) -> bool:
    if "first_bad_index" in found:
        return bool(found["first_bad_index"] == index)
    start, stop = found["first_bad_interval"]
    return bool(start <= index < stop)


# -- an older database ------------------------------------------------------------------------------------


def copy_database(own: Stack, to: Path) -> None:
    """A backup, as SQLite makes one."""
    with (
        contextlib.closing(sqlite3.connect(own.database)) as source,
        contextlib.closing(sqlite3.connect(to)) as copy,
    ):
        source.backup(copy)


def restore(own: Stack, backup: Path) -> None:
    for path in own.home.glob("broker.db*"):
        path.unlink()
    shutil.copy(backup, own.home / "broker.db")


def test_an_older_database_is_noticed_by_everybody(new_stack: Callable[..., Stack], tmp_path: Path) -> None:
    own = new_stack("--workers", "1")
    pub = own.add("pub", "--role", "publisher", "--group", "acme")
    pub.cli("put", write_tree(tmp_path / "t", {"a.bin": b"a" * 1000}), "acme/a@v1")
    copy_database(own, tmp_path / "older.db")
    pub.cli("get", "acme/a@v1", tmp_path / "secret-read", "--purpose", "what somebody wants to hide")
    assert own.stop() == 0
    restore(own, tmp_path / "older.db")
    # The stack keeps its signed tree heads outside of the database: it does not serve an older one.
    with pytest.raises(AssertionError, match="did not start"):
        own.start()
    own.kill()
    assert "does not extend" in own.log.read_text() + (own.home / "server.log").read_text()
    # Without those, whoever was there before still knows.
    heads = own.home / "heads"
    shutil.move(heads, tmp_path / "heads-moved-away")
    own.start()
    seen = (pub.profile / "treehead").read_text()
    refused = pub.cli("get", "acme/a@v1", tmp_path / "again", expect=6)
    assert "tree head that the caller holds" in refused.err
    assert (pub.profile / "treehead").read_text() == seen, "evidence is kept"
    assert not (tmp_path / "again").exists()


def test_rows_that_the_broker_did_not_write_stop_it(new_stack: Callable[..., Stack], tmp_path: Path) -> None:
    """I19: a role that was given in the database alone is a denial, not a role."""
    own = new_stack("--workers", "1")
    eve = own.add("eve", "--role", "engineer")
    pub = own.add("pub", "--role", "publisher", "--group", "acme")
    pub.cli("put", write_tree(tmp_path / "t", {"a.bin": b"a"}), "acme/a@v1")
    (row,) = own.sql("SELECT roles, groups FROM principals WHERE id = 'user:eve'")
    (other,) = own.sql("SELECT groups FROM principals WHERE id = 'user:pub'")
    assert row[1] != other[0]
    own.sql("UPDATE principals SET groups = ? WHERE id = 'user:eve'", other[0])
    assert "MAC" in eve.cli("get", "acme/a@v1", tmp_path / "out", expect=6).err
    assert not (tmp_path / "out").exists()
    own.sql("UPDATE principals SET groups = ? WHERE id = 'user:eve'", row[1])
    eve.cli("get", "acme/a@v1", tmp_path / "out", expect=5)


def test_the_digests_in_entries_are_those_of_the_records(own: Stack) -> None:
    """What an entry says that was selected is in a record, and is what was selected."""
    digests = {entry["selection"]["digest"] for entry in own.entries() if "selection" in entry}
    records = {row[0]: bytes(row[1]) for row in own.sql("SELECT digest, body FROM ledger_records")}
    assert digests
    for digest in digests:
        assert "sha256:" + hashlib.sha256(records[digest]).hexdigest() == digest
        assert json.loads(records[digest])["artifact"] == "acme/a"
