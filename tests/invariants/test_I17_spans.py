"""I17 for spans: a list of them, and each number in it, is bounded; at the limit and one past it."""

from __future__ import annotations

from typing import Any

import pytest

from broker import limits
from broker.canonical import MAX_SAFE_INTEGER, canonical_bytes
from broker.errors import InvalidRequest
from broker.web import models
from tests.world import Person, World

REF = "acme/many@v1"
MOST = limits.MAX_LEASE_EXTENTS


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, REF, {f"f{at:04d}": b"x" for at in range(MOST + 1)})
    return world.add("ana", groups=["acme"])


def body(**members: Any) -> bytes:
    fixed = {
        "request_id": "00000000-0000-4000-8000-000000000000",
        "recipient": {"kem": "MLKEM768-X25519", "public_key": "AA"},
    }
    return canonical_bytes({**fixed, **members})


@pytest.mark.parametrize(
    ("shape", "more"), [(models.GrantBody, {"artifact": "acme/many"}), (models.LeaseBody, {})]
)
def test_I17_the_list_and_its_items_are_bounded(shape: Any, more: dict[str, Any]) -> None:
    def parse(spans: Any) -> Any:
        return models.parse_body(shape, body(spans=spans, **more)).spans

    assert len(parse([[at, 0, 0, 0] for at in range(MOST)])) == MOST
    assert parse([[0, 0, 0, MAX_SAFE_INTEGER]])
    for bad in (
        [[at, 0, 0, 0] for at in range(MOST + 1)],
        [],
        [[]],
        [[0, 0, 0]],
        [[0, 0, 0, 0, 0]],
        [[0, 0, 0, -1]],
        [[0, 0, 0, 0.5]],
        [[0, 0, 0, "0"]],
        [[0, 0, 0, True]],
        [0, 0, 0, 0],
        {},
        "0",
    ):
        with pytest.raises(InvalidRequest):
            parse(bad)


def test_I17_extents_or_spans() -> None:
    with pytest.raises(InvalidRequest):
        models.parse_body(models.LeaseBody, body())
    with pytest.raises(InvalidRequest):
        models.parse_body(models.LeaseBody, body(spans=[[0, 0, 0, 0]], extents=[[0, 0, 0]]))
    with pytest.raises(InvalidRequest):
        models.parse_body(models.GrantBody, body(artifact="a/b", spans=[[0, 0, 0, 0]], extents=[[0, 0, 0]]))
    assert models.parse_body(models.GrantBody, body(artifact="a/b")).spans is None
    assert models.parse_body(models.LeaseBody, body(extents=[[0, 0, 0]])).spans is None


def test_I17_a_lease_of_as_many_spans_as_it_can_hold(world: World, ana: Person) -> None:
    def spans(count: int) -> tuple[tuple[int, int, int, int], ...]:
        return tuple((at, 0, 0, 0) for at in range(count))

    released = world.ask(ana, REF, spans=spans(MOST))
    assert len(released.lease["spans"]) == MOST
    entry = world.entry(released.recorded.index)
    assert entry["selection"]["segments"] == entry["served"] == MOST
    size = world.size()
    with pytest.raises(InvalidRequest):
        world.ask(ana, REF, spans=spans(MOST + 1))
    assert world.size() == size
