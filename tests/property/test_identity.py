"""Identity under random input: what was made verifies, what was touched does not, junk never escapes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import jose
from broker.canonical import parse_json
from broker.errors import BrokerError, InvalidProof, InvalidRequest, InvalidToken, MalformedRequest
from broker.identity import enrolment, nonce, proof, scope, token

KEYS = {alg: jose.PrivateKey.generate(alg) for alg in ("EdDSA", "ES256")}
NOW = 1_800_000_000_000
URL = "https://broker.example"
VKEY = "broker.example/log+c7a1f3d2+AQID"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    claims=st.dictionaries(st.text(max_size=8), json_values, max_size=5), alg=st.sampled_from(sorted(KEYS))
)
def test_claims_survive_signing(claims: dict[str, Any], alg: str):
    made = jose.sign_jwt(claims, key=KEYS[alg], typ="x+jwt")
    present = {name: value for name, value in claims.items() if value is not None}
    assert jose.verify_jwt(made, jwk=KEYS[alg].jwk, typ="x+jwt").claims == present


requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST", "DELETE"]),
        "path": st.lists(
            st.text(
                st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=6
            ),
            max_size=4,
        )
        .map(lambda parts: "/" + "/".join(parts))
        .filter(lambda path: not {".", ".."} & set(path.split("/"))),
        "query": st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20),
        "body": st.binary(max_size=50),
        "access_token": st.none()
        | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    }
)


def build(request: dict[str, Any], key: jose.PrivateKey) -> str:
    return proof.build_proof(
        key=key,
        method=request["method"],
        url=URL + proof.encode_path(request["path"]),
        now=NOW,
        jti="a-jti-of-its-own",
        body=request["body"],
        query=request["query"],
        access_token=request["access_token"],
        nonce=None,
    )


def verify(made: str, request: dict[str, Any]) -> proof.VerifiedProof:
    return proof.verify_proof(
        made,
        method=request["method"],
        public_urls=[URL],
        raw_path=proof.encode_path(request["path"]),
        query=request["query"].encode(),
        body=request["body"],
        access_token=request["access_token"],
        now=NOW,
        require_digests=True,
        nonce_check=None,
    )


@settings(max_examples=100, deadline=None)
@given(request=requests, other=requests, alg=st.sampled_from(sorted(KEYS)))
def test_a_proof_holds_for_its_request_and_for_no_other(request: Any, other: Any, alg: str):
    made = build(request, KEYS[alg])
    assert verify(made, request).jkt == KEYS[alg].jkt
    for name in request:
        changed = {**request, name: other[name]}
        if changed != request:
            with pytest.raises(InvalidProof):
                verify(made, changed)


REQUEST = {"method": "GET", "path": "/v1/whoami", "query": "", "body": b"", "access_token": "token"}
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n"


@settings(max_examples=150, deadline=None)
@given(data=st.data(), alg=st.sampled_from(sorted(KEYS)))
def test_no_character_of_a_proof_can_be_changed_added_or_removed(data: st.DataObject, alg: str):
    made = build(REQUEST, KEYS[alg])
    at = data.draw(st.integers(0, len(made) - 1))
    width = data.draw(st.sampled_from([0, 1]))
    new = data.draw(st.sampled_from(["", *ALPHABET]))
    other = made[:at] + new + made[at + width :]
    if other != made:
        with pytest.raises(InvalidProof):
            verify(other, REQUEST)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80) | st.text(ALPHABET, max_size=80))
def test_junk_is_refused_with_the_error_of_its_kind(text: str):
    with pytest.raises(InvalidProof):
        verify(text, REQUEST)
    with pytest.raises(InvalidToken):
        token.verify_access_token(text, keys={}, issuer=URL, audience=URL, now=NOW)
    with pytest.raises(InvalidRequest):
        enrolment.parse_code(text)
    with pytest.raises(BrokerError):
        nonce.verify_nonce(text, key=bytes(32), now=NOW)


@settings(max_examples=150, deadline=None)
@given(value=json_values)
def test_a_random_value_is_no_key_and_no_scope(value: Any):
    with pytest.raises(MalformedRequest):
        jose.parse_public_jwk(value)
    with pytest.raises(InvalidRequest):
        scope.parse_details(value)


@settings(max_examples=150, deadline=None)
@given(path=st.text(max_size=12))
def test_a_raw_path_is_accepted_exactly_when_it_is_its_own_canonical_form(path: str):
    try:
        proof.check_raw_path(path)
    except MalformedRequest:
        return
    assert path.isascii()
    assert path.startswith("/")
    assert ".." not in path.split("/")


@settings(max_examples=60, deadline=None)
@given(id=st.binary(min_size=8, max_size=8), secret=st.binary(min_size=16, max_size=16))
def test_an_enrolment_code_survives_its_text(id: bytes, secret: bytes):
    code = enrolment.parse_code(enrolment.build_code(id=id, secret=secret, vkey=VKEY))
    assert (code.id, code.secret) == (id, secret)
    enrolment.verify_vkey(code, VKEY)


@settings(max_examples=40, deadline=None)
@given(key=st.binary(min_size=32, max_size=32), now=st.integers(0, 2**52), age=st.integers(0, 300_000))
def test_a_nonce_is_good_for_its_time(key: bytes, now: int, age: int):
    nonce.verify_nonce(nonce.issue_nonce(key, now), key=key, now=now + age)


@pytest.mark.parametrize("alg", sorted(KEYS))
def test_a_key_survives_json(alg: str):
    text = json.dumps(KEYS[alg].to_jwk()).encode()
    assert jose.PrivateKey.from_jwk(parse_json(text)).jkt == KEYS[alg].jkt
