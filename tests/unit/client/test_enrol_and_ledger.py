"""Enrolment, administration and the auditor's questions, against the real server."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from broker.client.enrol import enrol
from broker.client.ledger import check_verdict
from broker.client.sdk import Client
from broker.errors import (
    ConfigurationError,
    Denied,
    EnrolmentRefused,
    IntegrityFailure,
    InvalidRequest,
    NotFound,
    RollbackDetected,
)
from broker.identity import enrolment
from broker.ledger import note
from tests.unit.client.conftest import Stack, make_tree


@pytest.fixture
def admin(stack: Stack) -> Client:
    return stack.client(stack.world.admin, "admin")


def test_login(stack: Stack, admin: Client, tmp_path: Path) -> None:
    made = admin.admin.add_principal("ben", groups=["nlp"])
    assert made["id"] == "user:ben"
    (tmp_path / "ben").mkdir()
    client = Client.login(stack.url + "/", made["enrolment_code"], folder=tmp_path / "ben")
    assert client.whoami()["principal"] == {
        "id": "user:ben",
        "roles": ["engineer"],
        "groups": ["nlp"],
        "disabled": False,
    }
    assert (tmp_path / "ben/treehead").exists()
    with pytest.raises(ConfigurationError, match="already"):
        enrol(tmp_path / "ben", server=stack.url, code=made["enrolment_code"])
    with pytest.raises(EnrolmentRefused):
        enrol(tmp_path / "again", server=stack.url, code=made["enrolment_code"])
    assert not (tmp_path / "again/config.toml").exists()


def test_a_server_with_another_log_is_refused_before_anything_is_sent(stack: Stack, tmp_path: Path) -> None:
    seen: list[str] = []
    inner = stack._wsgi

    def watch(environ: dict[str, str], start: object) -> object:
        seen.append(environ["PATH_INFO"])
        return inner(environ, start)  # type: ignore[arg-type]

    stack._wsgi = watch  # type: ignore[assignment]
    code = enrolment.build_code(id=bytes(8), secret=bytes(16), vkey="another+log")
    with pytest.raises(IntegrityFailure, match="not the one in the enrolment code"):
        enrol(tmp_path / "p", server=stack.url, code=code)
    assert seen == ["/.well-known/oauth-authorization-server"]
    assert not (tmp_path / "p/key.jwk").exists()


def test_junk_codes_and_urls(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        enrol(tmp_path / "p", server="http://127.0.0.1:9", code="bke1.x")
    code = enrolment.build_code(id=bytes(8), secret=bytes(16), vkey="x")
    with pytest.raises(ConfigurationError):
        enrol(tmp_path / "p", server="http://broker.example", code=code)
    assert not (tmp_path / "p").exists()


def test_administration(stack: Stack, admin: Client) -> None:
    admin.admin.add_principal("workload:github/acme/train", roles=["workload"])
    assert admin.admin.show_principal("workload:github/acme/train")["roles"] == ["workload"]
    admin.admin.set_principal("workload:github/acme/train", disabled=True)
    assert admin.admin.show_principal("workload:github/acme/train")["disabled"]
    assert admin.admin.new_code("user:admin")["enrolment_code"].startswith("bke1.")
    admin.admin.set_collection("nlp", readers=["nlp"], publishers=["nlp"])
    assert any(row["name"] == "nlp" for row in admin.admin.list_collections())
    policies = admin.admin.show_policies()
    assert policies["bundle"].startswith("sha256:")
    assert admin.admin.apply_policies(policies["files"])["bundle"] == policies["bundle"]
    with pytest.raises(InvalidRequest):
        admin.admin.revoke("everything", "x")
    assert admin.admin.inspect_token()["active"]


@pytest.fixture
def auditor(stack: Stack, publisher: Client, tmp_path: Path) -> Client:
    publisher.publish(make_tree(tmp_path / "src", {"a": b"a"}), "acme/llama@v1")
    return stack.add("olga", roles=("auditor",))


def test_an_auditors_day(stack: Stack, auditor: Client, reader: Client, tmp_path: Path) -> None:
    found = reader.fetch("acme/llama@v1", tmp_path / "out")
    page = auditor.ledger.search(f"actor:{reader.profile.principal} type:grant")
    [row] = page["entries"]
    assert row["index"] == found.index
    shown = auditor.ledger.show(found.index)
    assert shown["entry"] == found.entry
    assert shown["record"]["schema"] == "broker/selection/v1"
    assert auditor.ledger.prove(found.index).startswith("c2sp.org/tlog-proof@v1\n")
    assert auditor.ledger.checkpoint().startswith(stack.world.house.log.origin)
    assert [r["index"] for r in auditor.ledger.iter_search(limit=3)] == [0, 1, 2]
    verdict = auditor.ledger.verify(full=True)
    assert verdict.ok, verdict.problems
    check_verdict(verdict)
    with pytest.raises(NotFound):
        auditor.ledger.show(10_000)
    with pytest.raises(Denied):
        reader.ledger.search()


def test_a_head_that_came_with_nothing_to_link_it_is_proven(stack: Stack, auditor: Client) -> None:
    """A manifest's receipts stand under the newest head, whatever was recorded since the last answer."""
    auditor.can("acme/llama@v1")
    before = (auditor.profile.folder / "treehead").read_text()
    stack.world.add("somebody-else")
    assert auditor.info("acme/llama@v1").manifest.version == "v1"
    assert (auditor.profile.folder / "treehead").read_text() != before


def edit(stack: Stack, *statements: str) -> None:
    with sqlite3.connect(stack.world.path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)


def test_a_changed_entry_is_named(stack: Stack, auditor: Client) -> None:
    edit(stack, "UPDATE ledger_entries SET entry = entry || x'20' WHERE idx = 3")
    verdict = auditor.ledger.verify()
    assert not verdict.ok
    assert verdict.first_bad_index == 3
    assert verdict.as_json()["first_bad_index"] == 3
    with pytest.raises(IntegrityFailure, match="entry 3"):
        check_verdict(verdict)


def test_a_false_search_row_is_found(stack: Stack, auditor: Client) -> None:
    edit(stack, "UPDATE ledger_index SET principal = 'user:eve' WHERE idx = 2")
    assert auditor.ledger.verify().ok
    verdict = auditor.ledger.verify(full=True)
    assert not verdict.ok
    assert verdict.first_bad_index == 2


def test_a_restored_database_is_noticed(stack: Stack, auditor: Client, reader: Client) -> None:
    """A broker that went back in time is refused by whoever saw more (I10)."""
    path = reader.profile.folder / "treehead"
    path.write_text(_later_head(stack))
    kept = path.read_text()
    (auditor.profile.folder / "treehead").write_text(kept)
    verdict = auditor.ledger.verify()
    assert not verdict.ok
    assert verdict.first_bad_index == verdict.size
    with pytest.raises(RollbackDetected):
        reader.can("acme/llama@v1")
    assert path.read_text() == kept
    # Whoever did not see more is refused too, from now on.
    (auditor.profile.folder / "treehead").unlink()
    with pytest.raises(RollbackDetected):
        auditor.can("acme/llama@v1")


def _later_head(stack: Stack) -> str:
    """A head that this log once signed, and that its database does not reach any more."""
    log = stack.world.house.log
    head = note.TreeHead(origin=log.origin, size=10_000, root=bytes(32))
    return note.sign_head(head, note.parse_vkey(log.vkey), log.sign)
