"""I06 for spans: URLs and keys of single segments end with the lease, and the lease with what it rests on."""

from __future__ import annotations

import pytest

from broker import limits
from broker.canonical import parse_time
from broker.errors import Conflict, GrantRevoked, InvalidToken
from broker.services import access
from tests.world import MIB, Person, World

REF = "acme/llama@v1"
SPANS = ((0, 0, 1, 2), (0, 1, 0, 0))


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, REF, {"a": bytes(8 * MIB)}, extent_size=4 * MIB)
    return world.add("ana", groups=["acme"])


def test_I06_a_span_ends_with_its_lease_and_the_lease_with_its_token(world: World, ana: Person) -> None:
    world.store.issued.clear()
    fresh = world.ask(ana, REF, spans=SPANS)
    assert parse_time(fresh.lease["expires_at"]) == world.clock.now() + limits.LEASE_TTL * 1000
    world.clock.forward(limits.ACCESS_TOKEN_TTL - 100)
    late = world.lease(ana, fresh.grant.id, extents=None, spans=SPANS)
    expires = parse_time(late.lease["expires_at"])
    assert expires == world.token_row(ana).expires
    assert expires == parse_time(world.entry(late.recorded.index)["expires_at"])
    urls = [expires for kind, _, _, expires in world.store.issued if kind == "GET"]
    # Segments, a header for the one that does not begin its extent, and the segment list: twice each.
    assert len(urls) == 2 * 4
    assert all(end <= parse_time(fresh.lease["expires_at"]) for end in urls[:4])
    assert all(end <= expires for end in urls[4:])


def test_I06_a_dead_token_or_grant_leases_no_span(world: World, ana: Person) -> None:
    grant = world.ask(ana, REF, spans=SPANS).grant
    world.clock.forward(limits.ACCESS_TOKEN_TTL + 1)
    with pytest.raises(InvalidToken):
        world.lease(ana, grant.id, extents=None, spans=SPANS)
    world.clock.forward(limits.GRANT_TTL)
    ana.token = world.login(ana)
    with pytest.raises(GrantRevoked):
        world.lease(ana, grant.id, extents=None, spans=SPANS)


def test_I06_a_retry_after_the_end_gets_no_fresh_urls(world: World, ana: Person) -> None:
    wanted = world.grant_request(REF, spans=SPANS)
    access.ask(world.house, world.request(ana), wanted)
    world.clock.forward(limits.LEASE_TTL)
    issued = len(world.store.issued)
    with pytest.raises(Conflict):
        access.ask(world.house, world.request(ana), wanted)
    assert len(world.store.issued) == issued
