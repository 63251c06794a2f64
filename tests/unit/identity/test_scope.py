"""What a token covers: each member of a detail, each level, and the ceilings on bytes."""

from __future__ import annotations

from typing import Any

import pytest

from broker import limits
from broker.canonical import Json
from broker.errors import InvalidRequest, ScopeExceeded, TooLarge
from broker.identity import scope

DIGEST = "sha256:" + "ab" * 32


def detail(identifier: str = "acme/llama", **more: Any) -> Json:
    return {"type": "artifact_access", "actions": ["read"], "identifier": identifier, **more}


def read(**change: Any) -> scope.Ask:
    ask: dict[str, Any] = {"collection": "acme", "name": "llama", "version": "v1", "paths": ("config.json",)}
    return scope.Ask(action="read", **{**ask, **change})


def permitted(level: list[Json], ask: scope.Ask) -> bool:
    try:
        scope.permits([level], ask)
    except ScopeExceeded:
        return False
    return True


# -- parsing ------------------------------------------------------------------------------------------


def test_a_whole_detail_is_parsed():
    given = detail("acme/llama@v1", paths=["a/*", "**"], max_bytes=7, purpose="evaluation")
    (parsed,) = scope.parse_details([given])
    assert (parsed.type, parsed.actions) == ("artifact_access", frozenset({"read"}))
    assert (parsed.collection, parsed.name, parsed.version) == ("acme", "llama", "v1")
    assert parsed.paths is not None
    assert [glob.text for glob in parsed.paths] == ["a/*", "**"]
    assert (parsed.max_bytes, parsed.purpose) == (7, "evaluation")


@pytest.mark.parametrize(
    ("identifier", "parts"),
    [
        ("*", (None, None, None)),
        ("acme/*", ("acme", None, None)),
        ("acme/llama", ("acme", "llama", None)),
        ("acme/llama@v1", ("acme", "llama", "v1")),
        (f"acme/llama@{DIGEST}", ("acme", "llama", DIGEST)),
    ],
)
def test_identifiers_have_four_forms(identifier: str, parts: tuple[str | None, ...]):
    (parsed,) = scope.parse_details([detail(identifier)])
    assert (parsed.collection, parsed.name, parsed.version) == parts


@pytest.mark.parametrize("kind", sorted(scope.ACTIONS))
def test_every_action_of_a_type_is_known(kind: str):
    given: Json = {"type": kind, "actions": sorted(scope.ACTIONS[kind])}
    if kind == scope.ARTIFACT:
        given["identifier"] = "*"
    assert scope.parse_details([given])[0].actions == scope.ACTIONS[kind]


# -- deciding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier", "ask", "covered"),
    [
        ("*", {}, True),
        ("acme/*", {}, True),
        ("acme/*", {"collection": "acme-2"}, False),
        ("acme/*", {"collection": "acm"}, False),
        ("acme/llama", {}, True),
        ("acme/llama", {"name": "llama-2"}, False),
        ("acme/llama", {"name": "llam"}, False),
        ("acme/llama-2", {}, False),
        ("acme/llama@v1", {}, True),
        ("acme/llama@v1", {"version": "v10"}, False),
        ("acme/llama@v10", {}, False),
        ("acme/llama@v1", {"version": None}, False),
        (f"acme/llama@{DIGEST}", {"manifest": DIGEST}, True),
        (f"acme/llama@{DIGEST}", {}, False),
        (f"acme/llama@{DIGEST}", {"manifest": DIGEST[:-1] + "c"}, False),
        ("acme/llama", {"name": None}, False),
        ("acme/*", {"name": None}, True),
        ("acme/*", {"collection": None, "name": None}, False),
        ("*", {"collection": None, "name": None}, True),
    ],
)
def test_identifiers_cover_whole_names(identifier: str, ask: dict[str, Any], covered: bool):
    assert permitted([detail(identifier)], read(**ask)) is covered


@pytest.mark.parametrize("action", sorted(scope.ACTIONS[scope.ARTIFACT]))
def test_an_action_is_covered_by_itself_only(action: str):
    for other in scope.ACTIONS[scope.ARTIFACT]:
        ask = scope.Ask(action=other, collection="acme", name="llama", version="v1", paths=())
        assert permitted([detail(actions=[action])], ask) is (action == other)


@pytest.mark.parametrize("kind", [scope.LEDGER, scope.ADMINISTRATION])
def test_a_type_is_covered_by_itself_only(kind: str):
    for action in scope.ACTIONS[kind]:
        level = [{"type": kind, "actions": [action]}]
        assert permitted(level, scope.Ask(type=kind, action=action))
        for other in scope.ACTIONS:
            if other != kind:
                assert not permitted(level, scope.Ask(type=other, action=action))
    assert not permitted([detail("*")], scope.Ask(type=scope.LEDGER, action="read"))


def test_a_selection_partly_outside_is_denied():
    level = [detail(paths=["shard-0.bin", "conf/*"])]
    assert permitted(level, read(paths=("shard-0.bin", "conf/a.json")))
    assert not permitted(level, read(paths=("shard-0.bin", "shard-1.bin")))
    assert not permitted(level, read(paths=("conf/a/b.json",)))
    assert not permitted(level, read(paths=None))


def test_one_detail_has_to_cover_all_of_it():
    level = [detail(paths=["a"]), detail(paths=["b"])]
    assert permitted(level, read(paths=("a",)))
    assert permitted(level, read(paths=("b",)))
    assert not permitted(level, read(paths=("a", "b")))


def test_everything_is_spelled_with_two_stars():
    assert permitted([detail(paths=["**"])], read(paths=("a/b/c", "d")))
    assert not permitted([detail(paths=["*"])], read(paths=("a/b/c", "d")))


def test_a_purpose_is_compared_exactly():
    level = [detail(purpose="evaluation")]
    assert permitted(level, read(purpose="evaluation"))
    for purpose in (None, "", "Evaluation", "evaluation "):
        assert not permitted(level, read(purpose=purpose))
    assert permitted([detail()], read(purpose="anything"))


def test_describing_is_not_about_content():
    level = [detail(actions=["describe"], paths=["a"], purpose="evaluation")]
    assert permitted(level, scope.Ask(action="describe", collection="acme", name="llama"))


def test_publishing_is_about_content():
    level = [detail(actions=["publish"], paths=["a"], purpose="evaluation")]
    ask: dict[str, Any] = {"action": "publish", "collection": "acme", "name": "llama", "version": "v2"}
    assert permitted(level, scope.Ask(**ask, paths=("a",), purpose="evaluation"))
    assert not permitted(level, scope.Ask(**ask, paths=("a", "b"), purpose="evaluation"))
    assert not permitted(level, scope.Ask(**ask, paths=("a",)))


def test_a_denial_says_what_and_where_but_no_paths():
    with pytest.raises(ScopeExceeded) as caught:
        scope.permits([[detail("*")], [detail("acme/other")]], read(paths=("secret-name",)))
    assert caught.value.what == "the token's scope does not cover read of acme/llama@v1"
    assert caught.value.why == "no detail of level 2 of 2 covers all of it"
    assert "secret-name" not in f"{caught.value.what}{caught.value.why}{caught.value.next}"


# -- levels -------------------------------------------------------------------------------------------


def test_narrowing_copies_and_appends():
    parent = [[detail("*")]]
    child = scope.derive_limits(parent, [detail("acme/*", max_bytes=7)])
    assert child == ((detail("*"),), (detail("acme/*", max_bytes=7),))
    assert scope.derive_limits([], [detail()]) == ((detail(),),)


def test_the_depth_of_narrowing_is_exact():
    levels: tuple[tuple[Json, ...], ...] = ()
    for _ in range(limits.MAX_LIMITS_LEVELS):
        levels = scope.derive_limits(levels, [detail("*")])
    scope.permits(levels, read())
    with pytest.raises(InvalidRequest):
        scope.derive_limits(levels, [detail("*")])
    with pytest.raises(ScopeExceeded):
        scope.permits((*levels, (detail("*"),)), read())


# -- ceilings -----------------------------------------------------------------------------------------


def test_every_level_with_a_ceiling_charges_its_holder():
    levels = [[detail("*", max_bytes=100)], [detail("acme/*")], [detail(max_bytes=1000)]]
    assert scope.byte_ceilings(levels, ["t_a", "t_b", "t_c"], read()) == (("t_a", 100), ("t_c", 1000))


def test_only_covering_details_count_and_the_lowest_ceiling_binds():
    level = [
        detail("*"),
        detail(max_bytes=50),
        detail("acme/*", max_bytes=20),
        detail("acme/other", max_bytes=1),
    ]
    assert scope.byte_ceilings([level], ["t_a"], read()) == (("t_a", 20),)
    assert scope.byte_ceilings([level], ["t_a"], read(collection="else")) == ()


def test_ceilings_of_what_is_not_permitted_do_not_exist():
    with pytest.raises(ScopeExceeded):
        scope.byte_ceilings([[detail("acme/other", max_bytes=1)]], ["t_a"], read())
    for holders in ([], ["t_a", "t_b"]):
        with pytest.raises(ScopeExceeded):
            scope.byte_ceilings([[detail()]], holders, read())


# -- limits (I17) -------------------------------------------------------------------------------------


def test_the_numbers_of_details_and_patterns_are_exact():
    assert len(scope.parse_details([detail()] * limits.MAX_DETAILS)) == limits.MAX_DETAILS
    scope.parse_details([detail(paths=["a"] * limits.MAX_GLOBS)])
    scope.parse_details([detail(paths=["a" * limits.MAX_GLOB])])
    scope.parse_details([detail(purpose="p" * limits.MAX_PURPOSE)])
    scope.parse_details([detail(max_bytes=2**53 - 1)])
    for wrong in (
        [detail()] * (limits.MAX_DETAILS + 1),
        [detail(paths=["a"] * (limits.MAX_GLOBS + 1))],
        [detail(paths=["a" * (limits.MAX_GLOB + 1)])],
        [detail(purpose="p" * (limits.MAX_PURPOSE + 1))],
        [detail(purpose="é" * (limits.MAX_PURPOSE // 2 + 1))],
        [detail(max_bytes=2**53)],
    ):
        with pytest.raises(InvalidRequest):
            scope.parse_details(wrong)


def test_a_level_with_too_many_details_grants_nothing():
    assert permitted([detail()] * limits.MAX_DETAILS, read())
    assert not permitted([detail()] * (limits.MAX_DETAILS + 1), read())


def test_the_effort_of_matching_is_exact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_SCOPE_MATCHES", 60)
    level = [detail(paths=["a", "b", "x*"]), detail(paths=["**", "c"]), detail("acme/other", paths=["d"] * 9)]
    scope.permits([level, level], read(paths=("x1",) * 10))
    with pytest.raises(TooLarge):
        scope.permits([level, level], read(paths=("x1",) * 11))
