"""I08, reviewed: one workload token is one key's and one principal's, whatever is registered meanwhile."""

from __future__ import annotations

import sqlite3

import pytest

from broker import jose, limits
from broker.canonical import Json
from broker.errors import InvalidGrant, InvalidSubjectToken
from tests.foreign import FakeIssuer
from tests.world import World


class Domain(FakeIssuer):
    """A SPIFFE trust domain: its tokens need not say who issued them."""

    kind, jwks_use = "spiffe", "jwt-svid"

    def __init__(self, name: str) -> None:
        super().__init__(name, "spiffe://prod.example")

    def mapping(self, **rule: object) -> Json:
        usual: Json = {"name": "all", "match": {"path": "train"}, "principal": "{path}"}
        return {"schema": "broker/issuer-map/v1", "rules": [{**usual, **rule}]}


def test_I08_a_token_is_not_exchanged_again_under_another_registration(world: World) -> None:
    first = Domain("prod")
    world.register(first)
    subject = first.token(world.clock.now(), iss=None, sub="spiffe://prod.example/train")
    job = world.exchange(subject)
    assert job.id == "workload:prod/train"
    second = Domain("prod-2")
    second.key = first.key
    world.remove(first)
    world.register(second)
    for key in (job.key, jose.PrivateKey.generate()):
        with pytest.raises(InvalidGrant):
            world.exchange(subject, key=key)


def test_I08_a_key_stays_with_the_principal_that_it_was_bound_to(world: World) -> None:
    """``ci`` and ``ci-2``: neither speaks for the other's principals, nor takes over their keys."""
    one, two = FakeIssuer("ci", "https://ci.example"), FakeIssuer("ci-2", "https://ci.example/2")
    world.register(one)
    world.register(two)
    now = world.clock.now()
    job = world.exchange(one.token(now))
    assert (job.id, world.exchange(two.token(now)).id) == ("workload:ci/train", "workload:ci-2/train")
    with pytest.raises(InvalidGrant):
        world.exchange(two.token(now), key=job.key)
    world.revoke("key", job.key.jkt)
    for issuer in (one, two):
        with pytest.raises(InvalidGrant):
            world.exchange(issuer.token(now), key=job.key)


def test_I08_a_pin_outlives_its_token(world: World) -> None:
    ci = FakeIssuer()
    world.register(ci)
    began = world.clock.now()
    subject = ci.token(began, exp=began // 1000 + 60)
    world.exchange(subject)
    # The token's last moment, and the first one after it: pinned, then over. The pin goes later.
    for moment, refusal in ((59, InvalidGrant), (60, InvalidSubjectToken), (61, InvalidSubjectToken)):
        world.clock.ms = began // 1000 * 1000 + moment * 1000
        with pytest.raises(refusal):
            world.exchange(subject)
        world.exchange(ci.token(world.clock.now()))
        assert _pinned(world, began // 1000 * 1000 + 60_000)
    world.clock.ms += limits.REPLAY_KEEP * 1000
    world.exchange(ci.token(world.clock.now()))
    assert not _pinned(world, began // 1000 * 1000 + 60_000)
    with pytest.raises(InvalidSubjectToken):
        world.exchange(subject)


def _pinned(world: World, ended: int) -> bool:
    ends = ended + limits.REPLAY_KEEP * 1000
    with sqlite3.connect(world.path) as database:
        found = database.execute("SELECT count(*) FROM subject_uses WHERE expires = ?", (ends,)).fetchone()
    database.close()
    return bool(found[0])
