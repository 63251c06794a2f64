"""I07, reviewed: what a narrow token is no way around, and one key that holds tokens of two principals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker import jose
from broker.canonical import Json
from broker.errors import Conflict, Denied, OverBudget
from broker.services import access, catalogue
from broker.services.house import House
from tests.foreign import read_details
from tests.world import MIB, Person, World


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(2 * MIB), "b": bytes(2 * MIB)})
    return world.add("ana", groups=["acme"])


def _can(world: World, who: Person, other: str) -> Json:
    wanted = catalogue.DecisionRequest(
        request_id=world.uuid(), collection="acme", name="llama", version="v1", action="read", principal=other
    )
    return catalogue.dry_run(world.house, world.request(who), wanted)


RIGHTS: list[Json] = [
    {"type": "ledger_access", "actions": ["search"]},
    {"type": "administration", "actions": ["principals"]},
]


def test_I07_a_narrow_token_does_not_ask_about_others(world: World, ana: Person) -> None:
    assert _can(world, world.admin, ana.id)["decision"]["effect"] == "allow"
    shard = world.mint(world.admin, read_details("acme/llama"), key=jose.PrivateKey.generate())
    with pytest.raises(Denied, match="another principal"):
        _can(world, shard, ana.id)
    assert _can(world, shard, world.admin.id)["principal"] == world.admin.id


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: right["type"])
def test_I07_either_right_asks_about_others(world: World, ana: Person, right: Json) -> None:
    both = world.add("both", roles=["admin", "auditor"], groups=["acme"])
    narrow = replace(both, token=world.login(both, [*read_details(), right]))
    assert _can(world, narrow, ana.id)["principal"] == ana.id


def test_I07_one_principals_retry_is_not_anothers(world: World, ana: Person) -> None:
    """A key that nobody enrolled holds tokens of two principals. Its second question is asked anew."""
    bob = world.add("bob", groups=["acme"])
    key = jose.PrivateKey.generate()
    hers, his = (world.mint(who, read_details(max_bytes=MIB), key=key) for who in (ana, bob))
    wanted = world.grant_request("acme/llama@v1", include=("a",), extents=((0, 0, 0),))
    first = access.ask(world.house, world.request(hers), wanted)
    again = access.ask(world.house, world.request(hers), wanted)
    assert again.grant.id == first.grant.id
    with pytest.raises(Conflict, match="another principal"):
        access.ask(world.house, world.request(his), wanted)
    assert access.ask(world.house, world.request(his), replace(wanted, request_id=world.uuid()))


def test_I07_siblings_that_race_do_not_pass_their_parents_ceiling(world: World, ana: Person) -> None:
    """Both are allowed on their snapshots; the second is recorded on another connection in between."""
    parent = world.mint(ana, read_details(max_bytes=3 * MIB))
    one, two = (world.mint(parent, key=jose.PrivateKey.generate()) for _ in range(2))
    honest, other = world.house, replace(world.house, ledger=world.open_ledger())

    class Overtaken:
        done = False

        def append(self, draft: Any) -> Any:
            if not self.done:
                self.done = True
                _ask(world, other, two, "b")
            return honest.ledger.append(draft)

        def __getattr__(self, name: str) -> Any:
            return getattr(honest.ledger, name)

    issued = len(world.store.issued)
    with pytest.raises(OverBudget):
        _ask(world, replace(honest, ledger=Overtaken()), one, "a")
    assert {name for _, name, _, _ in world.store.issued[issued:]} == {world.store.issued[issued][1]}
    with other.ledger.view() as view:
        assert view.meter(world.token_row(parent).id) == 2 * MIB
        assert view.meter(world.token_row(one).id) == 0


def _ask(world: World, house: House, who: Person, path: str) -> access.Released:
    return access.ask(house, world.request(who), world.grant_request("acme/llama@v1", include=(path,)))
