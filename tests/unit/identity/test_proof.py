"""Signed requests: the examples of RFC 9449, another library's proofs, and the edges of each check."""

from __future__ import annotations

from typing import Any

import pytest
from joserfc import jwt as other_jwt
from joserfc.jwk import ECKey, OKPKey

from broker import jose, limits
from broker.canonical import b64url
from broker.errors import ClockSkew, InvalidProof, MalformedRequest, NonceRequired
from broker.identity import nonce, proof

KEY = jose.PrivateKey.generate("EdDSA")
NOW = 1_800_000_000_000
URL = "https://broker.example"
JTI = "0123456789abcdef"

# RFC 9449, figure 2 and figure 13, with the token of figure 12.
RFC_HEADER = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZ"
    "OXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIs"
    "ImNydiI6IlAtMjU2In19"
)
RFC_TOKEN_PROOF = (
    f"{RFC_HEADER}.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1w"
    "bGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX"
    "0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
RFC_RESOURCE_PROOF = (
    f"{RFC_HEADER}.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFt"
    "cGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG"
    "9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSY"
    "oMxhAJpLjA"
)
RFC_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
RFC_JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def build(**change: Any) -> str:
    request: dict[str, Any] = {
        "key": KEY,
        "method": "POST",
        "url": f"{URL}/v1/grants",
        "now": NOW,
        "jti": JTI,
        "body": b"{}",
        "query": None,
        "access_token": None,
        "nonce": None,
    }
    return proof.build_proof(**{**request, **change})


def verify(made: str, **change: Any) -> proof.VerifiedProof:
    request: dict[str, Any] = {
        "method": "POST",
        "public_urls": [URL],
        "raw_path": "/v1/grants",
        "query": b"",
        "body": b"{}",
        "access_token": None,
        "now": NOW,
        "require_digests": True,
        "nonce_check": None,
    }
    return proof.verify_proof(made, **{**request, **change})


def forge(**change: Any) -> str:
    """A rightly signed proof with these claims changed; None removes one."""
    claims = {
        "jti": JTI,
        "htm": "POST",
        "htu": f"{URL}/v1/grants",
        "iat": NOW // 1000,
        "content_digest": proof.digest_field(b"{}"),
    }
    return jose.sign_jwt({**claims, **change}, key=KEY, typ=proof.TYP, header_extra={"jwk": KEY.jwk})


# -- published vectors --------------------------------------------------------------------------------


def test_the_token_request_of_rfc_9449_verifies_as_a_stock_client():
    verified = verify(
        RFC_TOKEN_PROOF,
        public_urls=["https://server.example.com"],
        raw_path="/token",
        now=1_562_262_616_000,
        body=b"grant_type=authorization_code",
        require_digests=False,
    )
    assert (verified.jkt, verified.jti, verified.alg) == (RFC_JKT, "-BwC3ESc6acc2lTc", "ES256")
    assert verified.iat_ms == 1_562_262_616_000


def test_the_resource_request_of_rfc_9449_verifies_with_its_token_only():
    request = {
        "method": "GET",
        "public_urls": ["https://resource.example.org"],
        "raw_path": "/protectedresource",
        "now": 1_562_262_618_000,
        "body": b"",
        "require_digests": False,
    }
    assert verify(RFC_RESOURCE_PROOF, access_token=RFC_TOKEN, **request).jkt == RFC_JKT
    for token in (RFC_TOKEN + "x", None):
        with pytest.raises(InvalidProof):
            verify(RFC_RESOURCE_PROOF, access_token=token, **request)
    with pytest.raises(InvalidProof):
        verify(RFC_RESOURCE_PROOF, access_token=RFC_TOKEN, **{**request, "require_digests": True})


def test_the_token_hash_of_rfc_9449_section_7():
    assert proof.token_hash(RFC_TOKEN) == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"


def test_the_digests_of_rfc_9530():
    """The examples of RFC 9530 appendix B: no content, and a JSON text with its newline."""
    assert proof.digest_field(b"") == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    assert (
        proof.digest_field(b'{"hello": "world"}\n')
        == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    )


@pytest.mark.parametrize("alg", ["EdDSA", "Ed25519", "ES256"])
def test_a_proof_of_another_library_verifies(alg: str):
    other = ECKey.generate_key("P-256") if alg == "ES256" else OKPKey.generate_key("Ed25519")
    header = {"alg": alg, "typ": "dpop+jwt", "jwk": other.as_dict(private=False)}
    claims = {"jti": JTI, "htm": "POST", "htu": f"{URL}/oauth/token", "iat": NOW // 1000}
    made = other_jwt.encode(header, claims, other, algorithms=[alg])
    verified = verify(made, raw_path="/oauth/token", require_digests=False)
    assert verified.jkt == other.thumbprint()
    assert verified.alg == alg


def test_another_library_opens_our_proof():
    made = build(query="a=1", access_token="token", nonce="n" * 32)
    opened = other_jwt.decode(made, OKPKey.import_key(KEY.jwk), algorithms=["EdDSA"])
    assert opened.header == {"alg": "EdDSA", "typ": "dpop+jwt", "jwk": KEY.jwk}
    assert opened.claims == {
        "jti": JTI,
        "htm": "POST",
        "htu": f"{URL}/v1/grants",
        "iat": NOW // 1000,
        "ath": proof.token_hash("token"),
        "nonce": "n" * 32,
        "content_digest": proof.digest_field(b"{}"),
        "query_digest": proof.digest_field(b"a=1"),
    }


# -- what is covered ----------------------------------------------------------------------------------


def test_a_proof_says_who_and_which():
    verified = verify(build())
    assert verified.jwk == KEY.jwk
    assert verified.jkt == KEY.jkt
    assert verified.iat_ms == NOW
    assert len(verified.jti_hash) == 32
    assert verify(build(jti=JTI + "x")).jti_hash != verified.jti_hash


def test_digests_are_required_or_checked_when_present():
    stock = build(body=None)
    verify(stock, require_digests=False, query=b"")
    verify(stock, require_digests=False, query=b"a=1")
    with pytest.raises(InvalidProof):
        verify(stock, require_digests=True)
    with pytest.raises(InvalidProof):
        verify(build(), require_digests=False, body=b"{ }")
    with pytest.raises(InvalidProof):
        verify(build(query="a=1"), require_digests=False, query=b"a=2")


def test_an_empty_body_is_covered_too():
    verify(build(body=b""), body=b"")
    with pytest.raises(InvalidProof):
        verify(build(body=b""), body=b"x")
    with pytest.raises(InvalidProof):
        verify(build(body=None), body=b"")


@pytest.mark.parametrize("required", [True, False])
def test_a_query_is_covered_exactly_when_there_is_one(required: bool):
    verify(build(query="a=1&b=%20"), query=b"a=1&b=%20", require_digests=required)
    verify(build(query=""), query=b"", require_digests=required)
    for query in (b"", b"a=1&b=+", b"b=%20&a=1", b"a=1&b=%20&"):
        with pytest.raises(InvalidProof):
            verify(build(query="a=1&b=%20"), query=query, require_digests=required)
    with pytest.raises(InvalidProof):
        verify(forge(query_digest=proof.digest_field(b"")), query=b"", require_digests=required)


def test_a_query_that_the_proof_leaves_out_is_refused_where_digests_are_required():
    with pytest.raises(InvalidProof):
        verify(build(), query=b"limit=1000")


@pytest.mark.parametrize(
    "claims",
    [
        {"jti": None},
        {"jti": 7},
        {"jti": "short"},
        {"jti": "with a space in it"},
        {"jti": "newline-in-it-\n-----"},
        {"jti": "\u0430" * 20},
        {"htm": None},
        {"htm": ["POST"]},
        {"htu": None},
        {"htu": [f"{URL}/v1/grants"]},
        {"iat": None},
        {"iat": str(NOW // 1000)},
        {"iat": True},
        {"iat": NOW / 1000 + 0.5},
        {"iat": -1},
        {"iat": 2**53 - 1},
        {"nonce": 7},
        {"nonce": ""},
        {"nonce": "n" * 129},
        {"content_digest": 7},
        {"content_digest": "sha-256=:AAAA:"},
        {"content_digest": "sha-512=:AAAA:"},
        {"ath": proof.token_hash("token")},
        {"ath": ""},
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value)[:40],
)
def test_a_rightly_signed_proof_with_a_wrong_claim_is_refused(claims: dict[str, object]):
    verify(forge())
    with pytest.raises(InvalidProof):
        verify(forge(**claims))


def test_claims_that_are_not_ours_are_ignored():
    assert verify(forge(exp=NOW, extra={"a": 1})).jti == JTI


@pytest.mark.parametrize(
    "jwk",
    [None, "x", {}, {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes(32))}],
    ids=["none", "text", "empty", "zero"],
)
def test_a_proof_without_a_usable_key_is_refused(jwk: object):
    extra = {} if jwk is None else {"jwk": jwk}
    made = jose.sign_jwt({"jti": JTI}, key=KEY, typ=proof.TYP, header_extra=extra)
    with pytest.raises(InvalidProof):
        verify(made)


def test_a_private_key_in_the_header_is_refused():
    made = jose.sign_jwt({"jti": JTI}, key=KEY, typ=proof.TYP, header_extra={"jwk": KEY.to_jwk()})
    with pytest.raises(InvalidProof) as caught:
        verify(made)
    assert KEY.to_jwk()["d"] not in f"{caught.value.what} {caught.value.why}"


# -- limits -------------------------------------------------------------------------------------------


def test_the_jti_limits_are_exact():
    for size in (limits.MIN_JTI, limits.MAX_JTI):
        verify(build(jti="j" * size))
    for size in (limits.MIN_JTI - 1, limits.MAX_JTI + 1):
        with pytest.raises(InvalidProof):
            verify(forge(jti="j" * size))
        with pytest.raises(MalformedRequest):
            build(jti="j" * size)


def test_the_size_limit_is_exact():
    # base64url grows by four characters for three bytes: pad until the limit is met exactly.
    small = len(forge(pad=""))
    room = (limits.MAX_PROOF - small) * 3 // 4
    exact = next(pad for pad in range(room - 8, room + 8) if len(forge(pad="p" * pad)) == limits.MAX_PROOF)
    verify(forge(pad="p" * exact))
    over = next(pad for pad in range(exact, exact + 8) if len(forge(pad="p" * pad)) > limits.MAX_PROOF)
    with pytest.raises(InvalidProof):
        verify(forge(pad="p" * over))


@pytest.mark.parametrize("side", [-1, 1], ids=["early", "late"])
def test_the_window_is_exact_and_the_skew_is_named(side: int):
    edge = limits.PROOF_WINDOW * 1000
    verify(build(), now=NOW + side * edge)
    with pytest.raises(ClockSkew) as caught:
        verify(build(), now=NOW + side * (edge + 1))
    assert f"{limits.PROOF_WINDOW + 1} s" in caught.value.what
    assert ("behind" if side > 0 else "ahead") in caught.value.what


def test_the_skew_of_hours_is_named_in_seconds():
    with pytest.raises(ClockSkew, match="7200 s behind"):
        verify(build(), now=NOW + 7_200_000)


def test_skew_is_not_reported_for_a_proof_that_does_not_hold():
    with pytest.raises(InvalidProof) as caught:
        verify(build(), now=NOW + 7_200_000, body=b"other")
    assert not isinstance(caught.value, ClockSkew)


# -- nonces -------------------------------------------------------------------------------------------


def test_the_nonce_is_asked_for_and_checked():
    secret = bytes(range(32))

    def check(value: str | None) -> None:
        nonce.verify_nonce(value, key=secret, now=NOW)

    with pytest.raises(NonceRequired) as caught:
        verify(build(), nonce_check=check)
    verify(build(nonce=caught.value.nonce), nonce_check=check)
    with pytest.raises(NonceRequired):
        verify(build(nonce="n" * 32), nonce_check=check)


def test_a_nonce_that_nobody_asked_for_does_not_hurt():
    verify(build(nonce="n" * 32))


# -- paths --------------------------------------------------------------------------------------------

CANONICAL = [
    "/",
    "/v1/grants",
    "/console/",
    "/v1/artifacts/acme/llama-7b@step-1000/files/a%20b",
    "/v1/principals/user:ana@example.org+x",
    "/p/%25",
    "/p/%C3%A9",
    "/p/~a_b.c-d!$&'()*+,;=",
]
NOT_CANONICAL = [
    "",
    "v1/grants",
    "*",
    "//v1/grants",
    "/v1//grants",
    "/v1/grants//",
    "/v1/./grants",
    "/v1/../grants",
    "/v1/grants/..",
    "/v1/%2e%2e/grants",
    "/v1%2Fgrants",
    "/v1/gr%61nts",
    "/p/%c3%a9",
    "/p/é",
    "/p/%",
    "/p/%2",
    "/p/%zz",
    "/p/a b",
    "/p/a?b",
    "/p/a#b",
    "/p/%00",
    "/p/%0A",
    "/p/%7F",
    "/p/%FF",
    "/p/\udcff",
    '/p/"',
    "/p/\\",
]


@pytest.mark.parametrize("path", CANONICAL)
def test_a_canonical_path_is_accepted(path: str):
    proof.check_raw_path(path)
    verify(build(url=URL + path), raw_path=path)


@pytest.mark.parametrize("path", NOT_CANONICAL, ids=ascii)
def test_another_spelling_of_a_path_is_refused_even_when_it_was_signed(path: str):
    with pytest.raises(MalformedRequest):
        proof.check_raw_path(path)
    with pytest.raises(InvalidProof):
        verify(forge(htu=(URL + path).encode("ascii", "replace").decode()), raw_path=path)


def test_what_encode_path_writes_is_canonical():
    path = '/v1/a b/é%"#?\\x'
    assert proof.encode_path(path) == "/v1/a%20b/%C3%A9%25%22%23%3F%5Cx"
    proof.check_raw_path(proof.encode_path(path))


# -- making -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"url": f"{URL}/a?b=1"}, {"url": f"{URL}/a#b"}, {"query": "é"}, {"jti": ""}, {"access_token": "é"}],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value)[:40],
)
def test_a_proof_that_could_not_hold_is_not_made(change: dict[str, Any]):
    with pytest.raises(MalformedRequest):
        build(**change)
