"""Access tokens and assertions: what holds, what another library sees, and the edges of each check."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from joserfc import jwt as other_jwt
from joserfc.jwk import OKPKey

from broker import jose, limits
from broker.canonical import Json
from broker.errors import InvalidGrant, InvalidToken, MalformedRequest, TooLarge
from broker.identity import token

SIGNER = jose.PrivateKey.generate("EdDSA", kinds=[token.ACCESS_TYP])
CLIENT = jose.PrivateKey.generate("ES256")
KEYS = {"k1": SIGNER.jwk}
NOW = 1_800_000_000_000
IAT = NOW // 1000
ISSUER = "https://broker.example"
DETAIL: Json = {"type": "artifact_access", "actions": ["read"], "identifier": "acme/llama-7b"}
ID = token.token_id(bytes(16))
ANCESTOR = token.token_id(b"\1" * 16)

CLAIMS = token.AccessClaims(
    iss=ISSUER,
    sub="user:ana",
    aud=ISSUER,
    client_id="user:ana",
    iat=IAT,
    exp=IAT + limits.ACCESS_TOKEN_TTL,
    jti=ID,
    jkt=CLIENT.jkt,
    limits=((DETAIL,),),
)


def verify(made: str, **change: Any) -> token.AccessClaims:
    expected: dict[str, Any] = {"keys": KEYS, "issuer": ISSUER, "audience": ISSUER, "now": NOW}
    return token.verify_access_token(made, **{**expected, **change})


def forge(header: dict[str, object] | None = None, **change: Any) -> str:
    """A token rightly signed with the server's key, with these claims changed; None removes one."""
    made = token.sign_access_token(CLAIMS, key=SIGNER, kid="k1")
    claims = jose.verify_jwt(made, jwk=SIGNER.jwk, typ=token.ACCESS_TYP).claims
    extra = {"kid": "k1"} if header is None else header
    return jose.sign_jwt({**claims, **change}, key=SIGNER, typ=token.ACCESS_TYP, header_extra=extra)


def test_what_was_signed_comes_back():
    made = token.sign_access_token(CLAIMS, key=SIGNER, kid="k1")
    assert verify(made) == CLAIMS
    assert CLAIMS.holders == (ID,)
    assert CLAIMS.expires_at == (IAT + limits.ACCESS_TOKEN_TTL) * 1000


def test_another_library_reads_the_claims_of_rfc_9068():
    made = token.sign_access_token(CLAIMS, key=SIGNER, kid="k1")
    opened = other_jwt.decode(made, OKPKey.import_key(SIGNER.jwk), algorithms=["EdDSA"])
    assert opened.header == {"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"}
    assert opened.claims == {
        "iss": ISSUER,
        "sub": "user:ana",
        "aud": ISSUER,
        "client_id": "user:ana",
        "iat": IAT,
        "exp": IAT + 900,
        "jti": ID,
        "cnf": {"jkt": CLIENT.jkt},
        "limits": [[DETAIL]],
        "chain": [],
    }


def test_the_chain_and_the_levels_belong_together():
    child = dataclasses.replace(CLAIMS, limits=((DETAIL,), (DETAIL,)), chain=(ANCESTOR,))
    assert verify(token.sign_access_token(child, key=SIGNER, kid="k1")).holders == (ANCESTOR, ID)
    for chain, levels in (((), 2), ((ANCESTOR,), 1), ((ANCESTOR,) * 2, 3), ((ID,), 2), (("t_x",), 2)):
        wrong = dataclasses.replace(CLAIMS, limits=((DETAIL,),) * levels, chain=chain)
        with pytest.raises(MalformedRequest):
            token.sign_access_token(wrong, key=SIGNER, kid="k1")


def test_the_depth_limit_is_exact():
    def deep(levels: int) -> token.AccessClaims:
        chain = tuple(token.token_id(bytes([n]) * 16) for n in range(1, levels))
        return dataclasses.replace(CLAIMS, limits=((DETAIL,),) * levels, chain=chain)

    verify(token.sign_access_token(deep(limits.MAX_LIMITS_LEVELS), key=SIGNER, kid="k1"))
    for levels in (0, limits.MAX_LIMITS_LEVELS + 1):
        with pytest.raises(MalformedRequest):
            token.sign_access_token(deep(levels), key=SIGNER, kid="k1")


def test_the_number_of_details_is_limited():
    full = dataclasses.replace(CLAIMS, limits=((DETAIL,) * limits.MAX_DETAILS,))
    verify(token.sign_access_token(full, key=SIGNER, kid="k1"))
    more = dataclasses.replace(CLAIMS, limits=((DETAIL,) * (limits.MAX_DETAILS + 1),))
    with pytest.raises(MalformedRequest):
        token.sign_access_token(more, key=SIGNER, kid="k1")


def test_a_token_that_would_be_too_large_is_not_made():
    def padded(size: int) -> token.AccessClaims:
        return dataclasses.replace(CLAIMS, limits=(({**DETAIL, "paths": ["p" * size]},),))

    small = len(token.sign_access_token(padded(0), key=SIGNER, kid="k1"))
    room = (limits.MAX_TOKEN - small) * 3 // 4
    verify(token.sign_access_token(padded(room - 4), key=SIGNER, kid="k1"))
    with pytest.raises(TooLarge):
        token.sign_access_token(padded(room + 4), key=SIGNER, kid="k1")


def test_the_life_of_a_token_is_exact():
    made = token.sign_access_token(CLAIMS, key=SIGNER, kid="k1")
    first, last = NOW - limits.PROOF_WINDOW * 1000, CLAIMS.expires_at - 1
    for now in (first, last):
        assert verify(made, now=now) == CLAIMS
    for now in (first - 1, last + 1):
        with pytest.raises(InvalidToken):
            verify(made, now=now)


@pytest.mark.parametrize("exp", [IAT, IAT - 1, IAT + limits.ACCESS_TOKEN_TTL + 1, 2**52])
def test_a_token_lives_for_at_most_its_limit(exp: int):
    with pytest.raises(InvalidToken):
        verify(forge(exp=exp), now=(IAT - 30) * 1000)


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": ISSUER + "/"},
        {"issuer": "https://other.example"},
        {"audience": "https://other.example"},
        {"keys": {}},
        {"keys": {"k2": SIGNER.jwk}},
        {"keys": {"k1": CLIENT.jwk}},
        {"keys": {"k1": jose.PrivateKey.generate().jwk}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_token_of_another_server_is_refused(change: dict[str, Any]):
    with pytest.raises(InvalidToken):
        verify(forge(), **change)


@pytest.mark.parametrize(
    "claims",
    [{name: None} for name in sorted(token._ACCESS_MEMBERS)]
    + [
        {"aud": [ISSUER]},
        {"aud": ISSUER + "/"},
        {"iss": ISSUER.upper()},
        {"sub": "ana"},
        {"sub": "user:"},
        {"sub": "service:ana"},
        {"sub": "user:ana\n"},
        {"sub": ["user:ana"]},
        {"client_id": ""},
        {"client_id": 7},
        {"iat": str(IAT)},
        {"iat": IAT + 0.5},
        {"iat": True},
        {"exp": None},
        {"exp": "never"},
        {"jti": "t_x"},
        {"jti": "g_" + ID[2:]},
        {"jti": ID + "A"},
        {"cnf": {}},
        {"cnf": {"jkt": CLIENT.jkt, "x5t#S256": CLIENT.jkt}},
        {"cnf": {"jkt": CLIENT.jkt[:-1]}},
        {"cnf": {"jkt": [CLIENT.jkt]}},
        {"cnf": CLIENT.jkt},
        {"limits": {}},
        {"limits": []},
        {"limits": [DETAIL]},
        {"limits": [["artifact_access"]]},
        {"limits": "*"},
        {"chain": "t"},
        {"chain": [ANCESTOR]},
        {"scope": "admin"},
        {"nbf": IAT},
        {"authorization_details": [DETAIL]},
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value)[:40],
)
def test_a_rightly_signed_token_with_a_wrong_claim_is_refused(claims: dict[str, object]):
    verify(forge())
    with pytest.raises(InvalidToken):
        verify(forge(**claims))


@pytest.mark.parametrize("header", [{}, {"kid": "k2"}, {"jwk": SIGNER.jwk}], ids=["none", "other", "jwk"])
def test_the_key_is_found_by_kid_only(header: dict[str, object]):
    with pytest.raises(InvalidToken):
        verify(forge(header))


@pytest.mark.parametrize(
    "made", ["", "a.b.c", "..", "Bearer x", "A" * (limits.MAX_TOKEN + 1)], ids=lambda m: m[:9]
)
def test_junk_is_no_token(made: str):
    with pytest.raises(InvalidToken):
        verify(made)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_token_id_is_made_of_16_bytes(size: int):
    with pytest.raises(MalformedRequest):
        token.token_id(bytes(size))


# -- assertions ---------------------------------------------------------------------------------------


def assertion(**change: Any) -> str:
    made: dict[str, Any] = {
        "key": CLIENT,
        "principal": "user:ana",
        "issuer": ISSUER,
        "now": NOW,
        "jti": "j" * 22,
    }
    return token.build_assertion(**{**made, **change})


def check(made: str, **change: Any) -> token.AssertionClaims:
    expected: dict[str, Any] = {"jwk": CLIENT.jwk, "principal": "user:ana", "issuer": ISSUER, "now": NOW}
    return token.verify_assertion(made, **{**expected, **change})


def test_an_assertion_says_who():
    claims = check(assertion())
    assert claims.principal == "user:ana"
    assert claims.jti == "j" * 22
    assert len(claims.jti_hash) == 32
    assert (claims.iat, claims.exp) == (IAT, IAT + limits.ASSERTION_TTL)
    assert jose.peek_header(assertion())["kid"] == CLIENT.jkt


def test_the_life_of_an_assertion_is_exact():
    made = assertion()
    first, last = NOW - limits.PROOF_WINDOW * 1000, (IAT + limits.ASSERTION_TTL) * 1000 - 1
    for now in (first, last):
        check(made, now=now)
    for now in (first - 1, last + 1):
        with pytest.raises(InvalidGrant):
            check(made, now=now)
    with pytest.raises(InvalidGrant):
        check(assertion(ttl=limits.ASSERTION_TTL + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"principal": "user:bob"},
        {"principal": "ana"},
        {"issuer": ISSUER + "/"},
        {"issuer": f"{ISSUER}/oauth/token"},
        {"jwk": jose.PrivateKey.generate("ES256").jwk},
        {"jwk": SIGNER.jwk},
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value)[:40],
)
def test_an_assertion_holds_for_one_principal_key_and_server(change: dict[str, Any]):
    with pytest.raises(InvalidGrant):
        check(assertion(), **change)


@pytest.mark.parametrize(
    "claims",
    [{name: None} for name in ("iss", "sub", "aud", "iat", "exp", "jti")]
    + [
        {"iss": "user:bob"},
        {"sub": "user:bob"},
        {"aud": [ISSUER]},
        {"jti": "short"},
        {"exp": IAT},
        {"exp": IAT + 60.5},
        {"scope": "admin"},
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value)[:40],
)
def test_a_rightly_signed_assertion_with_a_wrong_claim_is_refused(claims: dict[str, object]):
    base = jose.verify_jwt(assertion(), jwk=CLIENT.jwk, typ=token.ASSERTION_TYP).claims
    forged = jose.sign_jwt({**base, **claims}, key=CLIENT, typ=token.ASSERTION_TYP)
    with pytest.raises(InvalidGrant):
        check(forged)


def test_an_assertion_of_both_names_wrong_is_refused():
    base = jose.verify_jwt(assertion(), jwk=CLIENT.jwk, typ=token.ASSERTION_TYP).claims
    forged = jose.sign_jwt(
        {**base, "iss": "user:bob", "sub": "user:bob"}, key=CLIENT, typ=token.ASSERTION_TYP
    )
    with pytest.raises(InvalidGrant):
        check(forged)


def test_a_proof_is_no_assertion():
    base = jose.verify_jwt(assertion(), jwk=CLIENT.jwk, typ=token.ASSERTION_TYP).claims
    with pytest.raises(InvalidGrant):
        check(jose.sign_jwt(base, key=CLIENT, typ="dpop+jwt"))
