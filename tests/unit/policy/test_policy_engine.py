from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from broker import limits
from broker.model import Collection, Group, Principal
from broker.policy.bundle import Bundle
from broker.policy.engine import PolicyEngine
from broker.policy.entities import build_slice, find_gap
from broker.policy.explain import explain_decision
from broker.policy.request import (
    AdministrationTarget,
    Context,
    GrantTarget,
    PolicyRequest,
    VersionTarget,
    close_groups,
    collect_request,
    new_collection,
)

Make = Callable[[str], Bundle]
CONTEXT = Context(
    now=1_900_000_000_000,
    purpose="evaluation",
    address="10.1.2.3",
    asked_bytes=10,
    opened_bytes=0,
    incidents=0,
    approvals=(),
)
GROUPS = {"nlp": Group(name="nlp", parents=("company",)), "company": Group(name="company")}
ANA = Principal(id="user:ana", roles=("engineer",), groups=("nlp",), disabled=False, created=0)
NLP = Collection(name="nlp", readers=("nlp",), publishers=("nlp",))
VERSION = VersionTarget(
    collection=NLP, name="minilm", version="v1", kind="checkpoint", labels={"tier": "standard"}
)


def ask(**changes: Any) -> PolicyRequest:
    parts: dict[str, Any] = {"principal": ANA, "action": "read", "target": VERSION, "context": CONTEXT}
    return collect_request(**{**parts, **changes}, find_group=GROUPS.get)


def test_a_decision_names_what_determined_it(engine: PolicyEngine) -> None:
    decision = engine.decide(ask())
    assert (decision.effect, decision.reason) == ("allow", "permitted")
    assert decision.policies == ("readers-by-group",)
    assert decision.as_json() == {
        "effect": "allow",
        "policies": ["readers-by-group"],
        "bundle": engine.bundle.digest,
    }


def test_every_forbid_that_holds_is_named(engine: PolicyEngine) -> None:
    gone = dataclasses.replace(ANA, disabled=True)
    target = dataclasses.replace(VERSION, labels={"tier": "critical"})
    decision = engine.decide(ask(principal=gone, target=target))
    assert decision.effect == "deny"
    assert decision.policies == ("critical-needs-approval", "disabled-principal")


def test_a_decision_kept_as_evidence_decides_the_same_again(engine: PolicyEngine) -> None:
    slice = build_slice(ask())
    assert engine.decide_slice(slice) == engine.decide(ask())
    again = build_slice(ask())
    assert slice.as_json() == again.as_json()


# -- context ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "context"),
    [
        ('context.purpose == "evaluation"', {}),
        ("context.network.known", {}),
        ('context.network.address.isInRange(ip("10.0.0.0/8"))', {}),
        ('context.network.address.isInRange(ip("10.0.0.0/8"))', {"address": "::ffff:10.9.9.9"}),
        ('context.network.address == ip("2001:db8::1")', {"address": "2001:db8:0::1"}),
        ("!context.network.known && context.network.address.isIpv4()", {"address": None}),
        ('context.time.now == datetime("2030-03-17T17:46:40.123Z")', {"now": 1_900_000_000_123}),
        ("context.time.weekday == 7", {}),
        ("context.usage.asked == 10", {}),
        ("context.usage.opened == 9007199254740991", {"opened_bytes": 2**53 - 1}),
        ("context.risk.incidents > 1", {"incidents": 2}),
        ('context.approvals.contains("user:eve")', {"approvals": ("user:bob", "user:eve")}),
        ("context.approvals.isEmpty()", {}),
        ('principal.id == "user:ana" && principal is Broker::User', {}),
        ('resource.getTag("tier") == "standard"', {}),
    ],
)  # fmt: skip
def test_policy_sees_the_context(bundle_of: Make, condition: str, context: dict[str, Any]) -> None:
    request = ask(context=dataclasses.replace(CONTEXT, **context))

    def decide(kind: str) -> str:
        scope = 'principal, action == Broker::Action::"read", resource'
        text = f'@id("a") permit ({scope}) {kind} {{ resource.hasTag("tier") && {condition} }};'
        return PolicyEngine(bundle_of(text)).decide(request).effect

    assert decide("when") == "allow"
    assert decide("unless") == "deny"


@pytest.mark.parametrize(
    "context",
    [
        {"address": "10.0.0.1/8"},
        {"address": "example.org"},
        {"address": ""},
        {"address": "fe80::1%eth0"},
        {"now": 2**62},
        {"now": None},
        {"asked_bytes": 2**63},
        {"asked_bytes": 1.5},
        {"opened_bytes": None},
        {"incidents": "none"},
        {"purpose": None},
        {"purpose": "\ud800"},
        {"approvals": None},
        {"approvals": (1,)},
    ],
)
def test_a_context_that_does_not_fit_is_a_deny(engine: PolicyEngine, context: dict[str, Any]) -> None:
    decision = engine.decide(ask(context=dataclasses.replace(CONTEXT, **context)))
    assert (decision.effect, decision.policies) == ("deny", ())
    assert decision.reason in ("unfit", "error")


def test_numbers_at_the_edge_are_read_exactly(bundle_of: Make) -> None:
    text = (
        '@id("a") permit (principal, action, resource) when { context.usage.asked == 9223372036854775807 };'
    )
    engine = PolicyEngine(bundle_of(text))
    assert engine.decide(ask(context=dataclasses.replace(CONTEXT, asked_bytes=2**63 - 1))).effect == "allow"
    assert engine.decide(ask(context=dataclasses.replace(CONTEXT, asked_bytes=2**63 - 2))).effect == "deny"


# -- names (I04) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ['nlp"', "nlp\n", "nlp\x00", "*", "?", "nlp/../x", "n\u200blp", 'x" || true || "', "", "NLP"]
)
def test_a_hostile_name_is_only_ever_itself(engine: PolicyEngine, name: str) -> None:
    other = Collection(name=name, readers=(name,), publishers=(name,))
    find = {**GROUPS, name: Group(name=name)}.get
    request = collect_request(
        principal=ANA,
        action="read",
        target=dataclasses.replace(VERSION, collection=other),
        context=CONTEXT,
        find_group=find,
    )
    assert engine.decide(request).effect == "deny"
    named = dataclasses.replace(request.principal, groups=(name,), id=f"user:{name}")
    request = dataclasses.replace(request, principal=named, memberships=(Group(name=name),))
    assert engine.decide(request).effect == "allow"


def test_another_kind_with_the_same_id_is_another_entity(engine: PolicyEngine) -> None:
    role = Group(name="admin")
    member = dataclasses.replace(ANA, groups=("admin",))
    request = collect_request(
        principal=member,
        action="administer",
        target=AdministrationTarget(area="keys"),
        context=CONTEXT,
        find_group={"admin": role}.get,
    )
    assert engine.decide(request).effect == "deny"


@pytest.mark.parametrize("owner", ["workload:ana", "user:ana2", "user:an", "ana", "", "USER:ANA"])
def test_only_the_very_owner_owns(engine: PolicyEngine, owner: str) -> None:
    asked = ask(action="revoke-own", target=GrantTarget(id="g_1", owner=owner))
    assert engine.decide(asked).effect == "deny"


@pytest.mark.parametrize("roles", [("root",), ("engineer", "root"), ("Engineer",)])
def test_an_unknown_role_is_a_deny(engine: PolicyEngine, roles: tuple[str, ...]) -> None:
    decision = engine.decide(ask(principal=dataclasses.replace(ANA, roles=roles)))
    assert (decision.effect, decision.reason) == ("deny", "unfit")


@pytest.mark.parametrize("disabled", [True, None, 0, "", "no"])
def test_only_who_is_plainly_not_disabled_is_enabled(engine: PolicyEngine, disabled: Any) -> None:
    decision = engine.decide(ask(principal=dataclasses.replace(ANA, disabled=disabled)))
    assert decision.policies == ("disabled-principal",)


# -- groups -------------------------------------------------------------------------------------------


def chain(length: int) -> dict[str, Group]:
    names = ["nlp", *(f"g{n}" for n in range(1, length))]
    return {
        name: Group(name=name, parents=(names[at + 1],) if at + 1 < length else ())
        for at, name in enumerate(names)
    }


@pytest.mark.parametrize(("levels", "effect"), [(16, "allow"), (17, "deny")])
def test_the_depth_of_groups_is_limited(engine: PolicyEngine, levels: int, effect: str) -> None:
    assert limits.MAX_GROUP_DEPTH == 16
    request = collect_request(
        principal=ANA, action="read", target=VERSION, context=CONTEXT, find_group=chain(levels).get
    )
    assert engine.decide(request).effect == effect


@pytest.mark.parametrize(
    ("extra", "effect"), [(limits.MAX_SLICE_GROUPS - 1, "allow"), (limits.MAX_SLICE_GROUPS, "deny")]
)
def test_the_number_of_groups_is_limited(engine: PolicyEngine, extra: int, effect: str) -> None:
    names = tuple(f"g{n}" for n in range(extra))
    groups = {name: Group(name=name) for name in ("nlp", *names)}
    request = collect_request(
        principal=dataclasses.replace(ANA, groups=("nlp", *names)),
        action="read",
        target=VERSION,
        context=CONTEXT,
        find_group=groups.get,
    )
    assert engine.decide(request).effect == effect


def test_readers_beside_members_count_too(engine: PolicyEngine) -> None:
    mine = tuple(f"m{n}" for n in range(limits.MAX_SLICE_GROUPS - 1))
    request = ask(
        principal=dataclasses.replace(ANA, groups=("nlp", *mine)),
        target=dataclasses.replace(VERSION, collection=dataclasses.replace(NLP, readers=("nlp", "other"))),
    )
    groups = tuple(Group(name=name) for name in ("nlp", *mine))
    request = dataclasses.replace(
        request, memberships=groups, audience=(Group(name="nlp"), Group(name="other"))
    )
    assert find_gap(build_slice(request)) == "too many groups"
    assert engine.decide(request).reason == "incomplete"


def test_a_ring_of_groups_is_a_deny(engine: PolicyEngine) -> None:
    ring = {"nlp": Group(name="nlp", parents=("b",)), "b": Group(name="b", parents=("nlp",))}
    assert [g.name for g in close_groups(["nlp"], ring.get)] == ["b", "nlp"]
    request = collect_request(
        principal=ANA, action="read", target=VERSION, context=CONTEXT, find_group=ring.get
    )
    assert engine.decide(request).effect == "deny"


def test_close_groups_takes_shared_ancestors_once() -> None:
    groups = {
        "a": Group(name="a", parents=("c",)),
        "b": Group(name="b", parents=("c",)),
        "c": Group(name="c"),
        "z": Group(name="z"),
    }
    assert [g.name for g in close_groups(["b", "a", "b"], groups.get)] == ["a", "b", "c"]


def test_the_first_publish_makes_a_collection_for_its_group() -> None:
    made = new_collection("speech")
    assert (made.name, made.readers, made.publishers) == ("speech", ("speech",), ("speech",))


# -- explanations -------------------------------------------------------------------------------------


def test_a_denial_says_which_policy_where_and_what_next(engine: PolicyEngine) -> None:
    target = dataclasses.replace(VERSION, labels={"tier": "critical"})
    told = explain_decision(engine.decide(ask(target=target)), engine)
    assert told.why == 'policy "critical-needs-approval" (policies/tiers.cedar)'
    assert told.next is not None
    assert "critical" in told.next


@pytest.mark.parametrize(
    ("changes", "why", "next"),
    [
        ({"action": "publish"}, "no policy permits it", "broker whoami"),
        ({"action": "export"}, "does not fit", "administrator"),
        ({"principal": dataclasses.replace(ANA, groups=("nope",))}, "not complete", "administrator"),
    ],
)
def test_a_denial_without_a_policy_says_why(
    engine: PolicyEngine, changes: dict[str, Any], why: str, next: str
) -> None:
    told = explain_decision(engine.decide(ask(**changes)), engine)
    assert why in told.why
    assert next in (told.next or "")


def test_an_allow_is_explained_by_what_permits(engine: PolicyEngine) -> None:
    told = explain_decision(engine.decide(ask()), engine)
    assert told.why == 'policy "readers-by-group" (policies/collections.cedar)'
    assert told.next is None


def test_a_policy_of_another_bundle_is_named_without_a_file(engine: PolicyEngine, bundle_of: Make) -> None:
    other = PolicyEngine(bundle_of('@id("own") permit (principal, action, resource);'))
    assert explain_decision(other.decide(ask()), engine).why == 'policy "own"'
