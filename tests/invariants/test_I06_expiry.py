"""I06: a returned expiry is never later than what it rests on."""

from __future__ import annotations

import json

import pytest

from broker import limits
from broker.canonical import parse_time
from broker.errors import GrantRevoked, InvalidToken
from broker.model import Token
from tests.world import MIB, World


def test_I06_a_lease_ends_with_its_token_grant_and_five_minutes(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(2 * MIB)})
    ana = world.add("ana", groups=["acme"])
    fresh = world.ask(ana, "acme/llama@v1")
    assert parse_time(fresh.lease["expires_at"]) == world.clock.now() + limits.LEASE_TTL * 1000
    world.clock.forward(limits.ACCESS_TOKEN_TTL - 100)
    late = world.ask(ana, "acme/llama@v1")
    with world.ledger.view() as view:
        token = next(t for t in view.list(Token, principal="user:ana"))
    assert parse_time(late.lease["expires_at"]) == token.expires
    for kind, _, _, expires in world.store.issued:
        if kind == "GET":
            assert expires <= token.expires


def test_I06_the_entry_and_the_answer_say_one_expiry(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"x"})
    ana = world.add("ana", groups=["acme"])
    released = world.ask(ana, "acme/llama@v1")
    entry = world.entry(released.recorded.index)
    assert entry["expires_at"] == released.lease["expires_at"]
    assert parse_time(entry["grant_expires_at"]) == released.grant.expires
    assert parse_time(entry["expires_at"]) <= released.grant.expires


def test_I06_a_dead_token_leases_nothing(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(2 * MIB)})
    ana = world.add("ana", groups=["acme"])
    grant = world.ask(ana, "acme/llama@v1").grant
    world.clock.forward(limits.ACCESS_TOKEN_TTL + 1)
    with pytest.raises(InvalidToken):
        world.lease(ana, grant.id, (0, 0, 0))
    ana.token = world.login(ana)
    assert world.lease(ana, grant.id, (0, 0, 0)).grant.id == grant.id, "a grant outlives tokens"


def test_I06_a_grant_ends_after_twelve_hours(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(2 * MIB)})
    ana = world.add("ana", groups=["acme"])
    grant = world.ask(ana, "acme/llama@v1").grant
    world.clock.forward(limits.GRANT_TTL + 1)
    ana.token = world.login(ana)
    with pytest.raises(GrantRevoked):
        world.lease(ana, grant.id, (0, 0, 0))


def test_I06_a_token_lives_fifteen_minutes_at_most(world: World) -> None:
    ana = world.add("ana", groups=["acme"])
    from broker.canonical import parse_b64url

    claims = json.loads(parse_b64url(ana.token.split(".")[1]))
    assert claims["exp"] - claims["iat"] == limits.ACCESS_TOKEN_TTL
