"""I18 with witnesses: what was recorded for a read is in a tree head that others signed too, or it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from broker.canonical import parse_b64url
from broker.errors import BrokerError, IntegrityFailure, LedgerUnavailable, NotFound, RollbackDetected
from broker.ledger import merkle, note, quorum, receipt
from broker.ports import WitnessAnswer
from broker.services import auditing, completing, cosigned
from broker.services.access import Released
from broker.services.cosigning import CosigningRound
from broker.services.guard import Guard
from tests.cosigners import LAG_SECONDS, Witnessed
from tests.world import MIB, Person, World

RUN = (0, 0, 0)


@pytest.fixture
def ana(world: World) -> Person:
    publisher = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(publisher, "acme/llama@v1", {"a.bin": bytes(MIB)})
    return world.add("ana", groups=["acme"])


@pytest.fixture
def witnessed(world: World, ana: Person) -> Witnessed:
    del ana
    return Witnessed(world)


def check_member(witnessed: Witnessed, answer: dict[str, Any], entry: int) -> None:
    """The answer's head has the quorum, covers the entry, and the receipt's tree extends it."""
    member = answer["cosigned"]
    head = quorum.parse_policy(witnessed.text).check(member["note"])
    assert entry < head.size
    newest = receipt.verify_receipt(answer["receipt"], witnessed.world.house.log.vkey).head
    proof = [parse_b64url(item) for item in member["consistency"]]
    merkle.verify_consistency(head.size, newest.size, proof, head.root, newest.root)


def entry_of(released: Released) -> int:
    return released.recorded.index


def complete(world: World, who: Person, grant: str) -> dict[str, Any]:
    received = {"files": 1, "bytes": MIB, "extents": 1}
    return completing.complete(
        world.house, world.request(who), grant=grant, request_id=world.uuid(), received=received, have=None
    )


# -- what the broker shows --------------------------------------------------------------------------------


def test_I18_each_next_lease_and_the_completion_show_what_witnesses_signed(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    first = world.ask(ana, "acme/llama@v1")
    assert first.cosigned is None
    assert witnessed.run() == {}
    second = world.lease(ana, first.grant.id, RUN)
    check_member(witnessed, completing.released_json(second), entry_of(first))
    witnessed.run()
    third = world.lease(ana, first.grant.id, RUN)
    check_member(witnessed, completing.released_json(third), entry_of(second))
    witnessed.run()
    check_member(witnessed, complete(world, ana, first.grant.id), entry_of(third))


def test_I18_without_witnesses_nothing_changes(world: World, ana: Person) -> None:
    first = world.ask(ana, "acme/llama@v1")
    world.clock.forward(2 * LAG_SECONDS)
    assert "cosigned" not in completing.released_json(world.lease(ana, first.grant.id, RUN))
    with pytest.raises(NotFound, match="no witnesses"):
        cosigned.newest_note(world.house)


def test_I18_witnesses_that_are_silent_for_longer_than_the_lag_end_the_release(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    for witness in witnessed.witnesses[1:]:
        witness.is_down = True
    first = world.ask(ana, "acme/llama@v1")
    assert set(witnessed.run()) == {"w1", "w2"}
    early = world.lease(ana, first.grant.id, RUN)
    assert early.cosigned is None, "one of three is no quorum, and it is not late yet"
    world.clock.forward(LAG_SECONDS)
    size, issued = world.size(), len(world.store.issued)
    for refused in (
        lambda: world.lease(ana, first.grant.id, RUN),
        lambda: complete(world, ana, first.grant.id),
    ):
        with pytest.raises(LedgerUnavailable, match="not cosigned"):
            refused()
    assert (world.size(), len(world.store.issued)) == (size, issued), "refused, and yet recorded"
    for witness in witnessed.witnesses:
        witness.is_down = False
    world.clock.forward(60)
    assert witnessed.run() == {}
    late = world.lease(ana, first.grant.id, RUN)
    check_member(witnessed, completing.released_json(late), entry_of(early))


def test_I18_one_of_three_may_be_down_for_ever(world: World, ana: Person, witnessed: Witnessed) -> None:
    witnessed.witnesses[2].is_down = True
    first = world.ask(ana, "acme/llama@v1")
    assert set(witnessed.run()) == {"w2"}
    world.clock.forward(LAG_SECONDS)
    check_member(witnessed, completing.released_json(world.lease(ana, first.grant.id, RUN)), entry_of(first))
    assert witnessed.witnesses[2].asked == 1
    witnessed.run()
    assert witnessed.witnesses[2].asked == 2


def test_I18_the_newest_cosigned_head_and_the_checkpoint_are_public(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    with pytest.raises(NotFound, match="no quorum"):
        cosigned.newest_note(world.house)
    policy = quorum.parse_policy(witnessed.text)
    plain = auditing.checkpoint(world.house)
    with pytest.raises(IntegrityFailure, match="not cosigned"):
        policy.check(plain)
    witnessed.run()
    shown = auditing.checkpoint(world.house)
    assert shown.startswith(plain), "the log's own signature comes first"
    assert policy.check(shown).size == world.size()
    world.ask(ana, "acme/llama@v1")
    assert policy.check(cosigned.newest_note(world.house)).size == world.size() - 1
    with pytest.raises(IntegrityFailure, match="not cosigned"):
        policy.check(auditing.checkpoint(world.house))


def test_I18_a_receipt_of_a_covered_entry_verifies_offline_with_the_policy(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    auditor = world.add("aud", roles=["auditor"])
    first = world.ask(ana, "acme/llama@v1")
    policy = quorum.parse_policy(witnessed.text)

    def prove() -> str:
        found = auditing.inclusion(world.house, world.request(auditor, "GET"), entry_of(first))
        return str(found["receipt"])

    with pytest.raises(IntegrityFailure, match="not cosigned"):
        policy.check(receipt.parse_receipt(prove()).note)
    witnessed.run()
    text_ = prove()
    assert receipt.verify_receipt(text_, world.house.log.vkey).index == entry_of(first)
    assert policy.check(receipt.parse_receipt(text_).note).size > entry_of(first)


# -- what a witness may do to the broker ------------------------------------------------------------------


def test_I18_a_witness_that_was_set_back_is_asked_from_what_it_knows(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    older = [witness.seen for witness in witnessed.witnesses]
    witnessed.run()
    world.ask(ana, "acme/llama@v1")
    for witness, seen in zip(witnessed.witnesses, older, strict=True):
        witness.seen = seen
    assert witnessed.run() == {}
    assert witnessed.known.size == world.size()


def test_I18_what_a_witness_signed_and_we_did_not_keep_is_signed_again(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    """A crash between the answer and the row: the witness is at our size, and we do not know it."""
    for witness in witnessed.witnesses:
        witness.answer = lambda honest: replace(honest, body=b"lost\n") if honest.status == 200 else honest
    assert len(witnessed.run()) == 3
    for witness in witnessed.witnesses:
        witness.answer = lambda honest: honest
    world.clock.forward(60)
    assert witnessed.run() == {}
    assert witnessed.known.size == world.size()


def is_refused(world: World, witnessed: Witnessed, ana: Person) -> None:
    with pytest.raises(RollbackDetected, match="another ledger"):
        witnessed.run()
    issued = len(world.store.issued)
    for _ in range(2):
        with pytest.raises(RollbackDetected, match="another ledger"):
            world.ask(ana, "acme/llama@v1")
    assert len(world.store.issued) == issued
    world.with_settings(guard=Guard())


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(lambda size, root: (size + 5, bytes(32)), id="more-than-the-database-has"),
        pytest.param(lambda size, root: (size, bytes(32)), id="another-tree-of-this-size"),
        pytest.param(lambda size, root: (size - 1, bytes(32)), id="another-tree-before"),
    ],
)
def test_I18_a_witness_that_saw_another_log_stops_the_broker(
    world: World, ana: Person, witnessed: Witnessed, seen: Callable[[int, bytes], tuple[int, bytes]]
) -> None:
    witnessed.run()
    world.ask(ana, "acme/llama@v1")
    witnessed.witnesses[1].seen = seen(world.size(), bytes(32))
    is_refused(world, witnessed, ana)


ANSWERS: dict[str, Callable[[WitnessAnswer], WitnessAnswer]] = {
    "nothing": lambda honest: replace(honest, body=b""),
    "no signature": lambda honest: replace(honest, body=b"thank you\n"),
    "a flipped bit": lambda honest: replace(honest, body=honest.body[:-12] + b"AAAAAAAAAA==\n"),
    "a forbidden log": lambda honest: replace(honest, status=403),
    "an unknown log": lambda honest: replace(honest, status=404),
    "a fault": lambda honest: replace(honest, status=500),
    "a conflict without a size": lambda honest: replace(honest, status=409, body=b"7\n"),
    "a conflict with a word": lambda honest: WitnessAnswer(status=409, kind="text/x.tlog.size", body=b"x\n"),
    "a conflict that never ends": lambda honest: WitnessAnswer(
        status=409, kind="text/x.tlog.size", body=b"1\n"
    ),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_I18_an_answer_that_is_no_cosignature_is_not_one(
    world: World, ana: Person, witnessed: Witnessed, answer: Callable[[WitnessAnswer], WitnessAnswer]
) -> None:
    for witness in witnessed.witnesses[:2]:
        witness.answer = answer
    failures = witnessed.run()
    assert set(failures) == {"w0", "w1"}
    assert all(isinstance(exc, BrokerError) and exc.code != "rollback_detected" for exc in failures.values())
    assert witnessed.known.newest is None
    assert not world.house.guard.is_shut
    world.ask(ana, "acme/llama@v1")


def test_I18_a_line_of_another_witness_does_not_count_twice(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    one, two, three = witnessed.witnesses
    three.is_down = True
    two.answer = lambda honest: replace(honest, body=f"{one.sign(_text(world))}\n".encode())
    assert set(witnessed.run()) == {"w1", "w2"}
    assert witnessed.known.newest is None


def _text(world: World) -> str:
    return auditing.checkpoint(world.house).partition("\n\n")[0] + "\n"


def test_I18_lines_that_somebody_puts_into_the_database_are_not_believed(
    world: World, ana: Person, witnessed: Witnessed
) -> None:
    stranger = Witnessed(world).witnesses[0]
    world.with_settings(witnessed=witnessed.known)
    rows = witnessed.known.rows
    for witness in witnessed.witnesses:
        rows.keep(world.size(), witness=witness.vkey, line=stranger.sign(_text(world)), time=1)
        rows.keep(world.size() + 9, witness=witness.vkey, line=witness.sign("x\n"), time=1)
    with pytest.raises(NotFound, match="no quorum"):
        cosigned.newest_note(world.house)
    assert "witness" not in auditing.checkpoint(world.house)


# -- replicas -----------------------------------------------------------------------------------------------


def test_I18_replicas_share_what_witnesses_signed(world: World, ana: Person, witnessed: Witnessed) -> None:
    there = witnessed.open()
    other = CosigningRound(replace(world.house, witnessed=there), there)
    witnessed.run()
    asked = witnessed.asked
    assert other.run() == {}
    assert (witnessed.asked, there.size) == (asked, world.size())
    world.ask(ana, "acme/llama@v1")
    assert other.run() == {}
    assert witnessed.asked == asked, "two heads in one second: once is enough"
    world.clock.forward(2)
    other.run()
    assert witnessed.asked == asked + 3
    first = world.ask(ana, "acme/llama@v1")
    world.clock.forward(2)
    other.run()
    world.clock.forward(LAG_SECONDS)
    late = world.lease(ana, first.grant.id, RUN)
    check_member(witnessed, completing.released_json(late), entry_of(first))


def test_I18_what_is_kept_stays_as_it_is(world: World, witnessed: Witnessed) -> None:
    witnessed.run()
    engine = create_engine(world.url)
    for statement in (
        "UPDATE ledger_cosignatures SET line = 'x'",
        "DELETE FROM ledger_cosignatures",
        "INSERT OR REPLACE INTO ledger_cosignatures SELECT size, witness, 'x', time FROM ledger_cosignatures",
    ):
        with engine.connect() as connection, pytest.raises(Exception, match="insert-only"):
            connection.execute(text(statement))
    engine.dispose()
    for witness in witnessed.witnesses:
        witnessed.known.rows.keep(world.size(), witness=witness.vkey, line="another", time=0)
    assert note.open_head(cosigned.newest_note(world.house), world.house.log.vkey).size == world.size()


# -- the policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(lambda t: t.replace("quorum some", "quorum none"), "no cosignature", id="nobody"),
        pytest.param(lambda t: t.replace("https://witness0.example/", ""), "", id="enough-urls"),
        pytest.param(
            lambda t: t.replace("https://witness0.example/", "").replace("https://witness1.example/", ""),
            "too few URLs",
            id="too-few-urls",
        ),
        pytest.param(lambda t: "\n".join(t.split("\n")[1:]), "does not name this log", id="no-log"),
    ],
)
def test_I18_the_brokers_policy_can_be_met(
    world: World, witnessed: Witnessed, change: Callable[[str], str], match: str
) -> None:
    data = change(witnessed.text).encode()
    if not match:
        assert cosigned.parse_policy(data, world.house.log).witnesses[0].url is None
        return
    with pytest.raises(BrokerError, match=match):
        cosigned.parse_policy(data, world.house.log)
