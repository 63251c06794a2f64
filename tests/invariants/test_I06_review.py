"""I06: a lease never outlives the token as it is signed, nor a URL its lease, to the millisecond."""

from __future__ import annotations

import pytest

from broker.canonical import parse_time
from broker.errors import Conflict
from broker.identity import token
from tests.world import MIB, URL, Person, World


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(MIB)})
    made = world.add("ana", groups=["acme"])
    world.clock.ms += 1999 - world.clock.ms % 1000
    made.token = world.login(made)
    return made


def end_of(world: World, who: Person) -> int:
    claims = token.verify_access_token(
        who.token, keys=world.house.token_keys.accepted, issuer=URL, audience=URL, now=world.clock.now()
    )
    return claims.expires_at


def test_I06_a_lease_ends_with_the_signed_end_of_its_token(world: World, ana: Person) -> None:
    end = end_of(world, ana)
    world.clock.ms = end - 60_000
    assert parse_time(world.ask(ana, "acme/llama@v1").lease["expires_at"]) == end


def test_I06_a_url_is_not_made_for_less_than_a_second(world: World, ana: Person) -> None:
    end = end_of(world, ana)
    world.clock.ms = end - 1000
    world.ask(ana, "acme/llama@v1")
    assert max(expires for *_, expires in world.store.issued) == end
    world.clock.ms = end - 999
    with pytest.raises(Conflict, match="ran out"):
        world.ask(ana, "acme/llama@v1")
    assert max(expires for *_, expires in world.store.issued) == end
