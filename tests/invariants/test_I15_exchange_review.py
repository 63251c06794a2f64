"""I15, reviewed: a key that tokens were minted for becomes somebody's while they are in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from broker import jose
from broker.errors import BrokerError, InvalidToken
from tests.foreign import FakeIssuer
from tests.world import MIB, Person, World


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme"]))
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(MIB)})
    return issuer


def _overtake(world: World, first: Callable[[], Any]) -> None:
    """Between the next decision and its record, ``first`` happens on another replica."""
    honest, other = world.house, replace(world.house, ledger=world.open_ledger())

    class Overtaken:
        done = False

        def append(self, draft: Any) -> Any:
            if not self.done:
                self.done = True
                here, world.house = world.house, other
                first()
                world.house = here
            return honest.ledger.append(draft)

        def __getattr__(self, name: str) -> Any:
            return getattr(honest.ledger, name)

    world.house = replace(honest, ledger=Overtaken())


def test_I15_a_read_under_way_ends_with_the_delegation_of_its_key(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    rank = world.mint(job, key=jose.PrivateKey.generate())
    other = ci.token(world.clock.now(), job="other")
    _overtake(world, lambda: world.exchange(other, key=rank.key))
    issued = len(world.store.issued)
    with pytest.raises(InvalidToken):
        world.ask(rank, "acme/llama@v1")
    assert len(world.store.issued) == issued


def test_I15_a_minting_for_a_key_that_becomes_somebodys_is_decided_again(
    world: World, ci: FakeIssuer
) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    key = jose.PrivateKey.generate()
    other = ci.token(world.clock.now(), job="other")
    _overtake(world, lambda: world.exchange(other, key=key))
    with pytest.raises(BrokerError, match="may not hold"):
        world.mint(job, key=key)


def test_I15_a_job_that_starts_sends_nobody_elses_decision_back(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    with world.ledger.view() as view:
        before = view.epoch
    world.exchange(ci.token(world.clock.now(), job="other"))
    world.mint(job, key=jose.PrivateKey.generate())
    with world.ledger.view() as view:
        assert view.epoch == before


def test_I15_whoever_is_removed_and_named_again_has_no_more_than_before(world: World, ci: FakeIssuer) -> None:
    """Groups are the token's: another mapping of a new registration is not what an older token says."""
    job: Person = world.exchange(ci.token(world.clock.now()))
    world.remove(ci)
    world.register(ci, mapping=ci.mapping(groups=["nothing"]))
    with pytest.raises(InvalidToken):
        world.ask(job, "acme/llama@v1")
