"""I18 with witnesses, as the client sees it: a broker whose log the witnesses have not seen is refused.

The broker is real; what it answers to the requests for further leases and to the end of the read is changed
on its way out, by somebody who holds everything that the broker holds, the log's key too, but no witness's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.canonical import b64url
from broker.client import cosigned
from broker.client.cosigned import FILE, Watch, parse_policy
from broker.client.sdk import Client
from broker.errors import EXIT_CODE, ConfigurationError, IntegrityFailure
from broker.ledger import merkle, note, quorum, receipt
from broker.services import auditing
from tests.cosigners import Witnessed, policy_text
from tests.unit.client.conftest import MIB, Stack, make_tree, publisher, reader, stack, tree
from tests.world import MovedClock, World

__all__ = ["publisher", "reader", "stack"]

Json = dict[str, Any]
REF = "acme/llama@v1"


class Between:
    """Has the witnesses asked before each further request of a grant; changes what is answered to it."""

    def __init__(self, stack: Stack, witnessed: Witnessed) -> None:
        self._stack, self._honest, self._witnessed = stack, stack._wsgi, witnessed
        self.lie: Callable[[Json], object] = lambda answer: None
        self.before: Callable[[], object] = witnessed.run
        self.answers: list[Json] = []
        stack._wsgi = self  # type: ignore[assignment]

    def __call__(self, environ: Json, start: Callable[..., Any]) -> list[bytes]:
        if not environ["PATH_INFO"].startswith("/v1/grants/"):
            return self._honest(environ, start)  # type: ignore[return-value]
        self.before()
        head: list[Any] = []
        body = b"".join(self._honest(environ, lambda status, headers, *_: head.extend([status, headers])))
        answer = json.loads(body)
        if head[0].startswith("200"):
            self.answers.append(json.loads(body))
            self.lie(answer)
        body = json.dumps(answer).encode()
        start(head[0], [(n, str(len(body)) if n.lower() == "content-length" else v) for n, v in head[1]])
        return [body]


@pytest.fixture
def witnessed(stack: Stack, publisher: Client, reader: Client, tmp_path: Path) -> Witnessed:
    files = make_tree(tmp_path / "files", {"a": bytes(range(256)) * 4 * 1024 * 3})
    publisher.publish(files, REF, extent_size=MIB)
    made = Witnessed(stack.world)
    stack.apply(witnessed=made.known, lease_window=MIB)
    (reader.profile.folder / FILE).write_text(made.text)
    return made


@pytest.fixture
def between(stack: Stack, witnessed: Witnessed, monkeypatch: pytest.MonkeyPatch) -> Between:
    # At once, instead of after a minute.
    monkeypatch.setattr(cosigned, "MAX_LAG_MS", 0)
    return Between(stack, witnessed)


def test_I18_what_the_witnesses_have_seen_is_read(reader: Client, between: Between, tmp_path: Path) -> None:
    with Client(reader.profile) as client:
        client.fetch(REF, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "files")
    assert len(between.answers) == 3, "two further leases, and the end"
    assert all("cosigned" in answer for answer in between.answers)


def other_log(stack: Stack, answer: Json) -> Json:
    """A head of the same log that is not this one, cosigned by nobody but signed with the log's key."""
    house, (size, root) = stack.world.house, (1, bytes(32))
    head = note.TreeHead(origin=house.log.origin, size=size, root=root)
    return {"note": note.sign_head(head, house.verifiers()[0], house.log.sign), "consistency": []}


def split_view(stack: Stack, witnessed: Witnessed, answer: Json) -> Json:
    """Witnesses signed a log of this origin and size that is not the one of the receipt."""
    house = stack.world.house
    size = receipt.verify_receipt(answer["receipt"], house.log.vkey).head.size - 1
    head = note.TreeHead(origin=house.log.origin, size=size, root=b"\7" * 32)
    text = note.sign_head(head, house.verifiers()[0], house.log.sign)
    lines = "".join(f"{w.sign(note.head_text(head))}\n" for w in witnessed.witnesses)
    return {**answer["cosigned"], "note": text + lines}


def before_the_grant(stack: Stack, witnessed: Witnessed, answer: Json) -> Json:
    """A head that the witnesses did sign, of before the grant, with its proof."""
    house = stack.world.house
    newest = receipt.verify_receipt(answer["receipt"], house.log.vkey).head
    with house.ledger.view() as view:
        root = merkle.frontier_at(2, view.hashes).root()
        proof = merkle.consistency_proof(2, newest.size, view.hashes)
    head = note.TreeHead(origin=house.log.origin, size=2, root=root)
    text = note.sign_head(head, house.verifiers()[0], house.log.sign)
    lines = "".join(f"{w.sign(note.head_text(head))}\n" for w in witnessed.witnesses)
    return {"note": text + lines, "consistency": [b64url(node) for node in proof]}


def without_lines(answer: Json, count: int) -> Json:
    text, _, lines = answer["cosigned"]["note"].partition("\n\n")
    kept = lines.split("\n")[: 1 + count]
    return {**answer["cosigned"], "note": f"{text}\n\n" + "\n".join(kept) + "\n"}


LIES: dict[str, Callable[[Stack, Witnessed, Json], Any]] = {
    "nothing": lambda stack, witnessed, answer: None,
    "a word": lambda stack, witnessed, answer: "cosigned",
    "no note": lambda stack, witnessed, answer: {"consistency": []},
    "no proof": lambda stack, witnessed, answer: {**answer["cosigned"], "consistency": []},
    "no list": lambda stack, witnessed, answer: {**answer["cosigned"], "consistency": 7},
    "no cosignature": lambda stack, witnessed, answer: without_lines(answer, 0),
    "no quorum": lambda stack, witnessed, answer: without_lines(answer, 1),
    "the plain checkpoint": lambda stack, witnessed, answer: {
        "note": auditing.checkpoint(stack.world.house).partition("— witness")[0],
        "consistency": [],
    },
    "a head of another log": lambda stack, witnessed, answer: other_log(stack, answer),
    "a split view": split_view,
    "a head of before the grant": before_the_grant,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_I18_a_lease_that_the_witnesses_know_nothing_of_is_not_opened(
    stack: Stack,
    reader: Client,
    witnessed: Witnessed,
    between: Between,
    tmp_path: Path,
    lie: Callable[[Stack, Witnessed, Json], Any],
) -> None:
    def tell(answer: Json) -> None:
        answer["cosigned"] = lie(stack, witnessed, answer)

    between.lie = tell
    with Client(reader.profile) as client, pytest.raises(IntegrityFailure) as refused:
        client.fetch(REF, tmp_path / "out")
    assert EXIT_CODE[refused.value.code] == 6
    assert not (tmp_path / "out" / "a").exists()
    assert len(between.answers) == 1, "it went on after a refusal"


def test_I18_the_end_of_a_read_is_held_to_it_too(reader: Client, between: Between, tmp_path: Path) -> None:
    between.lie = lambda answer: "lease" in answer or answer.pop("cosigned")
    with Client(reader.profile) as client, pytest.raises(IntegrityFailure, match="witnesses have not seen"):
        client.fetch(REF, tmp_path / "out")
    assert len(between.answers) == 3


def test_I18_a_broker_whose_witnesses_are_never_asked_is_refused(
    reader: Client, between: Between, tmp_path: Path
) -> None:
    between.before = lambda: None
    with Client(reader.profile) as client, pytest.raises(IntegrityFailure, match="witnesses have not seen"):
        client.fetch(REF, tmp_path / "out")


def test_I18_without_a_policy_nothing_is_demanded(reader: Client, between: Between, tmp_path: Path) -> None:
    (reader.profile.folder / FILE).unlink()
    between.lie = lambda answer: answer.update(cosigned="a word")
    with Client(reader.profile) as client:
        client.fetch(REF, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "files")


# -- what is due, and when ----------------------------------------------------------------------------------


def test_I18_an_entry_is_due_a_minute_after_it_was_answered(world: World) -> None:
    clock = MovedClock(1_000_000)
    witnessed = Witnessed(world)
    first, later = (_receipt(world, index) for index in (1, 2))
    watch = Watch(quorum.parse_policy(witnessed.text), clock)
    assert watch.due("g") is None
    watch.note("g", first)
    clock.forward(30)
    watch.note("g", later)
    assert watch.due("g") is None
    watch.check({}, later, due=None)
    clock.forward(30)
    assert watch.due("g") == 1
    assert watch.due("another") is None
    with pytest.raises(IntegrityFailure) as refused:
        watch.check({}, later, due=1)
    assert "entry 1 is in no cosigned tree head" in str(refused.value.why)
    clock.forward(30)
    assert watch.due("g") == 2
    clock.forward(3600)
    assert watch.due("g") == 2


def test_I18_a_clock_that_is_set_back_makes_nothing_undue(world: World) -> None:
    clock = MovedClock(10_000_000)
    watch = Watch(quorum.parse_policy(Witnessed(world).text), clock)
    watch.note("g", _receipt(world, 1))
    clock.forward(-3600)
    assert watch.due("g") == 1


def _receipt(world: World, index: int) -> receipt.VerifiedReceipt:
    with world.house.ledger.view() as view:
        tail = view.tail()
        proof = merkle.inclusion_proof(index, tail.size, view.hashes)
        data = view.entry(index)
    text = receipt.build_receipt(data, index, proof, auditing.checkpoint(world.house))
    return receipt.verify_receipt(text, world.house.log.vkey)


# -- where the policy is ------------------------------------------------------------------------------------


def test_I18_a_policy_for_another_log_is_refused_before_the_code_is_used(
    stack: Stack, publisher: Client, tmp_path: Path
) -> None:
    del publisher
    good = Witnessed(stack.world).text.encode()
    other_key = note.vkey(stack.world.house.log.origin, b"\x01" * 32)
    wrong = policy_text(other_key, Witnessed(stack.world).witnesses, 2).encode()
    code = stack.world.new_code("bob", groups=["acme"])
    with pytest.raises(ConfigurationError, match="does not name the log"):
        Client.login(stack.url, code, folder=tmp_path / "bob", witness_policy=wrong)
    assert not (tmp_path / "bob" / FILE).exists()
    with Client.login(stack.url, code, folder=tmp_path / "bob", witness_policy=good) as client:
        assert (client.profile.folder / FILE).read_bytes() == good
    (tmp_path / "bob" / FILE).write_bytes(wrong)
    with pytest.raises(ConfigurationError, match="is not a policy for this log"):
        Client(client.profile)
    with pytest.raises(ConfigurationError):
        parse_policy(b"quorum\n", vkey=other_key)
