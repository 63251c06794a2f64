"""Recorded decisions made again: the same answers by the same bundles, and what a candidate would change."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from broker.canonical import Json
from broker.errors import Denied, InvalidRequest
from broker.policy.bundle import build_bundle
from broker.policy.engine import PolicyEngine
from broker.services import erasing, policies, replaying
from tests.world import MIB, Person, World, policy_files

FORBID = '@id("no-evaluations")\nforbid(principal, action == Broker::Action::"read", resource);\n'
PERMIT = '@id("everybody")\npermit(principal, action == Broker::Action::"read", resource);\n'


@pytest.fixture
def auditor(world: World) -> Person:
    return world.add("aud", roles=["auditor"])


@pytest.fixture
def history(world: World, auditor: Person) -> dict[str, Person]:
    """Reads that were allowed and denied, a publish, administration, a refusal by scope."""
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(2 * MIB)})
    world.publish(pub, "acme/secret@v1", {"a": b"1"}, labels={"tier": "critical"})
    ana = world.add("ana", groups=["acme"])
    released = world.ask(ana, "acme/llama@v1")
    world.lease(ana, released.grant.id, (0, 0, 0))
    with pytest.raises(Denied):
        world.ask(ana, "acme/secret@v1")
    return {"ana": ana, "pub": pub}


def files_with(text: str) -> dict[str, str]:
    return {**{name: data.decode() for name, data in policy_files().items()}, "more.cedar": text}


def replay(world: World, auditor: Person, **asked: Any) -> Json:
    members: dict[str, Any] = {"files": None, "q": "", "since": None, "until": None, "after": None, **asked}
    return replaying.replay(world.house, world.request(auditor), **members)


def test_the_same_bundles_say_the_same(world: World, auditor: Person, history: dict[str, Person]) -> None:
    found = replay(world, auditor)
    assert found["findings"] == []
    assert found["flips"] == []
    assert found["bundle"] is None
    counts = found["counts"]
    assert counts["same"] > 5
    assert counts["decisions"] == sum(counts[name] for name in ("same", "not_policy", "no_inputs", "erased"))
    assert (counts["no_inputs"], counts["erased"]) == (0, 0)


def test_a_candidate_that_forbids_flips_what_was_allowed(
    world: World, auditor: Person, history: dict[str, Person]
) -> None:
    found = replay(world, auditor, files=files_with(FORBID), q="actor:ana")
    flips = {(row["type"], row["was"]["effect"], row["now"]["effect"]) for row in found["flips"]}
    assert flips == {("grant", "allow", "deny"), ("lease", "allow", "deny")}
    assert all(row["now"]["policies"] == ["no-evaluations"] for row in found["flips"])
    assert found["bundle"].startswith("sha256:")
    assert found["findings"] == []


def test_a_candidate_that_permits_flips_what_was_denied(
    world: World, auditor: Person, history: dict[str, Person]
) -> None:
    files = files_with(PERMIT)
    del files["tiers.cedar"]
    [flip] = replay(world, auditor, files=files, q="decision:deny")["flips"]
    assert (flip["artifact"], flip["was"]["effect"], flip["now"]["effect"]) == (
        "acme/secret",
        "deny",
        "allow",
    )
    assert flip["was"]["policies"] == ["critical-needs-approval"]


def test_nothing_is_applied(world: World, auditor: Person, history: dict[str, Person]) -> None:
    replay(world, auditor, files=files_with(FORBID))
    world.ask(history["ana"], "acme/llama@v1")


def test_an_older_decision_is_made_by_its_own_bundle(
    world: World, auditor: Person, history: dict[str, Person]
) -> None:
    policies.apply(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        files=files_with(FORBID),
        have=None,
    )
    with pytest.raises(Denied):
        world.ask(history["ana"], "acme/llama@v1")
    found = replay(world, auditor, q="actor:ana")
    assert (found["findings"], found["flips"]) == ([], [])


def test_another_answer_by_the_same_bundle_is_a_finding(
    world: World, auditor: Person, history: dict[str, Person]
) -> None:
    """As if the engine, or what is kept under a bundle's digest, were another by now."""
    other = build_bundle({name: text.encode() for name, text in files_with(FORBID).items()})
    [digest] = world.house.engines
    world.house.engines[digest] = PolicyEngine(other)
    found = replay(world, auditor, q="actor:ana")
    types = {world.entry(row["index"])["type"] for row in found["findings"]}
    assert types >= {"grant", "lease"}
    assert all("the same bundle says" in row["problem"] for row in found["findings"])


def test_pages_go_on_where_they_ended(
    world: World, auditor: Person, history: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replay(world, auditor)["counts"]
    monkeypatch.setattr("broker.limits.DEFAULT_PAGE", 3)
    monkeypatch.setattr("broker.services.replaying.PAGE_MS", 0)
    after, seen, pages = None, 0, 0
    while True:
        page = replay(world, auditor, after=after)
        seen, pages, after = seen + page["counts"]["same"], pages + 1, page["next_after"]
        if after is None:
            break
    assert pages > 2
    assert seen == whole["same"]


@pytest.mark.parametrize("column", ["body", "salt"])
def test_evidence_that_was_changed_is_a_finding(
    world: World, auditor: Person, history: dict[str, Person], column: str
) -> None:
    [index] = [at for at in range(world.size()) if world.entry(at)["type"] == "grant"]
    with sqlite3.connect(world.path) as database:
        for (name,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'ledger_evidence'"
        ).fetchall():
            database.execute(f"DROP TRIGGER {name}")
        [(was,)] = database.execute(f"SELECT {column} FROM ledger_evidence WHERE idx = ?", [index])
        changed = was[:-1] + bytes([was[-1] ^ 1])
        database.execute(f"UPDATE ledger_evidence SET {column} = ? WHERE idx = ?", [changed, index])
    database.close()
    for files in (None, files_with(PERMIT)):
        assert [row["index"] for row in replay(world, auditor, files=files)["findings"]] == [index]


def test_evidence_that_is_gone_without_an_erasure_is_a_finding(
    world: World, auditor: Person, history: dict[str, Person]
) -> None:
    with sqlite3.connect(world.path) as database:
        index = database.execute("SELECT max(idx) FROM ledger_evidence").fetchone()[0]
        while world.entry(index).get("decision", {}).get("bundle") is None:
            index -= 1
        database.execute("DELETE FROM ledger_evidence WHERE idx = ?", [index])
    database.close()
    assert index in [row["index"] for row in replay(world, auditor)["findings"]]


def test_erased_evidence_is_counted(world: World, auditor: Person, history: dict[str, Person]) -> None:
    before = replay(world, auditor, q="actor:ana")["counts"]
    world.clock.forward(1)
    erasing.erase(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        principal="user:ana",
        before=None,
        reason="asked for",
        have=None,
    )
    found = replay(world, auditor, q="actor:ana type:grant")
    assert found["findings"] == []
    assert (before["erased"], found["counts"]["erased"]) == (0, 1)


def test_only_auditors_ask_and_hostile_text_is_refused(
    world: World, auditor: Person, history: dict[str, Person]
) -> None:
    with pytest.raises(Denied):
        replay(world, history["ana"])
    with pytest.raises(InvalidRequest):
        replay(world, auditor, files={"a.cedar": "permit(" + "(" * 100_000})
    assert world.entry(world.size() - 1)["query"].startswith("search replay under a candidate")
