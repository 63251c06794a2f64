"""The same stack on PostgreSQL: the database changes, nothing else does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests import postgres
from tests.e2e.running import MIB, Stack, User, claimed, noise, read_tree, until, write_tree
from tests.e2e.wire import grant_body, sign

pytestmark = pytest.mark.postgres
FILES = {"a.bin": noise(24 * MIB, "postgres"), "b.txt": b"b", "empty": b""}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres.new_database() as found:
        yield postgres.text_of(found)


@pytest.fixture(scope="module")
def own(url: str, new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    stack = new_stack("--workers", "2", "--database-url", url, BROKER_LEASE_WINDOW=str(4 * MIB))
    pub = stack.add("pub", "--role", "publisher", "--group", "acme")
    stack.add("eve", "--role", "engineer")
    stack.add("aud", "--role", "auditor")
    tree = write_tree(tmp_path_factory.mktemp("pg") / "t", FILES)
    pub.cli("put", tree, "acme/a@v1", "--extent-size", "1MiB")
    return stack


@pytest.fixture
def pub(own: Stack) -> User:
    return User(name="pub", stack=own)


@pytest.fixture
def aud(own: Stack) -> User:
    return User(name="aud", stack=own)


def run(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


def test_every_byte(pub: User, tmp_path: Path) -> None:
    pub.cli("get", "acme/a@v1", tmp_path / "out")
    assert read_tree(tmp_path / "out") == FILES


def test_a_killed_download_resumes(pub: User, tmp_path: Path) -> None:
    child = pub.begin("get", "acme/a@v1", tmp_path / "out", "-j", "1")
    until(lambda: claimed(tmp_path / "out") > 4 or child.poll() is not None, what="some extents")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    done = pub.cli("get", "acme/a@v1", tmp_path / "out", "-o", "json").json()
    assert 0 < done["fetched_bytes"] < 24 * MIB
    assert read_tree(tmp_path / "out") == FILES


def test_refusals_are_the_same(own: Stack, aud: User, tmp_path: Path) -> None:
    eve = User(name="eve", stack=own)
    eve.cli("get", "acme/a@v1", tmp_path / "out", expect=5)
    aud.cli("get", "acme/a@v1", tmp_path / "out", expect=3)
    rows = aud.cli("ledger", "search", "decision:deny", "-o", "json").json()["entries"]
    assert [row["principal"] for row in rows][-2:] == ["user:eve", "user:aud"]


def test_a_captured_request_works_once(pub: User) -> None:
    with pub.client() as client:
        signed = sign(client, "POST", "/v1/grants", grant_body("acme/a@v1"))
    assert sorted(signed.send().status for _ in range(6)) == [200] + [401] * 5


def test_a_restart_keeps_everything(own: Stack, pub: User, aud: User, url: str, tmp_path: Path) -> None:
    assert own.stop() == 0
    own.start()
    assert url.rpartition("@")[2].partition("?")[0].rpartition("/")[2] in own.ready["database"]
    pub.cli("get", "acme/a@v1", tmp_path / "out")
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True


def test_a_changed_row_is_named(own: Stack, aud: User, url: str) -> None:
    rows = aud.cli("ledger", "search", "type:grant actor:pub", "-o", "json").json()["entries"]
    index = rows[0]["index"]
    # The triggers of the ledger's tables refuse it to everybody who does not switch them off.
    with pytest.raises(psycopg.Error):
        run(url, f"UPDATE ledger_entries SET entry = '' WHERE idx = {index}")
    with pytest.raises(psycopg.Error):
        run(url, f"DELETE FROM ledger_entries WHERE idx = {index}")
    run(url, "ALTER TABLE ledger_entries DISABLE TRIGGER ALL")
    run(
        url,
        "UPDATE ledger_entries SET entry = convert_to(replace(convert_from(entry, 'UTF8'),"
        f" 'user:pub', 'user:bob'), 'UTF8') WHERE idx = {index}",
    )
    found = aud.cli("ledger", "verify", "-o", "json", expect=6).json()
    assert found["first_bad_index"] == index
