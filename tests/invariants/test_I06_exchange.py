"""I06 at the exchange: no token outlives the one that it came from, no lease outlives its token."""

from __future__ import annotations

import pytest

from broker import jose, limits
from broker.canonical import parse_b64url, parse_json_object, parse_time
from broker.errors import InvalidSubjectToken, InvalidToken
from broker.services import completing
from tests.foreign import FakeIssuer
from tests.world import Person, World


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme"]))
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"1"})
    return issuer


def end(who: Person) -> int:
    """The token's own ``exp`` in milliseconds."""
    return int(parse_json_object(parse_b64url(who.token.split(".")[1]))["exp"]) * 1000


@pytest.mark.parametrize("seconds", [1, 2, 61, 899, 900, 901, 86_400])
def test_I06_a_token_ends_with_the_workloads_own(world: World, ci: FakeIssuer, seconds: int) -> None:
    now = world.clock.now()
    job = world.exchange(ci.token(now, exp=now // 1000 + seconds))
    row = world.token_row(job)
    assert row.expires == end(job) <= (now // 1000 + seconds) * 1000
    assert row.expires <= now + limits.ACCESS_TOKEN_TTL * 1000
    assert parse_time(world.entry(world.size() - 1)["expires_at"]) == row.expires
    world.clock.ms = row.expires
    with pytest.raises(InvalidToken):
        world.ask(job, "acme/llama@v1")


def test_I06_an_expired_workload_token_is_worth_nothing(world: World, ci: FakeIssuer) -> None:
    now = world.clock.now()
    subject = ci.token(now, exp=now // 1000 + 10)
    job = world.exchange(subject)
    world.clock.ms = (now // 1000 + 10) * 1000
    with pytest.raises(InvalidSubjectToken):
        world.exchange(subject, key=job.key)


def test_I06_a_child_ends_with_its_parent(world: World, ci: FakeIssuer) -> None:
    now = world.clock.now()
    who = world.exchange(ci.token(now, exp=now // 1000 + 100))
    first = end(who)
    for ttl in (900, 60, 900):
        world.clock.forward(7)
        child = world.mint(who, key=jose.PrivateKey.generate(), ttl=ttl)
        assert end(child) <= end(who)
        assert end(child) <= world.clock.now() + ttl * 1000
        assert world.token_row(child).expires == end(child)
        who = child
    assert end(who) <= first


def test_I06_a_lease_ends_with_its_delegated_token(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    rank = world.mint(job, key=jose.PrivateKey.generate(), ttl=30)
    released = world.ask(rank, "acme/llama@v1")
    assert parse_time(completing.released_json(released)["lease"]["expires_at"]) <= end(rank)
