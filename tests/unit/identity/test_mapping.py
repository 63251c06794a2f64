"""Mappings: what a rule may say, whom it is for, and what it makes of the claims."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from broker import limits
from broker.canonical import canonical_bytes, sha256_digest
from broker.errors import BrokerError, InvalidRequest
from broker.identity import issuers, mapping, patterns
from broker.model import ISSUER_KINDS

UID = "0b1d5c1e-4c8e-4f0e-9d0a-1f2e3d4c5b6a"
RULE: dict[str, Any] = {"name": "train", "match": {"sub": "job"}, "principal": "{sub}"}
BOUND: dict[str, dict[str, Any]] = {
    "oidc": {"sub": "job"},
    "spiffe": {"path": "ns/ml/sa/*"},
    "kubernetes": {"namespace": "ml", "service_account_uid": UID},
    "github": {"repository_id": "456789", "repository_owner_id": "123456"},
}


def body(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"schema": mapping.SCHEMA, "rules": list(rules)}


def parse(kind: str = "oidc", /, **members: Any) -> mapping.Mapping:
    rule = {**RULE, "match": BOUND[kind], **members}
    return mapping.parse_mapping(body({k: v for k, v in rule.items() if v is not ...}), kind=kind)


def refused(why: str, kind: str = "oidc", /, **members: Any) -> None:
    with pytest.raises(InvalidRequest, match="the mapping is not valid") as caught:
        parse(kind, **members)
    assert why in str(caught.value.why)


def subject(claims: dict[str, Any] | None = None, **members: Any) -> issuers.Subject:
    found = issuers.Subject(
        issuer="https://issuer.example",
        sub="job",
        jti=None,
        expires_ms=1,
        claims={"sub": "job"} if claims is None else claims,
        digest="sha256:" + "0" * 64,
    )
    return replace(found, **members)


def apply(rules: mapping.Mapping, who: issuers.Subject, name: str = "ci") -> mapping.Mapped:
    return mapping.apply_mapping(rules, who, issuer_name=name)


# -- what a rule gives ----------------------------------------------------------------------------------


def test_a_rule_gives_what_it_says():
    rules = parse(
        groups=["ml", "vision"],
        roles=["workload", "publisher"],
        attributes={"team": "{team}", "env": "prod"},
        principal="{team}/{sub}",
    )
    found = apply(rules, subject({"sub": "job", "team": "vision"}))
    assert found == mapping.Mapped(
        principal="workload:ci/vision/job",
        groups=("ml", "vision"),
        roles=("workload", "publisher"),
        attributes={"team": "vision", "env": "prod"},
        rule="train",
    )


def test_a_rule_gives_no_more_than_it_says():
    found = apply(parse(), subject())
    assert (found.groups, found.roles, found.attributes) == ((), ("workload",), {})


@pytest.mark.parametrize("kind", ISSUER_KINDS)
def test_principals_are_the_issuers_own(kind: str):
    claims = {**BOUND[kind], "path": "ns/ml/sa/a", "sub": "job"}
    for name in ("ci", "ci2"):
        assert apply(parse(kind), subject(claims), name).principal == f"workload:{name}/job"
    for wrong in ("", "ci/x", "CI", "user:ana"):
        with pytest.raises(InvalidRequest):
            apply(parse(kind), subject(claims), wrong)


def test_the_first_rule_that_fits_decides():
    first = {**RULE, "match": {"team": "a"}, "principal": "first"}
    second = {**RULE, "name": "second", "principal": "second"}
    rules = mapping.parse_mapping(body(first, second), kind="oidc")
    assert apply(rules, subject({"sub": "job", "team": "a"})).rule == "train"
    assert apply(rules, subject({"sub": "job", "team": "b"})).rule == "second"
    assert apply(rules, subject({"sub": "job"})).principal == "workload:ci/second"


def test_no_rule_is_a_refusal():
    for claims in (
        {"sub": "other"},
        {},
        {"sub": ["job"]},
        {"sub": {"a": "job"}},
        {"sub": None},
        {"sub": 1.0},
    ):
        with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT) as caught:
            apply(parse(), subject(claims))
        assert "no rule" in str(caught.value.why)


def test_a_rule_that_cannot_be_filled_in_is_not_skipped():
    narrow = {**RULE, "principal": "{team}"}
    wide = {**RULE, "name": "wide", "principal": "everybody", "groups": ["all"]}
    rules = mapping.parse_mapping(body(narrow, wide), kind="oidc")
    with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT) as caught:
        apply(rules, subject())
    assert "absent" in str(caught.value.why)


def test_every_claim_of_a_match_must_fit():
    rules = parse(match={"sub": "job", "team": ["a", "b*"], "ref": "refs/heads/*"})
    claims = {"sub": "job", "team": "blue", "ref": "refs/heads/main"}
    assert apply(rules, subject(claims)).rule == "train"
    for change in ({"sub": "x"}, {"team": "c"}, {"ref": "refs/tags/v1"}, {"ref": "refs/heads/a/b"}):
        with pytest.raises(InvalidRequest):
            apply(rules, subject({**claims, **change}))
    for name in claims:
        with pytest.raises(InvalidRequest):
            apply(rules, subject({key: value for key, value in claims.items() if key != name}))


# -- pull requests --------------------------------------------------------------------------------------


def test_runs_of_pull_requests_need_a_rule_that_says_so():
    claims = dict(BOUND["github"])
    stranger = subject(claims, pull_request=True)
    rules = parse("github", principal="r")
    assert apply(rules, subject(claims)).rule == "train"
    with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT):
        apply(rules, stranger)
    assert apply(parse("github", principal="r", pull_requests=True), stranger).rule == "train"


@pytest.mark.parametrize("kind", ["oidc", "kubernetes", "spiffe"])
def test_other_issuers_have_no_pull_requests(kind: str):
    refused("pull_requests", kind, pull_requests=True)
    assert not parse(kind, pull_requests=False).rules[0].pull_requests


@pytest.mark.parametrize("value", [1, "true", None, []], ids=repr)
def test_pull_requests_is_a_boolean(value: object):
    refused("pull_requests", "github", pull_requests=value)


# -- what a match must bind -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("kubernetes", "namespace"),
        ("kubernetes", "service_account_uid"),
        ("github", "repository_id"),
        ("github", "repository_owner_id"),
    ],
)
def test_names_that_are_used_again_are_not_enough(kind: str, name: str):
    others = {key: value for key, value in BOUND[kind].items() if key != name}
    for match in (others, {**others, name: "4*"}, {**others, name: [BOUND[kind][name], "**"]}):
        refused(f"binds {name} to exact values", kind, match=match)
    several = {**others, name: [BOUND[kind][name], "7"]}
    assert parse(kind, match=several).rules[0].match[-1]
    refused(f"binds {name}", kind, match={**others, "sub": "x", f"/{name}": BOUND[kind][name]})


@pytest.mark.parametrize("value", ["acme", "0", "0123", "12 ", "٤٥", "1" * 21])
def test_the_ids_of_github_are_decimal(value: str):
    for name in BOUND["github"]:
        refused(f"{name} is a decimal number", "github", match={**BOUND["github"], name: value})


@pytest.mark.parametrize(
    "match",
    [
        {"iss": "https://issuer.example"},
        {"aud": "https://broker.example", "exp": "*"},
        {"/iss": "https://issuer.example"},
        {"/aud/0": "x"},
        {"sub": "*"},
        {"sub": "**"},
        {"sub": ["job", "*"]},
        {"trust_domain": "prod.example"},
    ],
    ids=str,
)
def test_a_match_that_every_token_fits(match: dict[str, Any]):
    refused("says nothing", match=match)


@pytest.mark.parametrize(
    "match", [{}, [], None, "sub", {"sub": []}, {"sub": None}, {"sub": 7}, {"sub": [["a"]]}]
)
def test_a_match_of_another_shape(match: object):
    with pytest.raises(InvalidRequest):
        parse(match=match)


# -- the form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"rules": [RULE]},
        {"schema": "broker/issuer-map/v2", "rules": [RULE]},
        {**body(RULE), "more": 1},
        body(),
        {"schema": mapping.SCHEMA, "rules": {}},
        body("rule"),  # type: ignore[arg-type]
        body({**RULE, "more": 1}),
        body({"name": "a", "match": {"sub": "a"}}),
        body({"name": "a", "principal": "a"}),
        body({"match": {"sub": "a"}, "principal": "a"}),
        body(RULE, RULE),
    ],
)
def test_mappings_of_another_form(value: object):
    with pytest.raises(InvalidRequest, match="the mapping is not valid"):
        mapping.parse_mapping(value, kind="oidc")


def test_a_mapping_is_for_one_kind():
    with pytest.raises(InvalidRequest):
        mapping.parse_mapping(body(RULE), kind="saml")


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a" * 64, None, 7, "a\n"], ids=repr)
def test_names_of_rules(name: object):
    refused("name of a rule", name=name)


@pytest.mark.parametrize(
    "roles", [[], ["admin"], ["workload", "engineer"], ["workload"] * 2, "workload", [7], None]
)
def test_roles_are_those_of_programs(roles: object):
    with pytest.raises(InvalidRequest):
        parse(roles=roles)


@pytest.mark.parametrize("groups", [["A"], ["a/b"], ["a", "a"], "ml", [7], ["*"], [""], {"a": 1}])
def test_groups_are_names(groups: object):
    with pytest.raises(InvalidRequest):
        parse(groups=groups)


@pytest.mark.parametrize(
    "attributes",
    [
        {"issuer": "x"},
        {"A": "x"},
        {"a-b": "x"},
        {"": "x"},
        {"a": 7},
        {"a": ""},
        {"a": "{b"},
        ["a"],
        {"a": "ä"},
    ],
    ids=str,
)
def test_attributes_are_named(attributes: object):
    with pytest.raises(InvalidRequest):
        parse(attributes=attributes)


def test_an_error_names_its_rule():
    with pytest.raises(InvalidRequest) as caught:
        mapping.parse_mapping(body(RULE, {**RULE, "name": "second", "roles": []}), kind="oidc")
    assert str(caught.value.why).startswith("rule second: ")


# -- one text -------------------------------------------------------------------------------------------


def test_a_mapping_has_one_text():
    rules = parse(
        "github",
        match={**BOUND["github"], "ref": ["refs/heads/main", "refs/tags/v*"], "environment": ["prod"]},
        principal="{repository}",
        groups=["ml"],
        roles=["publisher"],
        attributes={"ref": "{ref}"},
        pull_requests=True,
    )
    text = mapping.mapping_bytes(rules)
    assert mapping.parse_mapping(json.loads(text), kind="github") == rules
    assert (
        mapping.parse_mapping(text, kind="github")
        == mapping.parse_mapping(text.decode(), kind="github")
        == rules
    )
    assert canonical_bytes(json.loads(text)) == text
    assert mapping.mapping_digest(rules) == sha256_digest(text)


def test_what_is_left_out_is_what_is_default():
    said = parse(groups=[], roles=["workload"], attributes={}, pull_requests=False, match={"sub": ["job"]})
    assert said == parse()
    assert mapping.mapping_bytes(said) == mapping.mapping_bytes(parse())


# -- bounds ---------------------------------------------------------------------------------------------


def test_the_number_of_rules():
    def rules(count: int) -> dict[str, Any]:
        return body(*({**RULE, "name": f"r{i}"} for i in range(count)))

    assert len(mapping.parse_mapping(rules(limits.MAX_MAP_RULES), kind="oidc").rules) == limits.MAX_MAP_RULES
    with pytest.raises(InvalidRequest):
        mapping.parse_mapping(rules(limits.MAX_MAP_RULES + 1), kind="oidc")


def test_the_number_of_claims_values_groups_and_attributes():
    def names(count: int) -> list[str]:
        return [f"n{i}" for i in range(count)]

    assert parse(match=dict.fromkeys(names(limits.MAX_MAP_CLAIMS), "x"))
    refused("1 to 16 claims", match=dict.fromkeys(names(limits.MAX_MAP_CLAIMS + 1), "x"))
    assert parse(match={"sub": names(limits.MAX_MAP_VALUES)})
    refused("1 to 64 values", match={"sub": names(limits.MAX_MAP_VALUES + 1)})
    assert parse(groups=names(limits.MAX_GROUPS))
    refused("more than 64", groups=names(limits.MAX_GROUPS + 1))
    assert parse(attributes=dict.fromkeys(names(limits.MAX_ATTRIBUTES), "x"))
    refused("at most 16", attributes=dict.fromkeys(names(limits.MAX_ATTRIBUTES + 1), "x"))


def test_the_length_of_patterns_templates_and_names():
    most = limits.MAX_MAP_PATTERN
    assert parse(match={"sub": "x" * most})
    refused("1 to 256", match={"sub": "x" * (most + 1)})
    refused("1 to 256", match={"sub": ""})
    assert parse(attributes={"a": "x" * most})
    refused("1 to 256", attributes={"a": "x" * (most + 1)})
    assert parse(match={"n" * 256: "x"})
    refused("name of a claim", match={"n" * 257: "x"})


def test_the_size_of_a_mapping():
    def rules(pad: int) -> dict[str, Any]:
        filler = {"sub": ["x" * 250 for _ in range(60)]}
        many = [{**RULE, "name": f"r{i}", "match": filler} for i in range(4)]
        return body(*many, {**RULE, "match": {"sub": ["x" * 200] * 22 + ["y" * pad]}})

    room = limits.MAX_MAPPING - len(canonical_bytes(rules(0)))
    assert 0 < room < limits.MAX_MAP_PATTERN
    assert mapping.parse_mapping(rules(room), kind="oidc")
    with pytest.raises(InvalidRequest) as caught:
        mapping.parse_mapping(rules(room + 1), kind="oidc")
    assert "larger than" in str(caught.value.why)


# -- patterns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fits", "not_"),
    [
        ("job", ["job"], ["Job", "jobs", "job/", "", " job", "jоb"]),
        ("a*", ["a", "ab", "abc"], ["a/b", "a:b", "ba", ""]),
        ("*a", ["a", "ba"], ["b/a", "ab"]),
        ("a*c", ["ac", "abc", "acc"], ["a/c", "ab", "acb"]),
        ("acme/*", ["acme/", "acme/train"], ["acme", "acme-evil/train", "acme/a/b", "acme/a:b"]),
        ("**", ["", "a", "a/b:c"], []),
        ("refs/heads/**", ["refs/heads/a/b", "refs/heads/"], ["refs/heads", "refs/tags/refs/heads/a"]),
        ("**/sa/*", ["ns/ml/sa/x", "a:b/sa/"], ["sa/x", "ns/ml/sa/x/y"]),
        ("a**b*c", ["abc", "a/x/b-c", "abbbc", "ab/bc"], ["a/b/c", "abcd"]),
        ("[a-z]?.", ["[a-z]?."], ["a?.", "abc"]),
        ("(a+)+$", ["(a+)+$"], ["aaa"]),
    ],
)
def test_patterns(pattern: str, fits: list[str], not_: list[str]):
    parsed = patterns.parse_pattern(pattern)
    assert [value for value in fits if not parsed.matches(value)] == []
    assert [value for value in not_ if parsed.matches(value)] == []


@pytest.mark.parametrize("text", ["", "***", "a****", "a\nb", "a\x00", 7, None, ["a"]], ids=repr)
def test_patterns_that_are_refused(text: object):
    with pytest.raises(InvalidRequest):
        patterns.parse_pattern(text)


def test_no_pattern_takes_long():
    value = "a" * limits.MAX_CLAIM
    worst = [patterns.parse_pattern(("*a" * 127) + "b"), patterns.parse_pattern("**a" * 85 + "b")]
    begun = time.perf_counter()
    assert not any(pattern.matches(value) for pattern in worst * 16)
    assert time.perf_counter() - begun < 2


def test_a_claim_that_is_too_long_fits_nothing():
    pattern = patterns.parse_pattern("a**")
    assert pattern.matches("a" * limits.MAX_CLAIM)
    assert not pattern.matches("a" * (limits.MAX_CLAIM + 1))


# -- claims ---------------------------------------------------------------------------------------------


CLAIMS = {
    "a": "text",
    "yes": True,
    "no": False,
    "number": 42,
    "zero": 0,
    "huge": 10**30,
    "float": 1.5,
    "none": None,
    "list": ["x", {"y": "z"}],
    "kubernetes.io": {"pod": {"name": "p"}},
    "https://claims.example/team": "vision",
    "a/b": "slash",
    "~": "tilde",
    "": {"": "empty"},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", "text"),
        ("/a", "text"),
        ("yes", "true"),
        ("no", "false"),
        ("number", "42"),
        ("zero", "0"),
        ("huge", None),
        ("float", None),
        ("none", None),
        ("list", None),
        ("/list/0", "x"),
        ("/list/1/y", "z"),
        ("/list/2", None),
        ("/list/-1", None),
        ("/list/00", None),
        ("/list/-", None),
        ("/kubernetes.io/pod/name", "p"),
        ("/kubernetes.io/pod", None),
        ("/kubernetes.io/pod/name/x", None),
        ("https://claims.example/team", "vision"),
        ("/https:~1~1claims.example~1team", "vision"),
        ("a/b", "slash"),
        ("/a~1b", "slash"),
        ("/~0", "tilde"),
        ("//", "empty"),
        ("missing", None),
        ("/missing/x", None),
    ],
)
def test_claims_by_name_and_pointer(name: str, value: str | None):
    assert patterns.find_claim(CLAIMS, name) == value


@pytest.mark.parametrize("name", ["", "/~2", "/a~", "a b", "a{b", "a\n", "ä"], ids=ascii)
def test_names_of_claims_that_are_refused(name: str):
    refused("name of a claim", match={name: "x"})
    with pytest.raises(InvalidRequest):
        parse(principal="{" + name + "}")


# -- templates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "principal",
    [
        "{}",
        "{a",
        "a}",
        "{{a}}",
        "{a}{b}",
        "{a}-{b}",
        "{a}:{b}",
        "{a}/{b}.{c}",
        "/{a}",
        "{a}/",
        "a//{a}",
        "a/../{a}",
        "../x",
        "a b",
        "ä",
        "a:b",
        "",
        "*",
        "{a}*",
        7,
        None,
        ["a"],
        "x" * 257,
        "/".join(["{abc}"] * 52),
    ],
    ids=ascii,
)
def test_principals_that_are_refused(principal: object):
    with pytest.raises(InvalidRequest, match="the mapping is not valid"):
        parse(principal=principal)


@pytest.mark.parametrize(
    ("principal", "tail"),
    [
        ("{repository}", "acme/train"),
        ("{owner}", "acme"),
        ("{owner}/x-{name}", "acme/x-train"),
        ("ci", "ci"),
        ("number-{id}", "number-42"),
        ("{/deep/name}", "p"),
    ],
)
def test_principals_that_are_made(principal: str, tail: str):
    claims = {"repository": "acme/train", "owner": "acme", "name": "train", "id": 42, "deep": {"name": "p"}}
    found = apply(parse(principal=principal), subject({"sub": "job", **claims}))
    assert found.principal == f"workload:ci/{tail}"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "a/../b",
        ".",
        "a/.",
        "./a",
        "a b",
        "a\nb",
        "a:b",
        "a*",
        "аcme",
        "a%2fb",
        "a\\b",
        "a'b",
        "x" * 300,
        None,
        [],
        {},
        1.5,
    ],
    ids=ascii,
)
def test_claims_that_make_no_principal(value: object):
    with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT) as caught:
        apply(parse(principal="{x}"), subject({"sub": "job", "x": value}))
    assert not isinstance(value, str) or len(value) < 3 or value not in str(caught.value.why)


def test_a_claim_cannot_push_a_separator_around():
    """``a/b`` + ``c`` and ``a`` + ``b/c`` would be the same principal."""
    rules = parse(principal="{x}/{y}")
    assert apply(rules, subject({"sub": "job", "x": "a", "y": "c"})).principal == "workload:ci/a/c"
    for x, y in (("a/b", "c"), ("a", "b/c")):
        with pytest.raises(InvalidRequest):
            apply(rules, subject({"sub": "job", "x": x, "y": y}))
    with pytest.raises(InvalidRequest):
        apply(parse(principal="team-{x}"), subject({"sub": "job", "x": "a/b"}))


def test_the_longest_principal():
    room = 200 - len("ci/")
    found = apply(parse(principal="{x}"), subject({"sub": "job", "x": "x" * room}))
    assert len(found.principal) == len("workload:") + 200
    with pytest.raises(BrokerError):
        apply(parse(principal="{x}"), subject({"sub": "job", "x": "x" * (room + 1)}))


def test_attributes_are_printable_and_short():
    rules = parse(attributes={"ref": "{ref}"})
    for value in ("refs/heads/main", "Prod East", "x" * limits.MAX_ATTRIBUTE):
        assert apply(rules, subject({"sub": "job", "ref": value})).attributes == {"ref": value}
    for wrong in ("", "a\nb", "ä", "x" * (limits.MAX_ATTRIBUTE + 1), None, []):
        with pytest.raises(InvalidRequest):
            apply(rules, subject({"sub": "job", "ref": wrong}))
