"""Who may not, does not; is told why as far as they may know; and it is on record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import Stack, User, write_tree
from tests.e2e.wire import grant_body, sign


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory, pub: User) -> str:
    tree = write_tree(
        tmp_path_factory.mktemp("small") / "t", {"weights.bin": b"w" * 1000, "config.json": b"{}"}
    )
    pub.cli("put", tree, "acme/open@v1")
    pub.cli("put", tree, "acme/critical@v1", "--label", "tier=critical")
    return "acme/open@v1"


def denials(stack: Stack, who: User, since: int) -> list[dict[str, Any]]:
    return [e for e in stack.entries()[since:] if e["type"] == "denial" and e.get("principal") == who.id]


def test_unknown_and_invisible_are_one_answer_and_both_recorded(
    stack: Stack, ref: str, eve: User, tmp_path: Path
) -> None:
    size = stack.size()
    invisible = eve.cli("get", ref, tmp_path / "a", expect=5)
    unknown = eve.cli("get", "acme/absent@v1", tmp_path / "b", expect=5)
    # But for the padding before "(exit 5)", which follows the length of the name.
    assert invisible.err.replace("acme/open", "acme/absent").split() == unknown.err.split()
    assert not (tmp_path / "a").exists()
    found = denials(stack, eve, size)
    assert [entry["artifact"] for entry in found] == ["acme/open", "acme/absent"]
    # On the wire too: nothing but the name that was asked for and the request's id differs.
    with eve.client() as client:
        bodies = []
        for name in (ref, "acme/absent@v1"):
            answer = sign(client, "POST", "/v1/grants", grant_body(name)).send()
            assert answer.status == 404
            bodies.append({k: v for k, v in answer.json().items() if k != "request_id"})
            bodies[-1] = {k: str(v).replace(name, "REF") for k, v in bodies[-1].items()}
        assert bodies[0].keys() == bodies[1].keys()
        assert {k: v for k, v in bodies[0].items() if k not in ("receipt", "consistency")} == {
            k: v for k, v in bodies[1].items() if k not in ("receipt", "consistency")
        }


@pytest.mark.parametrize("words", [("info",), ("ls",), ("can",), ("cat",)])
def test_a_stranger_sees_nothing_anywhere(ref: str, eve: User, words: tuple[str, ...]) -> None:
    target = {"ls": "acme/open", "cat": f"{ref}/config.json"}.get(words[0], ref)
    done = eve.cli(*words, target, expect=5)
    assert "weights.bin" not in done.out + done.err
    assert "acme" not in eve.cli("ls").out


def test_a_critical_version_names_its_policy(stack: Stack, ref: str, ana: User, tmp_path: Path) -> None:
    size = stack.size()
    done = ana.cli("get", "acme/critical@v1", tmp_path / "out", expect=3)
    lines = done.err.splitlines()
    assert re.fullmatch(r"error: read of acme/critical@v1 is denied +\(exit 3\)", lines[0])
    assert lines[1] == '  why:  policy "critical-needs-approval" (policies/tiers.cedar)'
    assert lines[2].startswith("  next: ")
    (entry,) = denials(stack, ana, size)
    assert entry["decision"]["effect"] == "deny"
    assert entry["decision"]["policies"] == ["critical-needs-approval"]
    assert not (tmp_path / "out").exists()


def test_roles_that_see_do_not_read(ref: str, stack: Stack, aud: User, tmp_path: Path) -> None:
    for who in (aud, stack.admin):
        assert "open" in who.cli("ls", "acme").out
        who.cli("get", ref, tmp_path / "out", expect=3)
    assert not (tmp_path / "out").exists()


def test_an_engineer_does_not_publish_audit_or_administer(ref: str, ana: User, tmp_path: Path) -> None:
    write_tree(tmp_path / "mine", {"a": b"a"})
    ana.cli("put", tmp_path / "mine", "acme/mine@v1", expect=3)
    ana.cli("put", tmp_path / "mine", "new/mine@v1", expect=3)
    for words in (
        ("ledger", "search"),
        ("ledger", "verify"),
        ("ledger", "show", "0"),
        ("admin", "principal", "ls"),
        ("admin", "principal", "set", "ana", "--role", "admin"),
        ("admin", "collection", "set", "acme", "--readers", "ana"),
        ("admin", "revoke", "--principal", "user:pub"),
    ):
        assert "error:" in ana.cli(*words, expect=3).err, words


def test_a_dry_run_says_why_and_is_recorded(stack: Stack, ref: str, ana: User, aud: User) -> None:
    size = stack.size()
    assert ana.cli("can", ref, "-o", "json").json()["decision"]["effect"] == "allow"
    found = ana.cli("can", "acme/critical@v1", "-o", "json", expect=3).json()
    assert found["decision"]["policies"] == ["critical-needs-approval"]
    assert aud.cli("can", ref, "--as", "ana", "-o", "json").json()["principal"] == "user:ana"
    ana.cli("can", ref, "--as", "pub", expect=3)
    assert stack.size() >= size + 3


def test_wrong_usage_is_2(ana: User, ref: str, tmp_path: Path) -> None:
    for words in (
        ("get",),
        ("get", "no-slash"),
        ("get", "acme/../x"),
        ("get", ref, tmp_path / "o", "-j", "0"),
        ("get", ref, tmp_path / "o", "--nope"),
        ("put", tmp_path / "absent", "acme/x@v1"),
        ("put", tmp_path, "acme/no-version"),
    ):
        assert ana.cli(*words, expect=2).out == ""


def test_without_a_profile_it_says_how_to_get_one(stack: Stack, tmp_path: Path) -> None:
    nobody = User(name="nobody", stack=stack)
    assert "broker login" in nobody.cli("whoami", expect=2).err


def test_a_code_enrols_one_key_once(stack: Stack, tmp_path: Path) -> None:
    once = stack.add("once", "--role", "engineer")
    again = User(name="again", stack=stack)
    again.cli("login", "--server", stack.url, "--code", once.code, expect=4)
    wrong = once.code[:20] + ("a" if once.code[20] != "a" else "b") + once.code[21:]
    assert (
        User(name="wrong", stack=stack)
        .cli("login", "--server", stack.url, "--code", wrong, expect=4)
        .err.startswith("error:")
    )
    assert not (again.profile / "config.toml").exists()
    once.cli("login", "--server", stack.url, "--code", once.code, expect=2)


def test_a_revoked_token_key_and_principal(stack: Stack, ref: str) -> None:
    who = stack.add("leaver", "--role", "engineer", "--group", "acme")
    before = who.cli("whoami", "-o", "json").json()
    who.cli("token", "revoke", before["token"]["id"])
    # The client asks for a new one by itself: the token died, not the key.
    assert who.cli("whoami", "-o", "json").json()["token"]["id"] != before["token"]["id"]
    stack.admin.cli("admin", "revoke", "--principal", who.id)
    assert who.cli("whoami", expect=4).err.startswith("error:")


@pytest.mark.parametrize("purpose", ["\x1b[2J\x1b]0;owned\x07", "safe \u202e txet", "two\nlines"])
def test_a_purpose_that_could_steer_a_terminal_is_refused(
    stack: Stack, ref: str, ana: User, tmp_path: Path, purpose: str
) -> None:
    size = stack.size()
    done = ana.cli("get", ref, tmp_path / "out", "--purpose", purpose, expect=2)
    assert not set(purpose) & {"\x1b", "\u202e"} & set(done.out + done.err)
    assert stack.size() == size
