"""I19, reviewed: a key whose row vanished is not taken for one that was named at minting."""

from __future__ import annotations

import pytest

from broker import jose
from broker.errors import BrokerError, InvalidToken
from tests.foreign import FakeIssuer
from tests.invariants.test_I19_database_alone import tamper
from tests.world import World


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme"]))
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"1"})
    return issuer


def test_I19_a_revoked_key_whose_row_is_deleted_stays_dead(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    helper = world.exchange(ci.token(world.clock.now()))
    handed = world.mint(job, key=helper.key)
    assert world.ask(handed, "acme/llama@v1").grant.principal == job.id
    world.revoke("key", helper.key.jkt)
    with pytest.raises(InvalidToken):
        world.ask(handed, "acme/llama@v1")
    tamper(world, "DELETE FROM keys WHERE jkt = ?", helper.key.jkt)
    with pytest.raises(InvalidToken):
        world.ask(handed, "acme/llama@v1")


def test_I19_who_is_delegated_is_covered_by_the_rows_mac(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    rank = world.mint(job, key=jose.PrivateKey.generate())
    child = world.mint(rank)
    assert [world.token_row(who).delegated for who in (job, rank, child)] == [False, True, True]
    assert not world.token_row(world.mint(job)).delegated
    tamper(world, "UPDATE tokens SET delegated = 1 - delegated")
    for who in (job, rank, child):
        with pytest.raises(BrokerError):
            world.ask(who, "acme/llama@v1")
