"""Who can, what can: the answers of the engine itself, page by page, on record, for auditors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.errors import Denied, InvalidRequest, NotFound, ScopeExceeded
from broker.services import reach
from tests.world import Person, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    pub = made.add("pub", roles=["publisher"], groups=["acme"])
    made.publish(pub, "acme/llama@v1", {"a.bin": b"a"})
    made.publish(pub, "acme/llama@v2", {"a.bin": b"b"}, labels={"tier": "critical"})
    made.publish(pub, "acme/phi@v1", {"a.bin": b"c"})
    made.add("ana", groups=["acme"])
    made.add("bob", groups=["other"])
    return made


@pytest.fixture
def aud(world: World) -> Person:
    return world.add("aud", roles=["auditor"])


def who(world: World, aud: Person, **asked: Any) -> dict[str, Any]:
    members = {"collection": "acme", "name": "llama", "version": "v1", "action": "read", **asked}
    return reach.who_can(world.house, world.request(aud, "GET"), **members)


def test_who_can_read_is_what_reading_decides(world: World, aud: Person) -> None:
    found = who(world, aud)
    effects = {row["principal"]: row["effect"] for row in found["principals"]}
    assert effects == {"user:ana": "allow", "user:pub": "allow"}
    assert all(row["policies"] for row in found["principals"])
    assert (found["version"], found["asked"], found["next_after"]) == ("v1", 5, None)


def test_without_a_version_it_is_the_newest_and_a_critical_one_is_nobodys(world: World, aud: Person) -> None:
    found = who(world, aud, version=None)
    assert (found["version"], found["asked"], found["principals"]) == ("v2", 5, [])


def test_who_can_describe_has_auditors_too(world: World, aud: Person) -> None:
    found = who(world, aud, action="describe")
    assert "user:aud" in {row["principal"] for row in found["principals"]}
    assert "user:bob" not in {row["principal"] for row in found["principals"]}


def test_pages_cover_everybody_once(world: World, aud: Person) -> None:
    whole = who(world, aud)["principals"]
    after, rows, asked = None, [], 0
    while True:
        page = who(world, aud, after=after, limit=2)
        rows += page["principals"]
        asked += page["asked"]
        after = page["next_after"]
        if after is None:
            break
    assert rows == whole
    assert asked == 5


def test_what_can_lists_the_newest_version_of_each_artifact(world: World, aud: Person) -> None:
    def ask(principal: str, **more: Any) -> dict[str, Any]:
        return reach.what_can(world.house, world.request(aud, "GET"), principal=principal, **more)

    found = {(row["artifact"], row["action"]): row["effect"] for row in ask("user:ana")["artifacts"]}
    assert found == {
        ("acme/llama", "describe"): "allow",
        ("acme/phi", "describe"): "allow",
        ("acme/phi", "read"): "allow",
    }
    assert ask("user:bob")["artifacts"] == []
    first = ask("user:ana", limit=1)
    assert (first["asked"], first["next_after"]) == (1, "acme/llama")
    second = ask("user:ana", limit=1, after="acme/llama")
    assert second["next_after"] is None
    assert first["artifacts"] + second["artifacts"] == ask("user:ana")["artifacts"]


def test_a_principal_that_is_disabled_reaches_nothing(world: World, aud: Person) -> None:
    world.revoke("principal", "user:ana")
    assert "user:ana" not in {row["principal"] for row in who(world, aud)["principals"]}


def test_the_question_is_on_record(world: World, aud: Person) -> None:
    who(world, aud)
    found = world.entry(world.size() - 1)
    assert (found["type"], found["principal"]) == ("audit-query", "user:aud")
    assert found["query"] == "search who-can read acme/llama@v1"


def test_only_auditors_ask(world: World, aud: Person) -> None:
    ana = world.add("eve", groups=["acme"])
    with pytest.raises(Denied):
        who(world, ana)
    aud.token = world.login(aud, [{"type": "ledger_access", "actions": ["read"]}])
    with pytest.raises(ScopeExceeded):
        who(world, aud)


def test_what_is_not_there_or_cannot_be_asked(world: World, aud: Person) -> None:
    for asked in ({"name": "none"}, {"collection": "none"}, {"version": "v9"}):
        with pytest.raises(NotFound):
            who(world, aud, **asked)
    for asked in ({"action": "publish"}, {"limit": 0}, {"limit": 1001}):
        with pytest.raises(InvalidRequest):
            who(world, aud, **asked)
    with pytest.raises(NotFound):
        reach.what_can(world.house, world.request(aud, "GET"), principal="user:nobody")
