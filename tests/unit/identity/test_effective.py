"""What a token comes to: the joined levels say what the levels themselves allow, no more and no less."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import limits
from broker.canonical import Json
from broker.errors import ScopeExceeded
from broker.identity import scope
from broker.identity.effective import Ceiling, Effective, effective

DIGEST = "sha256:" + "a" * 64
IDENTIFIERS = ("*", "acme/*", "acme-2/*", "acme/llama", "acme/llama-2", "acme/llama@v1", "acme/llama@v2")

details = st.fixed_dictionaries(
    {
        "type": st.just("artifact_access"),
        "actions": st.lists(st.sampled_from(["describe", "read"]), min_size=1, max_size=2, unique=True),
        "identifier": st.sampled_from((*IDENTIFIERS, f"acme/llama@{DIGEST}")),
    },
    optional={
        "paths": st.lists(st.sampled_from(["**", "a", "d/*", "*"]), min_size=1, max_size=2, unique=True),
        "max_bytes": st.integers(1, 100),
        "purpose": st.sampled_from(["evaluation", "training"]),
    },
)
junk: st.SearchStrategy[Any] = st.sampled_from([{}, {"type": "everything"}, {"type": "artifact_access"}])
chains = st.lists(st.lists(st.one_of(details, details, junk), max_size=3), min_size=1, max_size=4)
asks = st.builds(
    scope.Ask,
    action=st.sampled_from(["describe", "read"]),
    collection=st.sampled_from(["acme", "acme-2"]),
    name=st.sampled_from(["llama", "llama-2"]),
    version=st.sampled_from(["v1", "v2"]),
    manifest=st.just(DIGEST),
    paths=st.sampled_from([("a",), ("d/a",), ("a", "d/a")]),
    purpose=st.sampled_from(["evaluation", "training"]),
)


def holders(levels: list[Any]) -> list[str]:
    return [f"t_{number}" for number in range(len(levels))]


def covers(element: Effective, ask: scope.Ask) -> bool:
    """Each part of an element as a detail of its own, all of which have to cover the request."""
    base: Json = {"type": element.type, "actions": sorted(element.actions)}
    parts = [{**base, "identifier": identifier} for identifier in element.identifiers]
    parts += [{**base, "identifier": "*", "paths": list(patterns)} for patterns in element.paths]
    if element.purpose is not None:
        parts.append({**base, "identifier": "*", "purpose": element.purpose})
    try:
        for part in parts:
            scope.permits([[part]], ask)
    except ScopeExceeded:
        return False
    return True


@given(levels=chains, ask=asks)
def test_a_request_passes_exactly_when_an_element_covers_it(levels: list[Any], ask: scope.Ask) -> None:
    found, whole = effective(levels, holders(levels))
    assert whole
    try:
        scope.permits(levels, ask)
        permitted = True
    except ScopeExceeded:
        permitted = False
    assert any(covers(element, ask) for element in found) == permitted


@given(levels=chains, ask=asks)
def test_the_ceilings_that_are_charged_are_shown(levels: list[Any], ask: scope.Ask) -> None:
    found, _ = effective(levels, holders(levels))
    try:
        charged = scope.byte_ceilings(levels, holders(levels), ask)
    except ScopeExceeded:
        return
    shown = [ceiling for element in found if covers(element, ask) for ceiling in element.ceilings]
    assert {Ceiling(holder=holder, max_bytes=most) for holder, most in charged} <= set(shown)


def detail(identifier: str, **more: Any) -> Json:
    usual: Json = {"type": "artifact_access", "actions": ["read"], "identifier": identifier}
    return {**usual, **more}


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("*", "acme/llama", ("acme/llama",)),
        ("acme/*", "acme/llama@v1", ("acme/llama@v1",)),
        ("acme/llama", "acme/*", ("acme/llama",)),
        ("acme/llama@v1", f"acme/llama@{DIGEST}", ("acme/llama@v1", f"acme/llama@{DIGEST}")),
        ("acme/llama", "acme/llama-2", None),
        ("acme/*", "acme-2/llama", None),
        ("acme/llama@v1", "acme/llama@v2", None),
    ],
)
def test_identifiers_join_to_the_narrower(first: str, second: str, joined: tuple[str, ...] | None) -> None:
    found, _ = effective([[detail(first)], [detail(second)]], ["t_0", "t_1"])
    assert [element.identifiers for element in found] == ([] if joined is None else [joined])


def test_an_element_as_json() -> None:
    levels = [[detail("*", max_bytes=100, paths=["d/**"])], [detail("acme/*", max_bytes=10, purpose="x")]]
    [element], _ = effective(levels, ["t_0", "t_1"])
    assert element.as_json({"t_0": 130, "t_1": 4}) == {
        "type": "artifact_access",
        "actions": ["read"],
        "identifiers": ["acme/*"],
        "paths": [["d/**"]],
        "purpose": "x",
        "ceilings": [
            {"token": "t_0", "max_bytes": 100, "opened": 130, "left": 0},
            {"token": "t_1", "max_bytes": 10, "opened": 4, "left": 6},
        ],
    }


def test_two_purposes_leave_what_needs_none() -> None:
    both = ["describe", "read"]
    levels = [[detail("*", purpose="x", actions=both)], [detail("*", purpose="y", actions=both)]]
    [element], _ = effective(levels, ["t_0", "t_1"])
    assert (element.actions, element.purpose) == ({"describe"}, None)
    levels = [[detail("*", purpose="x")], [detail("*", purpose="y")]]
    assert effective(levels, ["t_0", "t_1"]) == ((), True)


def test_types_do_not_mix() -> None:
    levels = [[detail("*")], [{"type": "ledger_access", "actions": ["read"]}]]
    assert effective(levels, ["t_0", "t_1"]) == ((), True)


def test_no_more_than_the_limit_is_shown() -> None:
    one = [detail(f"acme/m{number}") for number in range(16)]
    other = [detail("acme/*", max_bytes=number + 1) for number in range(16)]
    assert len(one) * len(other) == limits.MAX_EFFECTIVE
    found, whole = effective([one, other], ["t_0", "t_1"])
    assert (len(found), whole) == (limits.MAX_EFFECTIVE, True)
    found, whole = effective([[*one, detail("acme/more")], other], ["t_0", "t_1"])
    assert (len(found), whole) == (limits.MAX_EFFECTIVE, False)
