"""Leases for segments: what they reach, what they open, what is written down, and what is charged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker import limits
from broker.canonical import sha256_digest
from broker.envelope import extents, lease
from broker.envelope.lease import range_header
from broker.errors import Conflict, InvalidRequest, OverBudget
from broker.ledger.selection import selection_record
from broker.services import access
from tests.world import MIB, Person, World

REF = "acme/llama@v1"
EXTENT = 4 * MIB
READ = {"type": "artifact_access", "actions": ["read"], "identifier": "acme/llama"}
SIZE = 2 * EXTENT + MIB
"""Two extents of five segments, and one of two."""


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, REF, {"a": b"x", "w.bin": bytes(SIZE)}, extent_size=EXTENT)
    return world.add("ana", groups=["acme"])


def record_of(world: World, entry: dict[str, Any]) -> dict[str, Any]:
    with world.ledger.view() as view:
        data = view.record(entry["selection"]["digest"])
    assert sha256_digest(data) == entry["selection"]["digest"]
    found: dict[str, Any] = json.loads(data)
    return found


def test_a_grant_of_spans(world: World, ana: Person) -> None:
    spans = ((1, 0, 0, 1), (1, 0, 3, 3), (1, 2, 1, 1))
    released = world.ask(ana, REF, spans=spans)
    assert released.lease["spans"] == [list(span) for span in spans]
    assert released.lease["extents"] == [[1, 0, 0], [1, 2, 2]]
    entry = world.entry(released.recorded.index)
    assert entry["selection"]["segments"] == 4
    reached = extents.FIRST_PLAINTEXT + 2 * extents.SEGMENT_PLAINTEXT + (MIB - extents.FIRST_PLAINTEXT)
    assert entry["served"] == reached
    assert entry["bytes"] == SIZE + 1, "a grant's entry speaks of everything that was selected"
    record = record_of(world, entry)
    assert record["spans"] == released.lease["spans"]
    assert record["extents"] == released.lease["extents"]
    (file,) = world.open_lease(ana, released).files
    assert [(found.index, found.span) for found in file.extents] == [(0, (0, 1)), (0, (3, 3)), (2, (1, 1))]
    assert file.segments is not None, "spans need the list of segment digests"


def test_urls_reach_their_segments_and_headers_and_nothing_else(world: World, ana: Person) -> None:
    world.store.issued.clear()
    released = world.ask(ana, REF, spans=((1, 1, 2, 3),))
    (file,) = world.open_lease(ana, released).files
    (extent,) = file.extents
    start, _ = extents.extent_range(SIZE, EXTENT, 1)
    assert extent.header is not None
    assert (extent.header.start, extent.header.length) == (start, extents.HEADER_SIZE)
    assert (extent.start, extent.length) == extents.segments_range(SIZE, EXTENT, 1, 2, 3)
    assert extent.length == 2 * MIB
    assert file.segments is not None
    issued = {what for kind, _, what, _ in world.store.issued if kind == "GET"}
    assert issued == {
        range_header(extent.start, extent.length),
        range_header(start, extents.HEADER_SIZE),
        range_header(0, file.segments.length),
    }


def test_a_later_lease_of_spans(world: World, ana: Person) -> None:
    grant = world.ask(ana, REF, extents=()).grant
    released = world.lease(ana, grant.id, extents=None, spans=((1, 0, 4, 4),))
    entry = world.entry(released.recorded.index)
    assert (entry["type"], entry["lease"]) == ("lease", 1)
    assert entry["selection"]["segments"] == 1
    assert entry["selection"]["extents"] == 1
    assert entry["bytes"] == EXTENT, "the key opens the whole extent"
    assert entry["served"] == EXTENT - extents.FIRST_PLAINTEXT - 3 * extents.SEGMENT_PLAINTEXT
    assert entry["selection"]["digest"] == sha256_digest(
        selection_record(
            artifact="acme/llama",
            version="v1",
            manifest=released.grant.manifest,
            files=[1],
            lease=1,
            extents=[(1, 0, 0)],
            spans=[(1, 0, 4, 4)],
        )
    )


def test_whole_extents_are_recorded_as_ever(world: World, ana: Person) -> None:
    released = world.ask(ana, REF)
    entry = world.entry(released.recorded.index)
    assert "spans" not in released.lease
    assert "served" not in entry
    assert "segments" not in entry["selection"]
    assert "spans" not in record_of(world, entry)
    for file in world.open_lease(ana, released).files:
        assert file.segments is None
        assert all(extent.span is extent.header is None for extent in file.extents)


def test_the_window_counts_what_keys_open(world: World, ana: Person) -> None:
    world.with_settings(lease_window=EXTENT)
    released = world.ask(ana, REF, spans=((1, 0, 0, 0), (1, 0, 2, 2), (1, 1, 0, 0)))
    assert released.lease["spans"] == [[1, 0, 0, 0], [1, 0, 2, 2]]
    assert world.entry(released.recorded.index)["selection"]["segments"] == 2


def test_an_extent_is_charged_once_and_whole(world: World, ana: Person) -> None:
    ana.token = world.login(ana, [{**READ, "max_bytes": EXTENT}])
    grant = world.ask(ana, REF, spans=((1, 0, 0, 0), (1, 0, 4, 4))).grant
    world.lease(ana, grant.id, extents=None, spans=((1, 0, 2, 2),))
    world.lease(ana, grant.id, (1, 0, 0))
    with pytest.raises(OverBudget):
        world.lease(ana, grant.id, extents=None, spans=((1, 1, 0, 0),))
    assert world.entry(world.size() - 1)["type"] == "denial"


def test_a_segment_of_an_extent_that_is_too_large_is_over_budget(world: World, ana: Person) -> None:
    ana.token = world.login(ana, [{**READ, "max_bytes": EXTENT - 1}])
    with pytest.raises(OverBudget):
        world.ask(ana, REF, spans=((1, 0, 0, 0),))


def test_the_same_request_again_gets_the_same_spans(world: World, ana: Person) -> None:
    wanted = world.grant_request(REF, spans=((1, 1, 1, 2),))
    first = access.ask(world.house, world.request(ana), wanted)
    size = world.size()
    again = access.ask(world.house, world.request(ana), wanted)
    assert again.lease["spans"] == first.lease["spans"] == [[1, 1, 1, 2]]
    assert again.recorded.index == first.recorded.index
    assert world.size() == size
    assert world.open_lease(ana, again).files[0].extents[0].span == (1, 2)
    other = world.grant_request(REF, spans=((1, 1, 1, 3),), request_id=wanted.request_id)
    with pytest.raises(Conflict):
        access.ask(world.house, world.request(ana), other)


@pytest.mark.parametrize(
    "spans",
    [
        (),
        ((1, 0, 0),),
        ((1, 0, 0, 0, 0),),
        ((1, 0, 0, 0.0),),
        ((1, 0, 0, True),),
        ((1, 0, -1, 0),),
        ((1, 0, 1, 0),),
        ((1, 0, 0, 5),),
        ((1, 2, 2, 2),),
        ((1, 3, 0, 0),),
        ((2, 0, 0, 0),),
        ((0, 0, 0, 1),),
        ((1, 0, 0, 1), (1, 0, 1, 2)),
        ((1, 0, 2, 2), (1, 0, 0, 0)),
        ((1, 1, 0, 0), (1, 0, 0, 0)),
        ((1, 0, 0, 0), (0, 0, 0, 0)),
        ((1, 0, 0, 0), (1, 0, 0, 0)),
    ],
    ids=repr,
)
def test_spans_that_are_none_are_refused(world: World, ana: Person, spans: Any) -> None:
    grant = world.ask(ana, REF, extents=()).grant
    size = world.size()
    with pytest.raises(InvalidRequest):
        world.ask(ana, REF, spans=spans)
    with pytest.raises(InvalidRequest):
        world.lease(ana, grant.id, extents=None, spans=spans)
    assert world.size() == size


def test_extents_and_spans_are_two_different_things(world: World, ana: Person) -> None:
    grant = world.ask(ana, REF, extents=()).grant
    with pytest.raises(InvalidRequest):
        world.ask(ana, REF, extents=((1, 0, 0),), spans=((1, 0, 0, 0),))
    with pytest.raises(InvalidRequest):
        world.lease(ana, grant.id, (1, 0, 0), spans=((1, 0, 0, 0),))
    with pytest.raises(InvalidRequest):
        world.lease(ana, grant.id, extents=None)


def test_a_window_holds_at_least_one_extent_of_spans(world: World, ana: Person) -> None:
    world.with_settings(lease_window=1)
    released = world.ask(ana, REF, spans=((1, 0, 0, 0), (1, 1, 0, 0)))
    assert released.lease["spans"] == [[1, 0, 0, 0]]


def test_many_spans_of_one_lease_fit_its_form(world: World, ana: Person) -> None:
    pub = world.add("pub2", roles=["publisher"], groups=["acme"])
    count = limits.MAX_LEASE_EXTENTS
    files = {f"f{at:04d}": b"x" for at in range(count)}
    world.publish(pub, "acme/many@v1", files)
    released = world.ask(ana, "acme/many@v1", spans=tuple((at, 0, 0, 0) for at in range(count)))
    opened = world.open_lease(ana, released)
    assert len(opened.files) == count
    assert lease.parse_lease(lease.lease_bytes(opened)) == opened
