"""I03: empty, absent, unknown or malformed scope grants nothing."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import InvalidRequest, ScopeExceeded
from broker.identity import scope

READ = {"type": "artifact_access", "actions": ["read"], "identifier": "acme/llama"}
LEDGER = {"type": "ledger_access", "actions": ["search"]}
ASKS = (
    *(
        scope.Ask(action=action, collection="acme", name="llama", version="v1", paths=("a",), purpose="p")
        for action in sorted(scope.ACTIONS[scope.ARTIFACT])
    ),
    scope.Ask(action="describe"),
    scope.Ask(action="describe", collection="acme"),
    *(scope.Ask(type=scope.LEDGER, action=action) for action in sorted(scope.ACTIONS[scope.LEDGER])),
    *(scope.Ask(type=scope.ADMINISTRATION, action=a) for a in sorted(scope.ACTIONS[scope.ADMINISTRATION])),
)

NOT_LISTS: list[Any] = [None, "", "*", {}, 0, True, READ, [], ()]


def without(detail: dict[str, Any], name: str) -> dict[str, Any]:
    return {member: value for member, value in detail.items() if member != name}


NOT_DETAILS: list[Any] = [
    None,
    "",
    "*",
    "artifact_access",
    {},
    [],
    [READ],
    7,
    without(READ, "type"),
    without(READ, "actions"),
    without(READ, "identifier"),
    without(LEDGER, "actions"),
    {"type": "artifact_access"},
    *(
        {**READ, "type": kind}
        for kind in ("", "*", None, [], "Artifact_Access", "artifact_access ", "ledger_access")
    ),
    *({**READ, "type": kind} for kind in ("administration", "artifact", ["artifact_access"], {}, 0)),
    *(
        {**READ, "actions": actions}
        for actions in (None, [], "", "read", "*", ["*"], {}, {"read": True}, True)
    ),
    *(
        {**READ, "actions": actions}
        for actions in ([None], [""], ["READ"], ["read "], ["read", "delete"], [["read"]])
    ),
    *({**READ, "actions": actions} for actions in (["search"], ["principals"], ["read"] * 4, 0)),
    *(
        {**READ, "identifier": name}
        for name in (None, "", [], {}, 7, True, ["*"], "**", "*/*", "*/llama", "acme")
    ),
    *(
        {**READ, "identifier": name}
        for name in ("acme/", "/llama", "/", "acme/**", "acme/l*", "acme/llama*", "a*/*")
    ),
    *(
        {**READ, "identifier": name}
        for name in ("acme/llama@", "acme/llama@*", "acme/llama@latest", "acme/llama/x")
    ),
    *(
        {**READ, "identifier": name}
        for name in ("broker://acme/llama", "broker://*", "acme/*@v1", "acme/*/x", " *")
    ),
    *(
        {**READ, "identifier": name}
        for name in ("../acme/llama", "acme/..", "acme/.", "ACME/llama", "\u0430cme/llama")
    ),
    *(
        {**READ, "identifier": name}
        for name in ("acme/llama\n", "acme/*\n", "*\n", "acme/llama\0", "acme//llama", "?")
    ),
    *(
        {**READ, "identifier": name}
        for name in ("acme'/llama", 'acme"/llama', "acme/llama%2f", "acme\\llama", "acme/?")
    ),
    *(
        {**READ, "paths": paths}
        for paths in (None, [], "", "**", {}, True, [None], [""], [7], [["**"]], {"**": 1})
    ),
    *(
        {**READ, "paths": paths}
        for paths in (["/a"], ["a//b"], ["../a"], ["a/.."], ["a**"], ["[a"], ["a", ""], ["a\\b"])
    ),
    *({**READ, "max_bytes": size} for size in (None, 0, -1, "7", 7.0, True, False, 2**53, [], {})),
    *({**READ, "purpose": text} for text in (None, "", " ", 7, [], {}, ["p"], "a\nb", "a\0", "\ud800")),
    {**READ, "unknown": 1},
    {**READ, "Actions": ["publish"]},
    {**READ, "locations": ["https://broker.example"]},
    {**READ, "datatypes": ["weights"]},
    {**READ, "privileges": ["admin"]},
    {**LEDGER, "identifier": "*"},
    {**LEDGER, "paths": ["**"]},
    {**LEDGER, "actions": ["describe"]},
    {"type": "administration", "actions": ["admin"]},
    {"type": "administration", "actions": ["keys"], "max_bytes": 1},
]


def grants(levels: Any) -> list[scope.Ask]:
    found = []
    for ask in ASKS:
        try:
            scope.permits(levels, ask)
        except ScopeExceeded:
            continue
        found.append(ask)
    return found


def test_I03_what_is_well_formed_grants_only_what_it_says():
    assert grants([[READ]]) == [ask for ask in ASKS if ask.type == scope.ARTIFACT and ask.action == "read"]
    assert grants([[LEDGER]]) == [scope.Ask(type=scope.LEDGER, action="search")]


@pytest.mark.parametrize("requested", NOT_LISTS, ids=repr)
def test_I03_a_request_without_details_is_refused(requested: Any):
    with pytest.raises(InvalidRequest) as caught:
        scope.parse_details(requested)
    assert caught.value.what == scope.INVALID_DETAILS
    with pytest.raises(InvalidRequest):
        scope.derive_limits([[READ]], requested)


@pytest.mark.parametrize("detail", NOT_DETAILS, ids=ascii)
def test_I03_a_request_with_a_malformed_detail_is_refused_whole(detail: Any):
    for requested in ([detail], [READ, detail], [detail, READ]):
        with pytest.raises(InvalidRequest) as caught:
            scope.parse_details(requested)
        assert caught.value.what == scope.INVALID_DETAILS


@pytest.mark.parametrize("detail", NOT_DETAILS, ids=ascii)
def test_I03_in_a_token_a_malformed_detail_grants_nothing(detail: Any):
    assert grants([[detail]]) == []
    assert grants([[READ], [detail]]) == []
    assert grants([[detail], [READ]]) == []
    assert grants([[READ, detail]]) == grants([[READ]])


@pytest.mark.parametrize("levels", [[], (), [[]], [[READ], []], [[], [READ]], [{}], [""]], ids=repr)
def test_I03_no_level_and_an_empty_level_grant_nothing(levels: Any):
    assert grants(levels) == []


def test_I03_an_unknown_action_is_never_covered():
    everything = [{"type": kind, "actions": sorted(actions)} for kind, actions in scope.ACTIONS.items()]
    everything[0]["identifier"] = "*"
    for kind in (*scope.ACTIONS, "", "unknown"):
        for action in ("", "*", "delete", "READ"):
            with pytest.raises(ScopeExceeded):
                scope.permits([everything], scope.Ask(type=kind, action=action, collection="a", name="b"))
