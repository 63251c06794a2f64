from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from broker import limits
from broker.errors import BrokerError, InvalidRequest, MalformedRequest, TooLarge
from broker.policy.bundle import (
    Bundle,
    build_bundle,
    bundle_bytes,
    compile_bundle,
    parse_bundle,
)
from broker.policy.engine import PolicyEngine

Make = Callable[[str], Bundle]
READ = 'action == Broker::Action::"read"'


def permit(id: str = "a", body: str = "") -> str:
    return f'@id("{id}") permit (principal, {READ}, resource) {body};'


# -- form ---------------------------------------------------------------------------------------------


def test_a_bundle_is_its_bytes(default_bundle: Bundle) -> None:
    data = bundle_bytes(default_bundle)
    assert parse_bundle(data) == default_bundle
    assert default_bundle.digest.startswith("sha256:")
    import hashlib

    assert default_bundle.digest == "sha256:" + hashlib.sha256(data).hexdigest()


def test_the_digest_changes_with_a_text_and_with_a_name(default_files: dict[str, bytes]) -> None:
    digests = {build_bundle(default_files).digest}
    digests.add(build_bundle({**default_files, "tiers.cedar": default_files["tiers.cedar"] + b"\n"}).digest)
    moved = {("x.cedar" if name == "tiers.cedar" else name): text for name, text in default_files.items()}
    digests.add(build_bundle(moved).digest)
    assert len(digests) == 3


def test_a_bundle_cannot_be_changed(default_bundle: Bundle) -> None:
    with pytest.raises(TypeError):
        default_bundle.files["tiers.cedar"] = ""  # type: ignore[index]


@pytest.mark.parametrize(
    "value",
    [
        {"schema": "broker/policy-bundle/v2", "files": {}},
        {"schema": "broker/policy-bundle/v1"},
        {"schema": "broker/policy-bundle/v1", "files": []},
        {"schema": "broker/policy-bundle/v1", "files": {"a.cedar": 1}},
        {"schema": "broker/policy-bundle/v1", "files": {}, "more": 1},
    ],
)
def test_other_shapes_are_no_bundle(value: object) -> None:
    data = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(MalformedRequest):
        parse_bundle(data)


def test_bytes_that_are_not_canonical_are_no_bundle(default_bundle: Bundle) -> None:
    with pytest.raises(MalformedRequest):
        parse_bundle(bundle_bytes(default_bundle) + b"\n")


@pytest.mark.parametrize(
    "name", ["../a.cedar", "A.cedar", "a/b.cedar", ".cedar", "a.txt", "a.cedar\n", "a" * 64 + ".cedar", ""]
)
def test_other_file_names_are_refused(default_files: dict[str, bytes], name: str) -> None:
    with pytest.raises(InvalidRequest):
        build_bundle({**default_files, name: b""})


def test_a_bundle_needs_a_schema(default_files: dict[str, bytes]) -> None:
    files = {name: text for name, text in default_files.items() if name != "schema.cedarschema"}
    with pytest.raises(InvalidRequest, match="schema"):
        build_bundle(files)


# -- what a valid bundle is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "lock"),
        ("// nothing", "lock"),
        (f"permit (principal, {READ}, resource);", "@id"),
        (f"@id permit (principal, {READ}, resource);", "@id"),
        (permit(""), "@id"),
        (permit("Not A Name"), "lower-case"),
        (permit("a\\nb"), "lower-case"),
        (permit("a" * 64), "lower-case"),
        (permit("a") + permit("a"), "another policy"),
        ('@id("a") @id("b") permit (principal, action, resource);', "duplicate"),
        (f'@id("a") permit (principal == ?principal, {READ}, resource);', "template"),
        (permit("a", "when { resource.no_such }"), "no_such"),
        (permit("a", 'when { resource.tier == "x" + 1 }'), ""),
        (permit("a", 'when { principal in Broker::Role::"enginer" }'), ""),
        ('@id("a") permit (principal, action == Broker::Action::"raed", resource);', ""),
        (permit("a", "when { }"), ""),
        (permit("a", "if"), ""),
        ("nonsense", ""),
        (permit("a") + "\x00", "invisible"),
        (permit("a") + "// \u202e reversed", "invisible"),
        (permit("a") + "// zero\u200bwidth", "invisible"),
        ('@id("a") @next("two\\nlines") ' + permit()[9:], "@next"),
        ('@id("a") @next("' + "x" * 201 + '") ' + permit()[9:], "@next"),
        # A literal entity that is looked into is not in the slice.
        (permit("a", 'when { Broker::Group::"x" in Broker::Group::"y" }'), "names itself"),
        (permit("a", 'when { principal in Broker::Collection::"x".readers }'), "names itself"),
        (permit("a", 'when { (if true then Broker::User::"x" else principal).id == "" }'), "itself"),
        (permit("a", 'when { Broker::Version::"x".hasTag("t") }'), "names itself"),
        (permit("a", 'when { Broker::Group::"x" is Broker::Group in Broker::Group::"y" }'), "names itself"),
        (permit("a", 'when { {"in": 1, "has": Broker::Group::"x" in principal}["has"] }'), "names itself"),
        # A forbid that asks whether something is there can be switched off by leaving it out.
        ('@id("a") forbid (principal, action, resource) when { principal has id };', "always there"),
    ],
)  # fmt: skip
def test_other_texts_are_refused_with_a_reason(bundle_of: Make, text: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compile_bundle(bundle_of(text))
    assert why in f"{caught.value} {caught.value.why}"
    assert len(f"{caught.value.why}") <= 400
    assert f"{caught.value.why}".isprintable()


@pytest.mark.parametrize(
    "text",
    [
        permit("a", 'when { principal == Broker::User::"user:ana" }'),
        permit("a", 'when { resource in Broker::Collection::"acme" }'),
        permit("a", 'when { resource is Broker::Version in Broker::Collection::"acme" }'),
        permit("a", 'when { resource.collection.readers.contains(Broker::Group::"x") }'),
        permit("a", 'when { resource.hasTag("t") && resource.getTag("t") like "a*" }'),
        permit("a", 'when { {"in": 1, "has": 2, ".": principal}["in"] == 1 }'),
        permit("a", 'when { context.network.address.isInRange(ip("10.0.0.0/8")) }'),
        permit("a", 'when { context.time.now > datetime("2020-01-01") && context.time.weekday < 6 }'),
        '@id("a") @next("do so") forbid (principal in Broker::Group::"x", action, resource);',
        "// comment with ((((( and \" in it\n" + permit("a", 'when { resource.tier == "(((//" }'),
        permit("a.b_c-d") + "\r\n// a note in German: \u00fc\r\n",
    ],
)  # fmt: skip
def test_what_authors_need_is_taken(bundle_of: Make, text: str) -> None:
    assert PolicyEngine(bundle_of(text)).policies[0].file == "a.cedar"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("entity Workload in", "entity Machine in"),
        ("asked: Long, ", ""),
        ('action "revoke-own"', 'action "revoke-mine"'),
        ('"issuers", ', ""),
        (', "workload"]', "]"),
        ("    enabled: Bool,\n", ""),
        ("tier: String", "tier: Long"),
        (" tags String", ""),
    ],
)
def test_a_schema_that_lacks_a_word_of_the_broker_is_refused(
    default_files: dict[str, bytes], old: str, new: str
) -> None:
    schema = default_files["schema.cedarschema"].decode()
    changed = (
        schema.replace(old, new) if old.strip() != "asked: Long," else schema.replace("asked: Long, ", "")
    )
    assert changed != schema
    text = '@id("a") permit (principal, action == Broker::Action::"audit", resource);'
    with pytest.raises(InvalidRequest):
        PolicyEngine(build_bundle({"schema.cedarschema": changed.encode(), "a.cedar": text.encode()}))


# -- limits (I17): each at the limit, and one past it ---------------------------------------------------


def nested(levels: int) -> str:
    # `when {` and the policy's own brackets are not open at once: one level of braces around.
    return permit("a", "when { " + "(" * (levels - 1) + "true" + ")" * (levels - 1) + " }")


def chained(operators: int) -> str:
    # `==` of the scope and `when` count too.
    return permit("a", "when { " + " && ".join(["true"] * (operators - 1)) + " }")


def branched(branches: int) -> str:
    return permit("a", "when { " + "if true then true else " * branches + "true }")


def sets(levels: int) -> str:
    return permit("a", "when { " + "[" * (levels - 1) + "1" + "]" * (levels - 1) + " == 1 }")


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (nested, limits.MAX_POLICY_NESTING),
        (sets, limits.MAX_POLICY_NESTING),
        (branched, limits.MAX_POLICY_NESTING),
        (chained, limits.MAX_POLICY_OPERATORS),
    ],
)
def test_depth_is_limited(bundle_of: Make, make: Callable[[int], str], limit: int) -> None:
    bundle_of(make(limit))
    with pytest.raises(InvalidRequest):
        bundle_of(make(limit + 1))


def test_each_policy_has_its_own_room(bundle_of: Make) -> None:
    whole = chained(limits.MAX_POLICY_OPERATORS)
    bundle_of(whole + branched(limits.MAX_POLICY_NESTING) + whole)


@pytest.mark.parametrize("hidden", ["// \r", '"\\""', '// " \n', '"//" '])
def test_depth_cannot_hide_behind_a_comment_or_a_string(bundle_of: Make, hidden: str) -> None:
    with pytest.raises(InvalidRequest):
        bundle_of(hidden + nested(limits.MAX_POLICY_NESTING + 1))


@pytest.mark.parametrize("text", ["(", ")", "(]", '@id("a', '"', '"\\"', "}", "{"])
def test_unbalanced_text_is_refused_before_cedar(bundle_of: Make, text: str) -> None:
    with pytest.raises(InvalidRequest):
        bundle_of(text)


def test_the_number_of_policies_is_limited(bundle_of: Make) -> None:
    def policies(count: int) -> str:
        return "".join(f'@id("p{n}")permit(principal,action,resource);\n' for n in range(count))

    assert len(compile_bundle(bundle_of(policies(limits.MAX_POLICIES))).catalogue) == limits.MAX_POLICIES
    with pytest.raises(TooLarge):
        bundle_of(policies(limits.MAX_POLICIES + 1))


def test_the_number_of_policies_is_limited_over_all_files(default_files: dict[str, bytes]) -> None:
    half = limits.MAX_POLICIES // 2

    def bundle(more: int) -> Bundle:
        def text(start: int, stop: int) -> bytes:
            ids = range(start, stop)
            return "".join(f'@id("p{n}")permit(principal,action,resource);\n' for n in ids).encode()

        schema = default_files["schema.cedarschema"]
        files = {"schema.cedarschema": schema, "a.cedar": text(0, half)}
        return build_bundle({**files, "b.cedar": text(half, 2 * half + more)})

    compile_bundle(bundle(0))
    with pytest.raises(TooLarge):
        compile_bundle(bundle(1))


def test_the_text_is_limited(default_files: dict[str, bytes]) -> None:
    room = limits.MAX_POLICY_TEXT - sum(map(len, default_files.values())) - 2
    full = {**default_files, "z.cedar": b"//" + b"x" * room}
    parse_bundle(bundle_bytes(build_bundle(full)))
    with pytest.raises(TooLarge):
        build_bundle({**full, "z.cedar": full["z.cedar"] + b"x"})
    with pytest.raises(TooLarge):
        parse_bundle(b" " * (3 * limits.MAX_POLICY_TEXT))


def test_the_number_of_files_is_limited(default_files: dict[str, bytes]) -> None:
    room = limits.MAX_POLICY_FILES - len(default_files)
    full = {**default_files, **{f"z{n}.cedar": b"" for n in range(room)}}
    build_bundle(full)
    with pytest.raises(TooLarge):
        build_bundle({**full, "one-more.cedar": b""})


def test_the_schema_is_limited(default_files: dict[str, bytes]) -> None:
    def bundle(schema: str) -> Bundle:
        return build_bundle({"schema.cedarschema": schema.encode(), "a.cedar": permit().encode()})

    bundle("entity E;" * limits.MAX_SCHEMA_DECLARATIONS)
    with pytest.raises(TooLarge):
        bundle("entity E;" * (limits.MAX_SCHEMA_DECLARATIONS + 1))
    for left, right in (("Set<", ">"), ("{a:", "}"), ("[", "]")):
        bundle("type T = " + left * limits.MAX_POLICY_NESTING + "Bool" + right * limits.MAX_POLICY_NESTING)
        past = limits.MAX_POLICY_NESTING + 1
        with pytest.raises(InvalidRequest):
            bundle("type T = " + left * past + "Bool" + right * past)


def test_text_that_is_not_utf8_is_refused(default_files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        build_bundle({**default_files, "z.cedar": b"// \xff"})


def test_a_refusal_never_raises_anything_else(bundle_of: Make) -> None:
    for text in (
        "@",
        "@id(",
        "@id()",
        "\\",
        "permit",
        ";;;;",
        "::",
        "#",
        "'",
        "permit(principal,action,resource)",
    ):
        with pytest.raises(BrokerError):
            compile_bundle(bundle_of(text))
