"""I16: an erasure is recorded once and first; whatever comes between, evidence is gone and proofs hold."""

from __future__ import annotations

import sqlite3

import pytest

from broker.canonical import format_time, parse_b64url
from broker.db.ledger_store import LedgerStore
from broker.errors import Denied, IntegrityFailure, InvalidRequest, LedgerUnavailable
from broker.ledger import entry as entries
from broker.ledger import merkle
from broker.services import erasing, evidence, folding
from tests.world import MIB, Person, World

DAY = 24 * 3600


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(MIB)})
    return world.add("ana", groups=["acme"])


def show(world: World, aud: Person, index: int) -> dict[str, object]:
    path = f"/v1/ledger/evidence/{index}"
    return evidence.show_evidence(world.house, world.request(aud, "GET", path), index)


def erase(world: World, who: Person, *, request_id: str | None = None, before: int | None = None) -> dict:
    return erasing.erase(
        world.house,
        world.request(who, "POST", "/v1/ledger/erasures"),
        request_id=request_id or world.uuid(),
        principal="user:ana",
        before=before,
        reason="asked for under GDPR, article 17",
        have=None,
    )


def _refuse(*_: object) -> int:
    raise LedgerUnavailable("the database cannot be written")


def stored(world: World) -> set[int]:
    with sqlite3.connect(world.path) as db:
        return {index for (index,) in db.execute("SELECT idx FROM ledger_evidence")}


def of_ana(world: World) -> set[int]:
    with sqlite3.connect(world.path) as db:
        return {i for (i,) in db.execute("SELECT idx FROM ledger_index WHERE principal = 'user:ana'")}


def test_I16_evidence_is_what_the_entry_commits_to(world: World, ana: Person) -> None:
    aud = world.add("aud", roles=["auditor"])
    index = world.ask(ana, "acme/llama@v1").recorded.index
    found = show(world, aud, index)
    entry = entries.parse_entry(parse_b64url(found["data"]))
    body = parse_b64url(found["evidence"])
    assert entries.evidence_commitment(parse_b64url(found["salt"]), body) == entry["evidence"]
    assert entries.record_digest(parse_b64url(found["record"])) == entry["selection"]["digest"]
    assert found["erased_by"] is None
    read = world.entry(world.size() - 1)
    assert (read["type"], read["principal"], read["query"]) == (
        "audit-query",
        "user:aud",
        f"read evidence {index}",
    )


def test_I16_only_auditors_see_evidence(world: World, ana: Person) -> None:
    index = world.ask(ana, "acme/llama@v1").recorded.index
    with pytest.raises(Denied):
        show(world, ana, index)


def test_I16_erased_evidence_is_gone_and_every_proof_holds(world: World, ana: Person) -> None:
    root, aud = world.add("root", roles=["admin"]), world.add("aud", roles=["auditor"])
    index = world.ask(ana, "acme/llama@v1").recorded.index
    others = stored(world) - of_ana(world)
    held = len(stored(world) & of_ana(world))
    world.clock.forward(1)
    found = erase(world, root)
    assert (found["pending"], found["evidence"]) == (False, held)
    assert not stored(world) & of_ana(world)
    assert others < stored(world)
    erasure = world.size() - 1
    said = world.entry(erasure)
    assert (said["type"], said["subject"], said["counts"]) == ("erasure", "user:ana", {"evidence": held})
    shown = show(world, aud, index)
    assert (shown["evidence"], shown["salt"], shown["erased_by"]) == (None, None, erasure)
    assert folding.audit_rows(world.house).ok
    with world.ledger.view() as view:
        tail = view.tail()
        rows = list(view.entries(0, tail.size))
    assert merkle.root_of([merkle.leaf_hash(data) for _, data, _ in rows]) == tail.root


def test_I16_a_crash_after_the_entry_hides_the_evidence_and_a_retry_deletes_it(
    world: World, ana: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, aud = world.add("root", roles=["admin"]), world.add("aud", roles=["auditor"])
    index = world.ask(ana, "acme/llama@v1").recorded.index
    world.clock.forward(1)
    request_id = world.uuid()
    with monkeypatch.context() as broken:
        broken.setattr(LedgerStore, "erase_evidence", _refuse)
        assert erase(world, root, request_id=request_id)["pending"] is True
    erasure, size = world.size() - 1, world.size()
    assert index in stored(world)
    assert show(world, aud, index)["erased_by"] == erasure
    assert erase(world, root, request_id=request_id)["pending"] is False
    assert index not in stored(world)
    assert world.size() == size + 1, "the retry is the same entry; only the auditor's read came between"


def test_I16_a_sweep_deletes_what_erasures_on_record_speak_of_and_no_more(
    world: World, ana: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = world.add("root", roles=["admin"])
    index = world.ask(ana, "acme/llama@v1").recorded.index
    world.clock.forward(1)
    with monkeypatch.context() as broken:
        broken.setattr(LedgerStore, "erase_evidence", _refuse)
        assert erase(world, root)["pending"] is True
    later = world.ask(ana, "acme/llama@v1").recorded.index
    others = stored(world) - of_ana(world)
    erasures, gone = erasing.sweep(world.house)
    assert (erasures, gone > 0) == (1, True)
    assert index not in stored(world)
    assert later in stored(world)
    assert others <= stored(world)
    assert erasing.sweep(world.house) == (1, 0)


def test_I16_missing_evidence_without_an_erasure_is_found(world: World, ana: Person) -> None:
    aud = world.add("aud", roles=["auditor"])
    index = world.ask(ana, "acme/llama@v1").recorded.index
    with sqlite3.connect(world.path) as db:
        db.execute("DELETE FROM ledger_evidence WHERE idx = ?", (index,))
    with pytest.raises(IntegrityFailure, match="missing"):
        show(world, aud, index)


def test_I16_the_retention_rule_holds(world: World, ana: Person) -> None:
    root = world.add("root", roles=["admin"])
    world.with_settings(evidence_retention=30)
    world.ask(ana, "acme/llama@v1")
    size, now = world.size(), world.clock.now()
    with pytest.raises(InvalidRequest, match="30 days"):
        erase(world, root, before=now - 29 * DAY * 1000)
    assert world.size() == size
    held = stored(world)
    found = erase(world, root)
    assert found["evidence"] == 0
    assert found["before"] == format_time(world.clock.now() - 30 * DAY * 1000)
    assert held < stored(world)


def test_I16_one_person_alone_erases_nothing_where_several_are_needed(world: World, ana: Person) -> None:
    root = world.add("root", roles=["admin"])
    world.with_settings(protected_changes=False)
    held = stored(world)
    with pytest.raises(Denied):
        erase(world, root)
    with pytest.raises(Denied):
        erase(world, ana)
    assert held <= stored(world)


def test_I16_the_search_index_cannot_make_an_erasure_of_another_entry(world: World, ana: Person) -> None:
    aud = world.add("aud", roles=["auditor"])
    index = min(of_ana(world))
    with sqlite3.connect(world.path) as db:
        db.execute("UPDATE ledger_index SET type = 'erasure' WHERE idx = ?", [world.size() - 1])
    db.close()
    with pytest.raises(IntegrityFailure):
        show(world, aud, index)
