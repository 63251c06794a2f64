"""I13: an error, a gap or a misfit is never an allow, and no policy text kills a worker."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import limits, sandbox
from broker.errors import BrokerError, InvalidRequest
from broker.model import Collection, Group, Principal
from broker.policy.bundle import SCHEMA_FILE, Bundle, build_bundle, bundle_bytes
from broker.policy.engine import PolicyEngine
from broker.policy.entities import Slice, build_slice
from broker.policy.request import (
    Context,
    PolicyRequest,
    VersionTarget,
    collect_request,
)
from broker.policy.sandbox import MODULE, parse_report
from broker.sandbox import run_capped

POLICIES = Path(__file__).parents[2] / "policies"
SCHEMA = (POLICIES / SCHEMA_FILE).read_bytes()
READ = 'principal, action == Broker::Action::"read", resource'
PERMIT = f'@id("all") permit ({READ});'

GROUPS = {
    "nlp": Group(name="nlp", parents=("company",)),
    "company": Group(name="company"),
    "leads": Group(name="leads", parents=("suspended",)),
    "suspended": Group(name="suspended"),
    "editors": Group(name="editors", parents=("staff",)),
    "staff": Group(name="staff"),
}
REQUEST = collect_request(
    principal=Principal(
        id="user:ana", roles=("engineer",), groups=("nlp", "leads"), disabled=False, created=0
    ),
    action="read",
    target=VersionTarget(
        collection=Collection(name="acme", readers=("company",), publishers=("leads", "editors")),
        name="llama",
        version="v1",
        kind="checkpoint",
        labels={"tier": "standard"},
    ),
    context=Context(
        now=0, purpose="", address=None, asked_bytes=2**63 - 1, opened_bytes=0, incidents=0, approvals=()
    ),
    find_group=GROUPS.get,
)


def bundle(text: str) -> Bundle:
    return build_bundle({SCHEMA_FILE: SCHEMA, "a.cedar": text.encode()})


def engine(text: str) -> PolicyEngine:
    return PolicyEngine(bundle(text))


# -- policies that err ---------------------------------------------------------------------------------

OVERFLOW = "context.usage.asked + 1 > 0"


def test_I13_a_forbid_that_errs_does_not_leave_the_permit_standing() -> None:
    assert engine(PERMIT).decide(REQUEST).effect == "allow"
    decision = engine(PERMIT + f'@id("no") forbid ({READ}) when {{ {OVERFLOW} }};').decide(REQUEST)
    assert (decision.effect, decision.reason, decision.policies) == ("deny", "error", ())
    assert "overflow" in decision.detail


def test_I13_a_permit_that_errs_denies_what_another_permits() -> None:
    decision = engine(PERMIT + f'@id("also") permit ({READ}) when {{ {OVERFLOW} }};').decide(REQUEST)
    assert (decision.effect, decision.reason) == ("deny", "error")


def test_I13_a_forbid_that_holds_is_named_also_when_another_errs() -> None:
    text = PERMIT + f'@id("no") forbid ({READ});' + f'@id("err") forbid ({READ}) when {{ {OVERFLOW} }};'
    assert engine(text).decide(REQUEST).policies == ("no",)


def test_I13_nothing_that_permits_is_a_deny() -> None:
    decision = engine('@id("other") permit (principal, action == Broker::Action::"audit", resource);').decide(
        REQUEST
    )
    assert (decision.effect, decision.reason, decision.policies) == ("deny", "not-permitted", ())


@pytest.mark.parametrize("text", ["", "// no policy at all", "\n"])
def test_I13_an_empty_policy_set_is_no_engine(text: str) -> None:
    with pytest.raises(InvalidRequest):
        engine(text)


# -- gaps ---------------------------------------------------------------------------------------------

# Who is suspended, or in a collection that is shut, reads nothing: forbids that a gap could switch off.
TRAPS = (
    PERMIT
    + f'@id("suspended") forbid ({READ}) when {{ principal in Broker::Group::"suspended" }};'
    + f'@id("shut") forbid ({READ}) when {{ resource in Broker::Collection::"acme" }};'
)


def test_I13_the_full_set_forbids() -> None:
    assert engine(TRAPS).decide(REQUEST).policies == ("shut", "suspended")


def holes() -> Iterator[tuple[str, Slice]]:
    """The slice with one entity, or one edge, gone."""
    whole = build_slice(REQUEST)
    for uid in whole.entities:
        rest = {key: entity for key, entity in whole.entities.items() if key != uid}
        yield f"no {uid}", dataclasses.replace(whole, entities=rest)
    for uid, entity in whole.entities.items():
        for at, parent in enumerate(entity["parents"]):
            changed = copy.deepcopy(whole.entities)
            del changed[uid]["parents"][at]
            yield f"{uid} not in {parent}", dataclasses.replace(whole, entities=changed)
    resource = copy.deepcopy(whole.entities)
    resource["Broker::Collection", "acme"]["attrs"]["publishers"] = []
    yield "no publishers", dataclasses.replace(whole, entities=resource)


@pytest.mark.parametrize(("name", "slice"), [pytest.param(n, s, id=n) for n, s in holes()])
def test_I13_every_gap_is_a_deny(name: str, slice: Slice) -> None:
    decision = engine(PERMIT).decide_slice(slice)
    assert decision.effect == "deny", name
    assert decision.reason == "incomplete", name


def test_I13_gaps_would_have_opened_the_trap() -> None:
    # The reason for the rule: without an edge Cedar itself answers Allow, and reports no error.
    import cedarpy

    whole = build_slice(REQUEST).as_json()
    text = PERMIT + f'@id("s") forbid ({READ}) when {{ principal in Broker::Group::"suspended" }};'
    assert cedarpy.is_authorized(whole, text, whole["entities"]).decision is cedarpy.Decision.Deny
    gone = [entity for entity in whole["entities"] if entity["uid"]["id"] != "leads"]
    answer = cedarpy.is_authorized(whole, text, gone)
    assert answer.decision is cedarpy.Decision.Allow
    assert answer.diagnostics.errors == []


@pytest.mark.parametrize("gone", sorted(GROUPS))
def test_I13_a_group_that_the_snapshot_lacks_is_a_deny(gone: str) -> None:
    def find(name: str) -> Group | None:
        return None if name == gone else GROUPS.get(name)

    request = collect_request(
        principal=REQUEST.principal,
        action="read",
        target=REQUEST.target,
        context=REQUEST.context,
        find_group=find,
    )
    assert engine(PERMIT).decide(request).reason == "incomplete"


@pytest.mark.parametrize(
    "changes",
    [
        {"memberships": ()},
        {"memberships": (*REQUEST.memberships, Group(name="other"))},
        {"audience": ()},
        {"audience": (*REQUEST.audience, Group(name="other"))},
        {"memberships": tuple(dataclasses.replace(g, parents=()) for g in REQUEST.memberships)},
        {"principal": dataclasses.replace(REQUEST.principal, groups=("nlp",))},
        {"principal": dataclasses.replace(REQUEST.principal, groups=())},
    ],
)
def test_I13_groups_that_do_not_add_up_are_a_deny(changes: dict[str, object]) -> None:
    request: PolicyRequest = dataclasses.replace(REQUEST, **changes)  # type: ignore[arg-type]
    assert engine(PERMIT).decide(request).reason == "incomplete"


# -- misfits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"action": "delete"},
        {"action": ""},
        {"action": "audit"},
        {"context": {}},
        {"context": {**build_slice(REQUEST).context, "more": 1}},
        {"context": {**build_slice(REQUEST).context, "usage": {"asked": 1}}},
    ],
)
def test_I13_a_request_that_does_not_fit_the_schema_is_a_deny(change: dict[str, object]) -> None:
    slice = dataclasses.replace(build_slice(REQUEST), **change)  # type: ignore[arg-type]
    decision = engine('@id("all") permit (principal, action, resource);').decide_slice(slice)
    assert (decision.effect, decision.reason) == ("deny", "unfit")


@pytest.mark.parametrize(
    "attrs", [{}, {"id": "user:ana"}, {"id": 1, "enabled": True}, {"enabled": True, "x": 1}]
)
def test_I13_an_entity_that_does_not_fit_the_schema_is_a_deny(attrs: dict[str, object]) -> None:
    slice = copy.deepcopy(build_slice(REQUEST))
    slice.entities[slice.principal]["attrs"] = attrs
    assert engine(PERMIT).decide_slice(slice).reason == "unfit"


def test_I13_the_same_slice_unharmed_is_an_allow() -> None:
    assert engine(PERMIT).decide_slice(build_slice(REQUEST)).effect == "allow"


# -- hostile text -----------------------------------------------------------------------------------------


def deep(left: str, right: str, middle: str = "true", levels: int = 5000) -> str:
    return f'@id("a") permit ({READ}) when {{ {left * levels}{middle}{right * levels} }};'


HOSTILE = {
    "parentheses": deep("(", ")"),
    "sets": deep("[", "]"),
    "records": deep("{a:", "}", "1"),
    "calls": deep("[1].contains(", ")", "1"),
    "not": deep("!", ""),
    "minus": deep("-", "", "1 == 1"),
    "if": deep("if true then true else ", ""),
    "conditions of if": deep("if ", " then true else false"),
    "and": deep("true && ", ""),
    "members": deep("", ".a", "context"),
    "indices": deep("", '["a"]', "context"),
    "clauses": f'@id("a") permit ({READ}) ' + "when { true } " * 5000 + ";",
    "annotations": "".join(f'@a{n}("x")' for n in range(5000)) + deep("", "", "1 == 2"),
    "unclosed": "(" * 100_000,
    "behind a comment": "// \r" + "(" * 5000,
    "huge": "// " + "x" * (2 * limits.MAX_POLICY_TEXT),
    "strings": '"' * 9999,
    "wildcards": f'@id("a") permit ({READ}) when {{ context.purpose like "{"*a" * 5000}" }};',
    "has path": f'@id("a") permit ({READ}) when {{ context has {".".join(["a"] * 5000)} }};',
    "name path": f'@id("a") permit ({READ}) when {{ principal is {"::".join(["A"] * 5000)} }};',
    "same id": PERMIT * 2,
    "no id": f"permit ({READ});",
    "nul": "\x00",
    "surrogate escapes": f'@id("a") permit ({READ}) when {{ context.purpose == "\\u{{d800}}" }};',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_I13_hostile_text_is_refused_or_harmless(text: str) -> None:
    # That this process lives to see the next line is the point.
    try:
        decide = engine(text).decide
    except BrokerError as exc:
        refused = exc.code
    else:
        refused = decide(REQUEST).effect
    assert refused in ("invalid", "too_large", "deny")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\xed\xa0\x80", b"permit\xc3("])
def test_I13_bytes_that_are_not_text_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        build_bundle({SCHEMA_FILE: SCHEMA, "a.cedar": data})
    with pytest.raises(InvalidRequest):
        build_bundle({SCHEMA_FILE: data, "a.cedar": PERMIT.encode()})


def test_I13_the_worst_text_within_the_limits_needs_no_deep_stack() -> None:
    import threading

    room = limits.MAX_POLICY_NESTING - 1
    tails = " && ".join(["true"] * (limits.MAX_POLICY_OPERATORS - room - 5))
    text = f'@id("a") permit ({READ}) when {{ {"(if true then " * room}{tails}{" else true)" * room} }};'
    whole, found = bundle(text), []
    size = threading.stack_size(2 * limits.MIB)
    try:
        worker = threading.Thread(target=lambda: found.append(PolicyEngine(whole).decide(REQUEST).effect))
        worker.start()
    finally:
        threading.stack_size(size)
    worker.join()
    assert found == ["allow"]


def test_I13_text_that_kills_the_parser_kills_the_child_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Were a text to get past every limit: what dies is a child with capped memory and time.
    monkeypatch.setattr(sandbox, "_ROOT", f"{sandbox._ROOT}:{tmp_path}")
    (tmp_path / "raw_parser.py").write_text(
        "import cedarpy\n"
        "def check(data):\n    return str(cedarpy.PolicySet.from_str(data.decode())).encode()\n"
    )
    caps = {"seconds": limits.POLICY_PARSE_SECONDS, "memory": limits.POLICY_PARSE_MEMORY}
    assert b"permit" in run_capped("raw_parser", PERMIT.encode(), **caps)
    with pytest.raises(InvalidRequest):
        run_capped("raw_parser", HOSTILE["parentheses"].encode(), **caps)


def test_I13_a_schema_that_grows_without_end_dies_in_the_child() -> None:
    types = "".join(f"type A{n} = {{x: A{n - 1}, y: A{n - 1}}};\n" for n in range(1, 60))
    schema = SCHEMA.decode() + "type A0 = Bool;\n" + types + "entity Laugh = { a: A59 };\n"
    whole = build_bundle({SCHEMA_FILE: schema.encode(), "a.cedar": PERMIT.encode()})
    with pytest.raises(InvalidRequest):
        parse_report(
            run_capped(MODULE, bundle_bytes(whole), seconds=2, memory=limits.POLICY_PARSE_MEMORY), whole
        )
