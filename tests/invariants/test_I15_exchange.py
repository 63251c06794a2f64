"""I15 at the exchange: whatever a workload's token rests on, its end is the token's, at once, everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from broker import jose
from broker.errors import BrokerError, InvalidSubjectToken, InvalidToken, NotAuthenticated
from broker.services.house import House
from tests.foreign import FakeIssuer
from tests.world import MIB, Person, World


class Scene:
    """A job, a rank of it, and what both read."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.issuer = FakeIssuer()
        self.mapping = self.issuer.mapping(groups=["acme"])
        world.register(self.issuer, mapping=self.mapping)
        pub = world.add("pub", roles=["publisher"], groups=["acme"])
        world.publish(pub, "acme/llama@v1", {"a": bytes(4 * MIB)})
        self.subject = self.issuer.token(world.clock.now())
        self.job = world.exchange(self.subject)
        self.rank = world.mint(self.job, key=jose.PrivateKey.generate())
        self.replica = replace(world.house, ledger=world.open_ledger())

    def dies(self, *, lease_of: str | None = None) -> None:
        """Neither reads any more, here or on another replica."""
        here = self.world.house
        for house in (here, self.replica):
            self.world.house = house
            for who in (self.job, self.rank):
                with pytest.raises(BrokerError):
                    self.world.ask(who, "acme/llama@v1")
                if lease_of is not None:
                    with pytest.raises(BrokerError):
                        self.world.lease(who, lease_of, (0, 1, 1))
            with pytest.raises(BrokerError):
                self.world.mint(self.job)
        self.world.house = here


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world)


def _remove_issuer(scene: Scene) -> None:
    scene.world.remove(scene.issuer)


def _map_to_other_groups(scene: Scene) -> None:
    scene.world.register(scene.issuer, mapping=scene.issuer.mapping(groups=["others"]))


def _add_a_rule(scene: Scene) -> None:
    rules = [*scene.mapping["rules"], {"name": "more", "match": {"project": "x"}, "principal": "{job}"}]
    scene.world.register(scene.issuer, mapping={**scene.mapping, "rules": rules})


def _replace_keys(scene: Scene) -> None:
    scene.issuer.rotate()
    scene.world.register(scene.issuer, mapping=scene.mapping)


def _another_audience(scene: Scene) -> None:
    scene.world.register(scene.issuer, mapping=scene.mapping, audience="https://other.example")


def _disable(scene: Scene) -> None:
    scene.world.revoke("principal", scene.job.id)


def _revoke_key(scene: Scene) -> None:
    scene.world.revoke("key", scene.job.key.jkt)


def _revoke_parent(scene: Scene) -> None:
    scene.world.revoke("token", scene.world.token_row(scene.job).id)


CHANGES: list[Callable[[Scene], None]] = [
    _remove_issuer,
    _map_to_other_groups,
    _add_a_rule,
    _replace_keys,
    _another_audience,
    _disable,
    _revoke_key,
    _revoke_parent,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_I15_what_a_token_rests_on_ends_it_on_the_next_request(
    scene: Scene, change: Callable[[Scene], None]
) -> None:
    grant = scene.world.ask(scene.rank, "acme/llama@v1").grant
    assert scene.world.lease(scene.rank, grant.id, (0, 0, 0)).grant.id == grant.id
    change(scene)
    scene.dies(lease_of=grant.id)


def test_I15_an_issuer_that_was_removed_exchanges_nothing(scene: Scene) -> None:
    scene.world.remove(scene.issuer)
    for house in (scene.world.house, scene.replica):
        scene.world.house = house
        with pytest.raises(InvalidSubjectToken):
            scene.world.exchange(scene.subject, key=scene.job.key)


def test_I15_a_mapping_that_changed_is_applied_to_the_next_exchange(scene: Scene) -> None:
    scene.world.register(scene.issuer, mapping=scene.issuer.mapping(groups=["others"]))
    again = scene.world.exchange(scene.subject, key=scene.job.key)
    with pytest.raises(BrokerError):
        scene.world.ask(again, "acme/llama@v1")
    scene.world.register(scene.issuer, mapping=scene.mapping)
    with pytest.raises(InvalidToken):
        scene.world.ask(again, "acme/llama@v1")
    back = scene.world.exchange(scene.subject, key=scene.job.key)
    assert scene.world.ask(back, "acme/llama@v1").grant.principal == scene.job.id


def test_I15_the_same_registration_again_ends_nothing(scene: Scene) -> None:
    scene.world.register(scene.issuer, mapping=scene.mapping)
    assert scene.world.ask(scene.rank, "acme/llama@v1").grant.principal == scene.job.id


def test_I15_a_rotated_key_of_the_issuer_signs_the_next_tokens(scene: Scene) -> None:
    old = scene.issuer.token(scene.world.clock.now())
    scene.issuer.rotate()
    with pytest.raises(InvalidSubjectToken):
        scene.world.exchange(scene.issuer.token(scene.world.clock.now()))
    scene.world.register(scene.issuer, mapping=scene.mapping)
    with pytest.raises(InvalidSubjectToken):
        scene.world.exchange(old)
    assert scene.world.exchange(scene.issuer.token(scene.world.clock.now())).id == scene.job.id


def test_I15_a_delegated_key_that_becomes_somebody_elses_holds_nothing(scene: Scene) -> None:
    """The rank's key exchanges a token of another job: from then on it is that job's."""
    other = scene.issuer.token(scene.world.clock.now(), job="other")
    taken = scene.world.exchange(other, key=scene.rank.key)
    assert scene.world.ask(taken, "acme/llama@v1").grant.principal == "workload:ci/other"
    with pytest.raises(NotAuthenticated):
        scene.world.ask(scene.rank, "acme/llama@v1")


@pytest.mark.parametrize("change", [_remove_issuer, _disable, _revoke_key, _revoke_parent])
def test_I15_a_minting_under_way_is_decided_again(scene: Scene, change: Callable[[Scene], None]) -> None:
    class Overtaken:
        """A ledger on which somebody changes access between the decision and its record."""

        def __init__(self, house: House) -> None:
            self.inner, self.done = house.ledger, False

        def append(self, draft: Any) -> Any:
            if not self.done:
                self.done = True
                here, scene.world.house = scene.world.house, scene.replica
                change(scene)
                scene.world.house = here
            return self.inner.append(draft)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    world = scene.world
    honest = world.house
    world.house = replace(honest, ledger=Overtaken(honest))
    with pytest.raises(BrokerError):
        world.mint(scene.job)
    world.house = replace(honest, ledger=honest.ledger)
    scene.dies()


def test_I15_an_exchange_under_way_is_decided_again(world: World) -> None:
    scene = Scene(world)
    fresh = Person(id="", key=jose.PrivateKey.generate(), token="")
    inner = world.house.ledger

    class Overtaken:
        done = False

        def append(self, draft: Any) -> Any:
            if not self.done:
                self.done = True
                here, world.house = world.house, scene.replica
                scene.world.remove(scene.issuer)
                world.house = here
            return inner.append(draft)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    world.house = replace(world.house, ledger=Overtaken())
    with pytest.raises(BrokerError):
        world.exchange(scene.issuer.token(world.clock.now()), key=fresh.key)
