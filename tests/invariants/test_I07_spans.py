"""I03, I05 and I07 for spans: a segment is refused wherever its file is, and every level must permit it."""

from __future__ import annotations

from typing import Any

import pytest

from broker import jose
from broker.canonical import Json
from broker.errors import InvalidProof, InvalidRequest, InvalidToken, NotFound, OverBudget, ScopeExceeded
from tests.foreign import read_details
from tests.world import MIB, Person, World

REF = "acme/llama@v1"
FILES = {"d-2/a": bytes(3 * MIB), "d/a": bytes(3 * MIB), "d/b/c": b"deep", "x": b"x"}
AT = {path: index for index, path in enumerate(sorted(FILES))}
"""Sorted by their bytes: d-2/a before d/a."""


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, REF, FILES, extent_size=2 * MIB)
    return world.add("ana", groups=["acme"])


def span(path: str, extent: int = 0, first: int = 0, last: int = 0) -> tuple[int, int, int, int]:
    return AT[path], extent, first, last


def refused(world: World, who: Person, error: type[BaseException], *spans: Any, **changes: Any) -> None:
    """Refused, recorded as such, and nothing left."""
    issued, size = len(world.store.issued), world.size()
    with pytest.raises(error):
        world.ask(who, REF, spans=spans, **changes)
    assert len(world.store.issued) == issued
    entries = [world.entry(index) for index in range(size, world.size())]
    assert all(entry["type"] != "grant" for entry in entries)


@pytest.mark.parametrize(
    "details",
    [
        read_details(paths=["nothing"]),
        [{"type": "artifact_access", "actions": ["describe"], "identifier": "acme/llama"}],
        [{"type": "artifact_access", "actions": ["read"], "identifier": "acme/llama-2"}],
        [{"type": "ledger_access", "actions": ["search"]}],
    ],
    ids=["paths that match nothing", "another action", "a namesake", "another right"],
)
def test_I03_scope_that_grants_nothing_grants_no_segment(
    world: World, ana: Person, details: list[Json]
) -> None:
    ana.token = world.login(ana, details)
    refused(world, ana, ScopeExceeded, span("x"))


def test_I05_a_segment_is_in_its_own_file_only(world: World, ana: Person) -> None:
    ana.token = world.login(ana, read_details(paths=["d/*"]))
    grant = world.ask(ana, REF, include=("d/a",), spans=(span("d/a", 1, 0, 0),)).grant
    for other in ("d-2/a", "d/b/c", "x"):
        refused(world, ana, ScopeExceeded, span(other), include=(other,))
        with pytest.raises(ScopeExceeded):
            world.lease(ana, grant.id, extents=None, spans=(span(other),))
    with pytest.raises(InvalidRequest):
        world.lease(ana, grant.id, extents=None, spans=(span("d/a"), (AT["d/a"], 2, 0, 0)))


def test_I05_a_selection_with_one_file_too_many_is_refused_as_a_whole(world: World, ana: Person) -> None:
    ana.token = world.login(ana, read_details(paths=["d/*"]))
    # Whoever selects more than the token's paths is refused, however few segments are asked for.
    refused(world, ana, ScopeExceeded, span("d/a"))
    refused(world, ana, ScopeExceeded, span("d/a"), include=("d/**",))


def test_I07_every_level_must_permit_the_file_of_a_span(world: World, ana: Person) -> None:
    parent = Person(id=ana.id, key=ana.key, token=world.login(ana, read_details(paths=["d/**"])))
    child = world.mint(parent, read_details(paths=["**"]), key=jose.PrivateKey.generate())
    world.ask(child, REF, include=("d/a",), spans=(span("d/a"),))
    refused(world, child, ScopeExceeded, span("x"), include=("x",))
    grandchild = world.mint(child, read_details(paths=["d/b/*"]), key=jose.PrivateKey.generate())
    world.ask(grandchild, REF, include=("d/b/c",), spans=(span("d/b/c"),))
    refused(world, grandchild, ScopeExceeded, span("d/a"), include=("d/a",))


def test_I07_a_segment_is_charged_as_its_extent_to_every_ancestor(world: World, ana: Person) -> None:
    details = [{**read_details()[0], "max_bytes": 3 * MIB}]
    parent = Person(id=ana.id, key=ana.key, token=world.login(ana, [*details, *_describe()]))
    children = [world.mint(parent, read_details(), key=jose.PrivateKey.generate()) for _ in range(2)]
    world.ask(children[0], REF, include=("d/a",), spans=(span("d/a", 0, 1, 1),))
    refused(world, children[1], OverBudget, span("d-2/a", 0, 2, 2), include=("d-2/a",))
    world.ask(children[1], REF, include=("d/a",), spans=(span("d/a", 1, 0, 0),))


def test_I07_a_dead_ancestor_ends_spans_too(world: World, ana: Person) -> None:
    child = world.mint(ana, read_details(), key=jose.PrivateKey.generate())
    grant = world.ask(child, REF, spans=(span("d/a"),)).grant
    world.revoke("token", world.token_row(ana).id)
    with pytest.raises(InvalidToken):
        world.lease(child, grant.id, extents=None, spans=(span("d/a", 1),))


def test_I07_strangers_get_no_segment(world: World, ana: Person) -> None:
    eve = world.add("eve")
    refused(world, eve, NotFound, span("x"))
    grant = world.ask(ana, REF, spans=(span("x"),)).grant
    with pytest.raises(NotFound):
        world.lease(eve, grant.id, extents=None, spans=(span("x"),))
    thief = Person(id=ana.id, key=jose.PrivateKey.generate(), token=ana.token)
    with pytest.raises(InvalidProof):
        world.lease(thief, grant.id, extents=None, spans=(span("x"),))


def _describe() -> list[Json]:
    return [{"type": "artifact_access", "actions": ["describe"], "identifier": "*"}]
