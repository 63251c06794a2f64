"""I07, as far as it is arithmetic: delegation only narrows, whatever a child's level says.

The oracle is a second reading of the rules that knows no patterns: over a small world of names it
lists, for a detail, everything that it covers, and a chain covers what all of its levels cover.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import limits
from broker.canonical import Json
from broker.errors import InvalidRequest, ScopeExceeded
from broker.identity import scope

COLLECTIONS = ("acme", "acme-2")
NAMES = ("llama", "llama-2")
VERSIONS = ("v1", "v10")
PURPOSES = (None, "evaluation", "training")
MATCHES = {
    "**": {"a", "ab", "d/a", "d/e/a"},
    "*": {"a", "ab"},
    "a": {"a"},
    "a*": {"a", "ab"},
    "a?": {"ab"},
    "d/*": {"d/a"},
    "d/**": {"d/a", "d/e/a"},
    "**/a": {"a", "d/a", "d/e/a"},
    "[a-c]b": {"ab"},
    "d": set(),
}
"""Pattern -> which of the four paths it matches: written down by hand."""
PATHS = ("a", "ab", "d/a", "d/e/a")
IDENTIFIERS = ("*", "acme/*", "acme-2/*", "acme/llama", "acme/llama-2", "acme/llama@v1", "acme-2/llama@v10")

details = st.fixed_dictionaries(
    {
        "type": st.just("artifact_access"),
        "actions": st.lists(st.sampled_from(["describe", "read", "publish"]), min_size=1, max_size=3),
        "identifier": st.sampled_from(IDENTIFIERS),
    },
    optional={
        "paths": st.lists(st.sampled_from(sorted(MATCHES)), min_size=1, max_size=3),
        "max_bytes": st.integers(1, 1000),
        "purpose": st.sampled_from(["evaluation", "training"]),
    },
)
junk: st.SearchStrategy[Any] = st.sampled_from([{}, {"type": "artifact_access"}, {"type": "everything"}])
levels = st.lists(st.one_of(details, details, junk), max_size=4)
chains = st.lists(levels, min_size=1, max_size=limits.MAX_LIMITS_LEVELS)
asks = st.builds(
    scope.Ask,
    action=st.sampled_from(["describe", "read", "publish"]),
    collection=st.sampled_from(COLLECTIONS),
    name=st.sampled_from(NAMES),
    version=st.sampled_from(VERSIONS),
    paths=st.lists(st.sampled_from(PATHS), max_size=4).map(tuple),
    purpose=st.sampled_from(PURPOSES),
)


def permitted(chain: Any, ask: scope.Ask) -> bool:
    try:
        scope.permits(chain, ask)
    except ScopeExceeded:
        return False
    return True


def says(detail: Json, ask: scope.Ask) -> bool:
    """The oracle's reading of one detail."""
    if set(detail) < {"type", "actions", "identifier"} or ask.action not in detail["actions"]:
        return False
    whole = f"{ask.collection}/{ask.name}@{ask.version}"
    if detail["identifier"] not in ("*", f"{ask.collection}/*", f"{ask.collection}/{ask.name}", whole):
        return False
    if ask.action == "describe":
        return True
    if detail.get("purpose", ask.purpose) != ask.purpose:
        return False
    covered = set().union(*(MATCHES[pattern] for pattern in detail.get("paths", ["**"])))
    return set(ask.paths or ()) <= covered


@settings(max_examples=300, deadline=None)
@given(chain=chains, ask=asks)
def test_I07_a_request_passes_exactly_when_every_level_permits_it(chain: Any, ask: scope.Ask):
    expected = all(any(says(detail, ask) for detail in level) for level in chain)
    assert permitted(chain, ask) is expected


@settings(max_examples=200, deadline=None)
@given(chain=st.lists(levels, min_size=1, max_size=limits.MAX_LIMITS_LEVELS - 1), wanted=levels, ask=asks)
def test_I07_a_child_can_never_do_what_its_parent_cannot(chain: Any, wanted: Any, ask: scope.Ask):
    try:
        child = scope.derive_limits(chain, wanted)
    except InvalidRequest:
        return  # There is no such child.
    assert [list(level) for level in child[:-1]] == chain
    if permitted(child, ask):
        scope.permits(chain, ask)
        scope.permits([wanted], ask)


@settings(max_examples=200, deadline=None)
@given(chain=st.lists(levels, min_size=2, max_size=limits.MAX_LIMITS_LEVELS), ask=asks)
def test_I07_bytes_are_charged_to_every_ancestor_that_has_a_ceiling(chain: Any, ask: scope.Ask):
    holders = [f"t_{number}" for number in range(len(chain))]
    if not permitted(chain, ask):
        return
    charged = dict(scope.byte_ceilings(chain, holders, ask))
    for holder, level in zip(holders, chain, strict=True):
        ceilings = [d["max_bytes"] for d in level if says(d, ask) and "max_bytes" in d]
        assert charged.get(holder) == (min(ceilings) if ceilings else None)
    # A child never escapes what its parent is charged for.
    parent = dict(scope.byte_ceilings(chain[:-1], holders[:-1], ask))
    assert parent.items() <= charged.items()


def test_I07_the_random_chains_reach_both_answers():
    """The properties above would hold of a rule that permits nothing: this one does not."""
    wide, narrow = [
        {"type": "artifact_access", "actions": ["read"], "identifier": i} for i in ("*", "acme/llama")
    ]
    ask = scope.Ask(action="read", collection="acme", name="llama", version="v1", paths=("a",))
    for first, second in itertools.product((wide, narrow), repeat=2):
        assert permitted([[first], [second]], ask)
    other = scope.Ask(action="read", collection="acme", name="llama-2", version="v1", paths=("a",))
    assert permitted([[wide], [wide]], other)
    for chain in ([[wide], [narrow]], [[narrow], [wide]], [[narrow], [wide], [wide], [wide]]):
        assert not permitted(chain, other)


@pytest.mark.parametrize("dead", range(limits.MAX_LIMITS_LEVELS))
def test_I07_one_level_that_grants_nothing_ends_the_whole_chain(dead: int):
    wide = [{"type": "artifact_access", "actions": ["read"], "identifier": "*"}]
    ask = scope.Ask(action="read", collection="acme", name="llama", version="v1", paths=("a",))
    chain: list[Any] = [wide] * limits.MAX_LIMITS_LEVELS
    assert permitted(chain, ask)
    chain[dead] = []
    assert not permitted(chain, ask)
