"""I04: a hostile name reaches nothing unescaped and widens nothing. I05: matching stops at separators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import names
from broker.errors import BrokerError, InvalidRequest, NotFound
from broker.policy import request as policy
from tests.world import World

HOSTILE = [
    "*", "?", "a*", "..", "a..b", "a/../b", "a//b", "a'b", 'a"b', "a\nb", "a\x00b", "a b", "A", "é", "а",
    "a;drop table", "${x}", "a\\b", "-a", ".a", "a" * 64, "", "%2e%2e", "a%", "_", "‮a",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_I04_hostile_collections_and_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        names.parse_part(text, "name")
    with pytest.raises(InvalidRequest):
        names.parse_ref(f"{text}/{text}")


@pytest.mark.parametrize(
    "path",
    ["/a", "a/", "a//b", "../a", "a/..", ".", "a/./b", "a\\b", "a\x00", "a\n", ".broker/x", ".BROKER/x",
     "e\u0301", "a" * 1025, "", "a‮b", "​a", "\ud800"],
)  # fmt: skip
def test_I04_hostile_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        names.parse_path(path)


@pytest.mark.parametrize("paths", [["a", "A"], ["a", "a/b"], ["ﬁ", "fi"], ["straße", "STRASSE"]])
def test_I04_paths_that_fall_on_one_file_are_refused(paths: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        names.check_distinct_paths(paths)


@given(st.text(max_size=200))
def test_I04_whatever_passes_is_its_own_only_spelling(text: str) -> None:
    try:
        ref = names.parse_ref(text)
    except InvalidRequest:
        return
    assert str(ref) == text.removeprefix(names.SCHEME)
    assert names.parse_ref(str(ref)) == ref


@pytest.mark.parametrize("name", ['ana" || true', "ana*", "user:ana\nadmin", "user:a..b", "root:x"])
def test_I04_hostile_principals_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        names.parse_principal(name)


def test_I04_a_hostile_entity_id_never_matches_another(world: World) -> None:
    """Ids reach Cedar as structured values: quotes in one cannot close a string."""
    world.add("ana", groups=["acme"])
    with world.ledger.view() as view:
        target = policy.AdministrationTarget(area='principals"] || ["')
        from broker.services import deciding

        answer = deciding.decide(world.house, view, _principal(view, "user:admin"), "administer", target)
    assert not answer.allowed


def _principal(view: object, id: str) -> object:
    from broker.model import Principal

    return view.find(Principal, id)  # type: ignore[attr-defined]


def test_I05_one_artifact_never_opens_its_namesakes(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"1"})
    world.publish(pub, "acme/llama-2@v1", {"a": b"2"})
    ana = world.add("ana", groups=["acme"])
    scope = [{"type": "artifact_access", "actions": ["describe", "read"], "identifier": "acme/llama"}]
    ana.token = world.login(ana, scope)
    assert world.ask(ana, "acme/llama@v1").grant.name == "llama"
    with pytest.raises(BrokerError) as refused:
        world.ask(ana, "acme/llama-2@v1")
    assert refused.value.code == "insufficient_scope"


def test_I05_a_group_is_not_the_prefix_of_another(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme-2"])
    world.publish(pub, "acme-2/llama@v1", {"a": b"1"})
    ana = world.add("ana", groups=["acme"])
    with pytest.raises(NotFound):
        world.ask(ana, "acme-2/llama@v1")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a", "ab", False), ("a", "a/b", False), ("a*", "ab", True), ("a*", "a/b", False),
        ("a/**", "a/b/c", True), ("a/**", "a", False), ("a/**", "ab/c", False), ("**", "x/y", True),
        ("**/a", "a", True), ("**/a", "xa", False), ("?", "/", False), ("[a-c]x", "bx", True),
        ("[a-c]x", "dx", False), ("a.b", "axb", False), ("**/x/**", "x", False),
    ],
)  # fmt: skip
def test_I05_globs_stop_at_separators(pattern: str, path: str, matches: bool) -> None:
    assert names.parse_glob(pattern).matches(path) is matches


def test_I05_a_glob_takes_linear_time() -> None:
    pattern = names.parse_glob("*a" * 400 + "*b")
    assert not pattern.matches("a" * 1000)
    folders = names.parse_glob("/".join(["**", "a"] * 200) + "/b")
    assert not folders.matches("/".join(["a"] * 500))
