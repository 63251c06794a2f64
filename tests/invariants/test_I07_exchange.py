"""I07 through the real services: chains of up to four exchanges, asked, charged, killed and stolen.

The oracle knows no patterns and no details: for each level it lists by hand what the level covers. What
a chain covers is what all its levels cover; what it may open is what every ceiling above it has room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker import jose, limits
from broker.canonical import Json
from broker.errors import BrokerError, InvalidGrant, InvalidToken, OverBudget, ScopeExceeded
from tests.foreign import FakeIssuer
from tests.world import Person, World

SIZES = {"a": 3, "ab": 5, "d/a": 7, "d/e/a": 11}
MATCHES = {
    "**": {"a", "ab", "d/a", "d/e/a"},
    "*": {"a", "ab"},
    "a?": {"ab"},
    "d/*": {"d/a"},
    "**/a": {"a", "d/a", "d/e/a"},
}
ARTIFACTS = ("acme/llama", "acme/llama-2", "acme-2/llama")
REACHES = {
    "*": set(ARTIFACTS),
    "acme/*": {"acme/llama", "acme/llama-2"},
    "acme/llama": {"acme/llama"},
    "acme/llama@v1": {"acme/llama"},
    "acme/llama@v2": set(),
    "acme-2/*": {"acme-2/llama"},
}

details = st.fixed_dictionaries(
    {
        "type": st.just("artifact_access"),
        # Mostly wide, so that most chains pass something and their ceilings are what stops them.
        "actions": st.sampled_from([["describe", "read"]] * 5 + [["read"], ["describe"]]),
        "identifier": st.sampled_from(["*"] * 6 + sorted(REACHES)),
    },
    optional={
        "paths": st.lists(st.sampled_from(["**", *sorted(MATCHES)]), min_size=1, max_size=3, unique=True),
        "max_bytes": st.sampled_from([3, 8, 15, 26, 1000]),
        "purpose": st.sampled_from(["evaluation"] * 5 + ["training"]),
    },
)
levels = st.lists(details, min_size=1, max_size=2)
asks = st.tuples(
    st.integers(0, 3),
    st.sampled_from(ARTIFACTS),
    st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=4, unique=True),
    st.sampled_from(["evaluation"] * 5 + ["training"]),
)


@dataclass
class Scene:
    world: World
    issuer: FakeIssuer


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    world = World(tmp_path_factory.mktemp("chains"))
    pub = world.add("pub", roles=["publisher"], groups=["acme", "acme-2"])
    for artifact in ARTIFACTS:
        world.publish(pub, f"{artifact}@v1", {path: bytes(size) for path, size in SIZES.items()})
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme", "acme-2"]))
    yield Scene(world=world, issuer=issuer)
    world.ledger.close()


@dataclass
class Node:
    who: Person
    level: list[Json]
    id: str
    opened: set[tuple[str, str]] = field(default_factory=set)
    used: int = 0


def covers(detail: Json, artifact: str, paths: list[str], purpose: str) -> bool:
    if "read" not in detail["actions"] or artifact not in REACHES[detail["identifier"]]:
        return False
    if detail.get("purpose", purpose) != purpose:
        return False
    allowed = set().union(*(MATCHES[pattern] for pattern in detail.get("paths", ["**"])))
    return set(paths) <= allowed


def expected(chain: list[Node], artifact: str, paths: list[str], purpose: str) -> tuple[str, list[Node]]:
    """(what has to come, the nodes that are charged)."""
    charged = []
    over = False
    for node in chain:
        fitting = [detail for detail in node.level if covers(detail, artifact, paths, purpose)]
        if not fitting:
            return "refused", []
        bounds = [detail["max_bytes"] for detail in fitting if "max_bytes" in detail]
        if bounds:
            charged.append(node)
            cost = sum(SIZES[path] for path in paths if (artifact, path) not in node.opened)
            over = over or (cost > 0 and node.used + cost > min(bounds))
    return ("over" if over else "passes"), charged


def build(scene: Scene, chain: list[list[Json]], *, workload: bool, own_key: list[bool]) -> list[Node]:
    world = scene.world
    # Each example has a minute of its own: denials are recorded one by one up to a number a minute.
    world.clock.forward(61)
    world.admin.token = world.login(world.admin)
    if workload:
        who = world.exchange(scene.issuer.token(world.clock.now()), details=chain[0])
    else:
        who = scene_person(scene)
        who = Person(id=who.id, key=who.key, token=world.login(who, chain[0]))
    nodes = [Node(who=who, level=chain[0], id=world.token_row(who).id)]
    for level, own in zip(chain[1:], own_key, strict=False):
        key = None if own else jose.PrivateKey.generate()
        who = world.mint(who, level, key=key)
        nodes.append(Node(who=who, level=level, id=world.token_row(who).id))
    return nodes


PEOPLE: dict[int, Person] = {}


def scene_person(scene: Scene) -> Person:
    if id(scene) not in PEOPLE:
        PEOPLE[id(scene)] = scene.world.add("ana", groups=["acme", "acme-2"])
    return PEOPLE[id(scene)]


def outcome(scene: Scene, node: Node, artifact: str, paths: list[str], purpose: str) -> str:
    try:
        scene.world.ask(node.who, f"{artifact}@v1", include=tuple(paths), purpose=purpose)
    except ScopeExceeded:
        return "refused"
    except OverBudget:
        return "over"
    return "passes"


SLOW = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


BOUNDED = [
    [{"type": "artifact_access", "actions": ["read"], "identifier": "*", "max_bytes": n}] for n in (15, 26)
]


@SLOW
@example(
    chain=[*BOUNDED, *BOUNDED],
    workload=True,
    own_key=[False] * 3,
    asked=[(3, "acme/llama", ["a", "ab"], "training"), (1, "acme/llama", ["d/a"], "training")],
)
@given(
    chain=st.lists(levels, min_size=1, max_size=limits.MAX_LIMITS_LEVELS),
    workload=st.booleans(),
    own_key=st.lists(st.booleans(), min_size=3, max_size=3),
    asked=st.lists(asks, min_size=1, max_size=4),
)
def test_I07_a_request_passes_exactly_when_every_level_and_every_ceiling_permits_it(
    scene: Scene, chain: list[list[Json]], workload: bool, own_key: list[bool], asked: list[Any]
) -> None:
    nodes = build(scene, chain, workload=workload, own_key=own_key)
    for at, artifact, paths, purpose in asked:
        upto = nodes[: at % len(nodes) + 1]
        wanted, charged = expected(upto, artifact, paths, purpose)
        assert outcome(scene, upto[-1], artifact, paths, purpose) == wanted
        for node in charged if wanted == "passes" else ():
            fresh = {(artifact, path) for path in paths} - node.opened
            node.used += sum(SIZES[path] for _, path in fresh)
            node.opened |= fresh
        with scene.world.ledger.view() as view:
            assert [view.meter(node.id) for node in nodes] == [node.used for node in nodes]


@SLOW
@given(
    depth=st.integers(2, 4),
    dead=st.integers(0, 3),
    own_key=st.lists(st.booleans(), min_size=3, max_size=3),
    how=st.sampled_from(["token", "row"]),
)
def test_I07_a_chain_with_one_dead_ancestor_is_dead(
    scene: Scene, depth: int, dead: int, own_key: list[bool], how: str
) -> None:
    everything = [{"type": "artifact_access", "actions": ["describe", "read"], "identifier": "*"}]
    nodes = build(scene, [everything] * depth, workload=True, own_key=own_key)
    at = dead % depth
    assert outcome(scene, nodes[-1], "acme/llama", ["a"], "training") == "passes"
    if how == "token":
        scene.world.revoke("token", nodes[at].id)
    else:
        from broker.services import tokens

        who = nodes[at].who
        tokens.revoke_own(scene.world.house, scene.world.request(who, path="/oauth/revoke"), text=who.token)
    for number, node in enumerate(nodes):
        if number < at:
            assert outcome(scene, node, "acme/llama", ["a"], "training") == "passes"
        else:
            with pytest.raises(InvalidToken):
                outcome(scene, node, "acme/llama", ["a"], "training")
            with pytest.raises(BrokerError):
                scene.world.mint(node.who)


@SLOW
@given(
    depth=st.integers(1, 4),
    at=st.integers(0, 3),
    own_key=st.lists(st.booleans(), min_size=3, max_size=3),
    named=st.booleans(),
)
def test_I07_a_stolen_token_is_exchanged_by_nobody(
    scene: Scene, depth: int, at: int, own_key: list[bool], named: bool
) -> None:
    everything = [{"type": "artifact_access", "actions": ["describe", "read"], "identifier": "*"}]
    nodes = build(scene, [everything] * depth, workload=True, own_key=own_key)
    stolen, thief = nodes[at % depth].who, jose.PrivateKey.generate()
    before = scene.world.size()
    # Neither a new key nor any other key of the same chain will do.
    others = [node.who.key for node in nodes if node.who.key.jkt != stolen.key.jkt]
    for prover in (thief, *others):
        with pytest.raises(InvalidGrant):
            scene.world.mint(stolen, prover=prover, key=thief if named else None)
    assert scene.world.size() == before
