"""The slice is enough: a decision on it is the decision on the whole store, whatever the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cedarpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.model import ROLES, Collection, Group, Principal
from broker.policy.bundle import build_bundle
from broker.policy.engine import PolicyEngine
from broker.policy.entities import (
    build_slice,
    group_entity,
    principal_entity,
    target_entities,
)
from broker.policy.request import (
    ArtifactTarget,
    CollectionTarget,
    Context,
    PolicyRequest,
    Target,
    VersionTarget,
    collect_request,
)

POLICIES = Path(__file__).parents[2] / "policies"
# Beside the default set: forbids and permits that ask for every edge there is.
EXTRA = """
@id("x-in-g0") forbid (principal in Broker::Group::"g0", action, resource);
@id("x-g1-reads-c0") permit (principal in Broker::Group::"g1", action == Broker::Action::"read",
  resource in Broker::Collection::"c0");
@id("x-shut") forbid (principal, action == Broker::Action::"read", resource in Broker::Artifact::"c1/a0")
  unless { principal in [Broker::Group::"g2", Broker::Group::"g3"] };
@id("x-common") permit (principal, action == Broker::Action::"publish", resource)
  when { resource.collection.readers.containsAny(resource.collection.publishers) };
@id("x-label") forbid (principal, action, resource is Broker::Version)
  when { resource.hasTag("hold") && resource.artifact.collection.readers.contains(Broker::Group::"g1") };
"""
FILES = {path.name: path.read_bytes() for path in POLICIES.glob("*.cedar*")}
ENGINE = PolicyEngine(build_bundle({**FILES, "extra.cedar": EXTRA.encode()}))
TEXT = "\n".join(text for name, text in ENGINE.bundle.files.items() if name.endswith(".cedar"))
SCHEMA = cedarpy.Schema.from_str(ENGINE.bundle.schema)
WHOLE = cedarpy.PolicySet.from_str(TEXT)
CONTEXT = Context(now=0, purpose="", address=None, asked_bytes=0, opened_bytes=0, incidents=0, approvals=())

GROUP_NAMES = [f"g{n}" for n in range(6)]
COLLECTION_NAMES = ["c0", "c1", "g1"]


@dataclass(frozen=True, kw_only=True)
class Store:
    """Everything that there is."""

    groups: dict[str, Group]
    principals: list[Principal]
    targets: list[Target]


def some(names: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), unique=True, max_size=3).map(tuple)


@st.composite
def stores(draw: st.DrawFn) -> Store:
    # A group is a member of later ones only: groups have no rings.
    groups = {
        name: Group(name=name, parents=draw(some(GROUP_NAMES[at + 1 :])) if at < 5 else ())
        for at, name in enumerate(GROUP_NAMES)
    }
    principals = [
        Principal(
            id=id,
            roles=draw(some(list(ROLES))),
            groups=draw(some(GROUP_NAMES)),
            disabled=draw(st.integers(0, 9)) == 0,
            created=0,
        )
        for id in ("user:a", "user:b", "workload:a")
    ]
    targets: list[Target] = []
    for name in COLLECTION_NAMES:
        collection = Collection(
            name=name, readers=draw(some(GROUP_NAMES)), publishers=draw(some(GROUP_NAMES))
        )
        targets.append(CollectionTarget(collection=collection))
        targets.append(ArtifactTarget(collection=collection, name="a0", kind="dataset"))
        labels = draw(
            st.fixed_dictionaries(
                {"tier": st.sampled_from(["standard", "standard", "critical", "odd"])},
                optional={"hold": st.just("yes")},
            )
        )
        targets.append(
            VersionTarget(collection=collection, name="a0", version="v", kind="dataset", labels=labels)
        )
    return Store(groups=groups, principals=principals, targets=targets)


def requests(store: Store) -> list[PolicyRequest]:
    actions = {
        CollectionTarget: ("describe", "create-collection"),
        ArtifactTarget: ("describe",),
        VersionTarget: ("describe", "read", "publish"),
    }
    return [
        collect_request(
            principal=principal,
            action=action,
            target=target,
            context=CONTEXT,
            find_group=store.groups.get,
        )
        for principal in store.principals
        for target in store.targets
        for action in actions[type(target)]  # type: ignore[index]
    ]


def whole_store(store: Store) -> cedarpy.Entities:
    entities = [principal_entity(principal) for principal in store.principals]
    entities += [group_entity(group) for group in store.groups.values()]
    entities += [{"uid": {"type": "Broker::Role", "id": role}, "attrs": {}, "parents": []} for role in ROLES]
    for target in store.targets:
        entities += target_entities(target)
    unique = {str(entity["uid"]): entity for entity in entities}
    import json

    return cedarpy.Entities.from_json_str(json.dumps(list(unique.values())), SCHEMA)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stores())
def test_a_decision_on_the_slice_is_the_decision_on_the_whole_store(store: Store) -> None:
    everything = whole_store(store)
    for request in requests(store):
        mine = ENGINE.decide(request)
        asked = build_slice(request).as_json()
        del asked["entities"]
        answer = cedarpy.is_authorized(asked, WHOLE, everything, SCHEMA)
        assert answer.diagnostics.errors == []
        assert mine.reason in ("permitted", "forbidden", "not-permitted")
        assert (mine.effect == "allow") == (answer.decision is cedarpy.Decision.Allow)
        assert set(mine.policies) == set(answer.diagnostics.id_annotations_by_reason.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stores(), st.data())
def test_a_store_that_lost_a_group_never_answers_more_than_the_whole_one(
    store: Store, data: st.DataObject
) -> None:
    request = data.draw(st.sampled_from(requests(store)))
    needed = [group.name for group in (*request.memberships, *request.audience)]
    if not needed:
        return
    gone = data.draw(st.sampled_from(needed))
    poorer = collect_request(
        principal=request.principal,
        action=request.action,
        target=request.target,
        context=CONTEXT,
        find_group=lambda name: None if name == gone else store.groups.get(name),
    )
    decision = ENGINE.decide(poorer)
    assert (decision.effect, decision.reason) == ("deny", "incomplete")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet='(){}[]"/\\\r\n;@ifwhenpermit,.&|!-:*<>=ab1 ', max_size=200))
def test_no_text_raises_anything_but_a_refusal(text: str) -> None:
    from broker.errors import InvalidRequest

    try:
        engine = PolicyEngine(build_bundle({**FILES, "extra.cedar": text.encode()}))
    except InvalidRequest:
        return
    assert len(engine.policies) >= 13
