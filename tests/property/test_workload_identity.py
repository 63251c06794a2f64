"""Workload identities under random input: patterns, templates, SPIFFE IDs, and junk."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from joserfc import jwt as other_jwt
from joserfc.jwk import ECKey

from broker import jwks
from broker.canonical import b64url
from broker.errors import BrokerError, InvalidRequest
from broker.identity import issuers, mapping, patterns
from broker.model import ACTIVE, ISSUER_KINDS, Issuer

NOW = 1_800_000_000_000
KEY = ECKey.generate_key("P-256")
SVID_KEYS = jwks.parse_jwks(
    {"keys": [{**KEY.as_dict(private=False), "kid": "k", "use": "jwt-svid"}]}, use=jwks.SPIFFE
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
claim_values = st.text(alphabet="ab/.:-@_ *%\\ä\n", max_size=8) | json_values


def subject(claims: dict[str, Any]) -> issuers.Subject:
    return issuers.Subject(issuer="u", sub="s", jti=None, expires_ms=1, claims=claims, digest="sha256:0")


# -- patterns -------------------------------------------------------------------------------------------


def reference(pattern: str) -> re.Pattern[str]:
    """The same pattern as a regular expression, which backtracks where ours does not."""
    parts = re.split(r"(\*\*|\*)", pattern)
    texts = {"*": "[^/:]*", "**": ".*"}
    return re.compile("".join(texts.get(part, re.escape(part)) for part in parts), re.DOTALL)


@settings(max_examples=400, deadline=None)
@given(pattern=st.text(alphabet="ab/:*", min_size=1, max_size=8), value=st.text(alphabet="ab/:", max_size=10))
def test_patterns_mean_what_they_say(pattern: str, value: str):
    assume("***" not in pattern)
    assert patterns.parse_pattern(pattern).matches(value) == bool(reference(pattern).fullmatch(value))


@settings(max_examples=200, deadline=None)
@given(value=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable() and "*" not in text))
def test_a_value_without_stars_is_that_value(value: str):
    pattern = patterns.parse_pattern(value)
    assert pattern.exact
    assert pattern.matches(value)
    assert not pattern.matches(value + "x")
    assert not pattern.matches(value.swapcase()) or value.swapcase() == value


# -- mappings -------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    claims=st.dictionaries(st.sampled_from(["x", "y", "z"]), claim_values, max_size=3),
    template=st.sampled_from(["{x}", "{x}/{y}", "t-{x}/{y}/{z}", "team/{x}", "fixed", "{/x}/{y}"]),
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True),
)
def test_an_issuer_speaks_for_its_own_principals_only(claims: dict[str, Any], template: str, name: str):
    rule = {"name": "r", "match": {"team": "a"}, "principal": template, "attributes": {"x": "{x}"}}
    rules = mapping.parse_mapping({"schema": mapping.SCHEMA, "rules": [rule]}, kind="oidc")
    with suppress(InvalidRequest):
        found = mapping.apply_mapping(rules, subject({**claims, "team": "a"}), issuer_name=name)
        assert re.fullmatch(r"workload:[A-Za-z0-9][A-Za-z0-9._@+/-]*", found.principal)
        assert found.principal.startswith(f"workload:{name}/")
        parts = found.principal.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert found.principal.count("/") >= template.replace("{/", "{").count("/") + 1


texts = st.text(alphabet="ab-/.", min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(
    one=st.tuples(texts, texts, texts),
    other=st.tuples(texts, texts, texts),
    template=st.sampled_from(["{x}/{y}/{z}", "a-{x}/b{y}/{z}.c"]),
)
def test_two_identities_are_never_one_principal(
    one: tuple[str, str, str], other: tuple[str, str, str], template: str
):
    assume(one != other)
    rule = {"name": "r", "match": {"team": "a"}, "principal": template}
    rules = mapping.parse_mapping({"schema": mapping.SCHEMA, "rules": [rule]}, kind="oidc")
    made = []
    for values in (one, other):
        with suppress(InvalidRequest):
            claims = {"team": "a", **dict(zip("xyz", values, strict=True))}
            made.append(mapping.apply_mapping(rules, subject(claims), issuer_name="ci").principal)
    assert len(set(made)) == len(made)


rules_that_may_hold = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b", "c"]),
        "match": st.dictionaries(
            st.sampled_from(["sub", "ref", "/a/b", "namespace", "repository_id"]),
            st.sampled_from(["x", "7", "refs/*", "**", "a**b"]) | st.lists(st.just("x"), max_size=2),
            max_size=3,
        ),
        "principal": st.sampled_from(["{sub}", "x", "{a}/{b}", "{a}{b}", "/x"]),
    },
    optional={
        "groups": st.lists(st.sampled_from(["ml", "cv", "A"]), max_size=2),
        "roles": st.lists(st.sampled_from(["workload", "publisher", "admin"]), max_size=2),
        "attributes": st.dictionaries(
            st.sampled_from(["k", "issuer", "K"]), st.sampled_from(["v", "{sub}", "{", ""]), max_size=2
        ),
        "pull_requests": st.sampled_from([True, False, 1]),
        "more": st.none(),
    },
)


@settings(max_examples=300, deadline=None)
@given(rules=st.lists(rules_that_may_hold | json_values, max_size=3), kind=st.sampled_from(ISSUER_KINDS))
def test_a_mapping_that_holds_has_one_text(rules: list[Any], kind: str):
    with suppress(BrokerError):
        parsed = mapping.parse_mapping({"schema": mapping.SCHEMA, "rules": rules}, kind=kind)
        text = mapping.mapping_bytes(parsed)
        assert mapping.parse_mapping(text, kind=kind) == parsed
        assert mapping.mapping_bytes(mapping.parse_mapping(json.loads(text), kind=kind)) == text
        assert all(set(rule.roles) <= {"workload", "publisher"} for rule in parsed.rules)


@settings(max_examples=200, deadline=None)
@given(value=json_values | st.text() | st.binary(), kind=st.sampled_from([*ISSUER_KINDS, "saml"]))
def test_junk_is_no_mapping(value: object, kind: str):
    try:
        mapping.parse_mapping(value, kind=kind)
    except BrokerError:
        return
    raise AssertionError("junk was taken for a mapping")


@settings(max_examples=200, deadline=None)
@given(claims=json_values.filter(lambda value: isinstance(value, dict)), name=st.text(max_size=8))
def test_claims_are_text_or_nothing(claims: Any, name: str):
    found = patterns.find_claim(claims, name)
    assert found is None or isinstance(found, str)


# -- SPIFFE IDs -----------------------------------------------------------------------------------------

SPIFFE_ID = re.compile(r"spiffe://prod\.example((?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)+)", re.ASCII)
"""A SPIFFE ID of the trust domain prod.example with a path, written independently of the code."""


def verify(sub: str) -> issuers.Subject:
    claims = {"aud": "us", "exp": NOW // 1000 + 60, "sub": sub}
    token = other_jwt.encode({"alg": "ES256", "kid": "k"}, claims, KEY)
    plain = {"name": "mesh", "url": "spiffe://prod.example", "kind": "spiffe", "audience": "us"}
    row = Issuer(**plain, mapping="{}", status=ACTIVE, created=0)
    return issuers.verify_subject(token, issuer=row, keys=SVID_KEYS, now=NOW)


@settings(max_examples=300, deadline=None)
@given(
    sub=st.builds(
        lambda head, path: head + path,
        st.sampled_from(
            ["spiffe://prod.example", "spiffe://prod.example/ns", "spiffe://prod.exampl", "spiffe://"]
        ),
        st.text(alphabet="aZ0._-/%?#:@ä ", max_size=8),
    )
)
def test_spiffe_ids_are_strict(sub: str):
    expected = SPIFFE_ID.fullmatch(sub)
    try:
        found = verify(sub)
    except InvalidRequest:
        assert expected is None
    else:
        assert expected is not None
        assert f"/{found.claims['path']}" == expected[1]
        assert found.claims["trust_domain"] == "prod.example"


# -- junk -----------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    header=json_values,
    claims=json_values,
    signature=st.binary(max_size=70),
    known=st.booleans(),
)
def test_junk_is_no_token(header: Any, claims: Any, signature: bytes, known: bool):
    if known and isinstance(header, dict):
        header = {**header, "alg": "ES256", "kid": "k"}
    parts = [json.dumps(part).encode() for part in (header, claims)]
    text = ".".join(b64url(part) for part in (*parts, signature))
    for read in (jwks.peek_foreign, jwks.signing_digest):
        with suppress(BrokerError):
            read(text)
    with pytest.raises(BrokerError):
        jwks.verify_foreign(text, SVID_KEYS[0])


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_junk_text_is_no_token(text: str):
    with suppress(BrokerError):
        jwks.peek_foreign(text)
    with pytest.raises(BrokerError):
        jwks.verify_foreign(text, SVID_KEYS[0])


@settings(max_examples=300, deadline=None)
@given(
    members=st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "kid", "use", "alg", "key_ops"]),
        json_values | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "sig", "RS256", "AQAB", "AA"]),
        max_size=10,
    )
)
def test_junk_is_no_key(members: dict[str, Any]):
    assert jwks.parse_jwks({"keys": [members]}, use=jwks.SIGNING) == ()
