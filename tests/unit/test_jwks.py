"""Foreign keys and tokens: another library writes them, and everything that is not one is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jwt as other_jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from broker import jose, jwks, limits
from broker.canonical import b64url, parse_b64url
from broker.errors import BrokerError, IntegrityFailure, InvalidRequest, MalformedRequest

ED25519_ORDER_8 = b64url(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"))
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

RSA = RSAKey.generate_key(2048)
P256 = ECKey.generate_key("P-256")
P384 = ECKey.generate_key("P-384")
ED = OKPKey.generate_key("Ed25519")
SIGNERS: dict[str, tuple[str, Any]] = {
    "RS256": ("RSA", RSA),
    "RS384": ("RSA", RSA),
    "RS512": ("RSA", RSA),
    "PS256": ("RSA", RSA),
    "PS384": ("RSA", RSA),
    "PS512": ("RSA", RSA),
    "ES256": ("P-256", P256),
    "ES384": ("P-384", P384),
    "EdDSA": ("Ed25519", ED),
}
CLAIMS = {"iss": "https://issuer.example", "sub": "job", "aud": "us", "exp": 2_000_000_000}


def public(key: Any, **members: Any) -> dict[str, Any]:
    return {**key.as_dict(private=False), "kid": "k1", **members}


def sign(alg: str = "RS256", claims: dict[str, Any] = CLAIMS, /, **header: Any) -> str:
    names = list(SIGNERS)
    head = {"alg": alg, "kid": "k1", **header}
    return other_jwt.encode({k: v for k, v in head.items() if v is not None}, claims, SIGNERS[alg][1], names)


def one(*members: dict[str, Any], use: str = jwks.SIGNING) -> tuple[jwks.ForeignKey, ...]:
    return jwks.parse_jwks({"keys": list(members)}, use=use)


def raw(header: object, claims: object, signature: bytes = b"x") -> str:
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join(b64url(part) for part in (*parts, signature))


# -- another library signs ------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", SIGNERS)
def test_what_another_library_signs_verifies(alg: str):
    (key,) = one(public(SIGNERS[alg][1]))
    assert jwks.verify_foreign(sign(alg), key) == CLAIMS


@pytest.mark.parametrize("alg", SIGNERS)
def test_the_key_says_which_algorithms_it_has(alg: str):
    (key,) = one(public(SIGNERS[alg][1], alg=alg))
    assert key.algorithms == (alg,)
    assert jwks.verify_foreign(sign(alg), key) == CLAIMS
    for other in set(SIGNERS) - {alg}:
        with pytest.raises(IntegrityFailure, match="not this one"):
            jwks.verify_foreign(sign(other), key)


def test_a_key_without_alg_has_those_of_its_type():
    found = {key.algorithms for key in one(*(public(key) for key in (RSA, P256, P384, ED)))}
    assert found == {
        ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        ("ES256",),
        ("ES384",),
        ("EdDSA", "Ed25519"),
    }


@pytest.mark.parametrize(
    "position", [0, 1, 2], ids=["a flipped header", "a flipped payload", "a flipped signature"]
)
@pytest.mark.parametrize("alg", ["RS256", "ES384", "EdDSA"])
def test_a_changed_token_does_not_verify(alg: str, position: int):
    parts = sign(alg).split(".")
    data = bytearray(parse_b64url(parts[position]))
    data[-3] ^= 1
    parts[position] = b64url(bytes(data))
    (key,) = one(public(SIGNERS[alg][1]))
    with pytest.raises((IntegrityFailure, MalformedRequest)):
        jwks.verify_foreign(".".join(parts), key)


@pytest.mark.parametrize("alg", ["RS256", "ES256", "ES384", "EdDSA"])
@pytest.mark.parametrize("size", [0, 1, 63, 65, 95, 97, 255, 257], ids="{}-bytes".format)
def test_signatures_of_other_sizes_do_not_verify(alg: str, size: int):
    head, body, _ = sign(alg).split(".")
    (key,) = one(public(SIGNERS[alg][1]))
    with pytest.raises((IntegrityFailure, MalformedRequest)):
        jwks.verify_foreign(f"{head}.{body}.{b64url(bytes(size))}", key)


def test_a_signature_in_der_does_not_verify():
    head, body, signature = sign("ES256").split(".")
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    data = parse_b64url(signature)
    der = encode_dss_signature(int.from_bytes(data[:32], "big"), int.from_bytes(data[32:], "big"))
    assert decode_dss_signature(der)
    (key,) = one(public(P256))
    with pytest.raises(IntegrityFailure):
        jwks.verify_foreign(f"{head}.{body}.{b64url(der)}", key)


def test_another_signature_over_the_same_is_the_same_token():
    """ECDSA: (r, n - s) verifies as well, and anybody can compute it."""
    head, body, signature = sign("ES256").split(".")
    data = parse_b64url(signature)
    other = data[:32] + (P256_ORDER - int.from_bytes(data[32:], "big")).to_bytes(32, "big")
    twin = f"{head}.{body}.{b64url(other)}"
    (key,) = one(public(P256))
    assert jwks.verify_foreign(twin, key) == CLAIMS
    digest = "sha256:" + hashlib.sha256(f"{head}.{body}".encode()).hexdigest()
    assert jwks.signing_digest(twin) == jwks.signing_digest(f"{head}.{body}.{signature}") == digest


# -- algorithms -----------------------------------------------------------------------------------------


def test_a_public_key_is_not_the_secret_of_anything():
    """RS256 confused with HS256: the public key, in every form that a library may take, as the secret."""
    numbers = RSA.as_pem(private=False)
    (key,) = one(public(RSA))
    for secret in (numbers, numbers.strip(), key.jwk.encode(), parse_b64url(RSA.as_dict()["n"])):
        head = b64url(json.dumps({"alg": "HS256", "kid": "k1"}).encode())
        body = b64url(json.dumps(CLAIMS).encode())
        mac = hmac.digest(secret, f"{head}.{body}".encode(), "sha256")
        forged = f"{head}.{body}.{b64url(mac)}"
        with pytest.raises(IntegrityFailure, match="no key"):
            jwks.find_foreign_key(jwks.peek_foreign(forged), (key,))
        with pytest.raises(IntegrityFailure, match="not this one"):
            jwks.verify_foreign(forged, key)


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "HS256", "rs256", "ES256K", "RS1", "Ed448", "dir"])
def test_other_algorithms_do_not_exist(alg: str):
    forged = raw({"alg": alg, "kid": "k1"}, CLAIMS)
    for key in one(*(public(key) for key in (RSA, P256, P384, ED))):
        with pytest.raises(IntegrityFailure):
            jwks.verify_foreign(forged, key)


@pytest.mark.parametrize("alg", ["none", "HS256", "RS1", "ES512", "RSA-OAEP", 7, None, ["RS256"]], ids=repr)
def test_a_key_for_another_algorithm_is_passed_over(alg: object):
    assert one(public(RSA, alg=alg)) == ()


@pytest.mark.parametrize(
    ("alg", "kind"), [("ES256", P384), ("ES384", P256), ("EdDSA", P256), ("ES256", ED), ("RS256", P256)]
)
def test_a_key_does_not_take_the_algorithm_of_another_type(alg: str, kind: Any):
    assert one(public(kind, alg=alg)) == ()
    with pytest.raises(IntegrityFailure, match="no key"):
        jwks.find_foreign_key(jwks.peek_foreign(sign(alg)), one(public(kind)))


@pytest.mark.parametrize(
    "name", ["at+jwt", "dpop+jwt", "client-assertion+jwt", "broker-manifest+jws", "jwt", "JWS", "", None, 1]
)
def test_no_other_type_passes(name: object):
    token = raw({"alg": "EdDSA", "kid": "k1", "typ": name}, CLAIMS)
    with pytest.raises(MalformedRequest, match="typ is JWT, JOSE or absent"):
        jwks.peek_foreign(token)
    with pytest.raises(MalformedRequest, match="typ is JWT, JOSE or absent"):
        jwks.verify_foreign(token, one(public(ED))[0])


@pytest.mark.parametrize("name", ["JWT", "JOSE", None])
def test_the_types_of_identities_pass(name: str | None):
    (key,) = one(public(ED))
    assert jwks.verify_foreign(sign("EdDSA", typ=name), key) == CLAIMS


def test_what_we_sign_ourselves_is_never_foreign():
    own = jose.PrivateKey.generate()
    token = jose.sign_jwt(CLAIMS, key=own, typ="at+jwt", header_extra={"kid": "k1"})
    with pytest.raises(MalformedRequest):
        jwks.verify_foreign(token, one({**own.jwk, "kid": "k1"})[0])


# -- which key ------------------------------------------------------------------------------------------


def test_keys_are_found_by_name_and_algorithm():
    keys = one(public(RSA), public(P256), public(ED, kid="k2"))
    assert jwks.find_foreign_key(jwks.peek_foreign(sign("RS256")), keys) == keys[0]
    assert jwks.find_foreign_key(jwks.peek_foreign(sign("ES256")), keys) == keys[1]
    assert jwks.find_foreign_key(jwks.peek_foreign(sign("EdDSA", kid="k2")), keys) == keys[2]
    with pytest.raises(IntegrityFailure, match="no key"):
        jwks.find_foreign_key(jwks.peek_foreign(sign("RS256", kid="k2")), keys)


def test_two_keys_of_one_name_and_type_are_no_key():
    keys = one(public(RSAKey.generate_key(2048)), public(RSA))
    with pytest.raises(IntegrityFailure, match="several"):
        jwks.find_foreign_key(jwks.peek_foreign(sign("RS256")), keys)


def test_the_same_key_twice_is_one():
    assert len(one(public(RSA), public(RSA, use="sig"), public(RSA, kid="k2"))) == 2


def test_a_token_without_kid_is_for_the_only_key_that_fits():
    token = jwks.peek_foreign(sign("RS256", kid=None))
    keys = one(public(RSA), public(P256))
    assert jwks.find_foreign_key(token, keys) == keys[0]
    assert jwks.verify_foreign(sign("RS256", kid=None), keys[0]) == CLAIMS
    with pytest.raises(IntegrityFailure, match="several"):
        jwks.find_foreign_key(token, one(public(RSA), public(RSA, kid="k2")))


def test_a_token_with_kid_is_not_for_a_key_without():
    (key,) = one(RSA.as_dict(private=False))
    assert key.kid is None
    with pytest.raises(IntegrityFailure):
        jwks.find_foreign_key(jwks.peek_foreign(sign("RS256")), (key,))
    with pytest.raises(IntegrityFailure):
        jwks.verify_foreign(sign("RS256"), key)


# -- key sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda obj: obj, json.dumps, lambda obj: json.dumps(obj).encode()])
def test_a_set_comes_as_object_text_or_bytes(form: Any):
    (key,) = jwks.parse_jwks(form({"keys": [public(P256)], "spiffe_sequence": 3}), use=jwks.SIGNING)
    assert json.loads(key.jwk) == {m: public(P256)[m] for m in ("kty", "crv", "x", "y")}


@pytest.mark.parametrize("use", [jwks.SIGNING, jwks.SPIFFE])
def test_a_set_survives_being_written(use: str):
    keys = one(
        public(RSA, alg="PS256", use=use),
        public(P256, use=use),
        {**ED.as_dict(private=False), "use": use},
        use=use,
    )
    assert len(keys) == 3
    assert jwks.parse_jwks(jwks.build_jwks(keys, use=use), use=use) == keys


def test_keys_of_other_uses_are_passed_over():
    assert one(public(RSA, use="enc")) == ()
    assert one(public(RSA, key_ops=["encrypt"])) == ()
    assert one(public(RSA, key_ops="verify")) == ()
    assert len(one(public(RSA, use="sig", key_ops=["verify"]))) == 1


def test_a_spiffe_bundle_has_keys_for_jwts_and_others():
    bundle = [public(P256, use="jwt-svid"), public(P384, use="x509-svid"), public(ED), public(RSA, use="sig")]
    (key,) = one(*bundle, use=jwks.SPIFFE)
    assert key.algorithms == ("ES256",)
    assert jwks.use_for("spiffe") == jwks.SPIFFE
    assert {jwks.use_for(kind) for kind in ("oidc", "kubernetes", "github")} == {jwks.SIGNING}


@pytest.mark.parametrize(
    "member",
    [
        OctKey.generate_key(256).as_dict(private=True),
        RSA.as_dict(private=True),
        P256.as_dict(private=True),
        ED.as_dict(private=True),
        {"kty": "oct"},
        {**P384.as_dict(private=False), "k": "AAAA"},
        {"kty": "new", "d": "AAAA"},
    ],
    ids=["oct", "rsa", "ec", "okp", "empty-oct", "k", "unknown-with-d"],
)
def test_a_set_with_a_private_or_symmetric_key_is_refused_whole(member: dict[str, Any]):
    with pytest.raises(MalformedRequest, match="private or symmetric") as caught:
        one(public(RSA), member)
    assert str(member.get("d", member.get("k", "-----"))) not in f"{caught.value.what} {caught.value.why}"


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "new", "x": "AA"},
        {},
        {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "Ed448", "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": ED.as_dict(private=False)["x"]},
        {"kty": "OKP", "crv": "Ed25519", "x": ED25519_ORDER_8},
        {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes(32))},
        {"kty": "EC", "crv": "Ed25519", "x": ED.as_dict(private=False)["x"]},
        {"kty": ["RSA"], "n": "AA", "e": "AQAB"},
        {**P256.as_dict(private=False), "y": P256.as_dict(private=False)["x"]},
        {**P384.as_dict(private=False), "y": P384.as_dict(private=False)["x"]},
        {**P384.as_dict(private=False), "x": b64url(b"\0" + parse_b64url(P384.as_dict()["x"]))},
        {**P256.as_dict(private=False), "x": 7},
        {**RSA.as_dict(private=False), "n": RSA.as_dict()["n"] + "="},
        {**RSA.as_dict(private=False), "n": "A" * 5000},
        {"kty": "RSA", "n": RSA.as_dict()["n"]},
        {**RSA.as_dict(private=False), "kid": ""},
        {**RSA.as_dict(private=False), "kid": 7},
        {**RSA.as_dict(private=False), "kid": "k" * (limits.MAX_KID + 1)},
    ],
)
def test_keys_that_are_not_ours_to_take_are_passed_over(member: dict[str, Any]):
    assert len(one(member, public(RSA))) == 1


def rsa_member(bits: int, exponent: int = 65537, modulus: int | None = None) -> dict[str, Any]:
    value = modulus if modulus is not None else (1 << (bits - 1)) | 1
    size = (value.bit_length() + 7) // 8
    e = exponent.to_bytes(max(1, (exponent.bit_length() + 7) // 8), "big")
    return {"kty": "RSA", "n": b64url(value.to_bytes(size, "big")), "e": b64url(e)}


@pytest.mark.parametrize(("bits", "taken"), [(1024, 0), (2047, 0), (2048, 1), (8192, 1), (8193, 0)])
def test_moduli_are_neither_small_nor_huge(bits: int, taken: int):
    assert len(one(rsa_member(bits))) == taken


def test_a_modulus_is_odd():
    assert one(rsa_member(2048, modulus=1 << 2047)) == ()


@pytest.mark.parametrize(
    ("exponent", "taken"),
    [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 1),
        (65536, 0),
        (65537, 1),
        (2**32 - 1, 1),
        (2**32 + 1, 0),
        (2**2000 + 1, 0),
    ],
    ids=["0", "1", "2", "3", "65536", "65537", "2^32-1", "2^32+1", "2^2000+1"],
)
def test_exponents_are_odd_and_small(exponent: int, taken: int):
    assert len(one(rsa_member(2048, exponent=exponent))) == taken


def test_a_real_key_of_3072_bits_is_taken():
    numbers = rsa.generate_private_key(public_exponent=65537, key_size=3072).public_key().public_numbers()
    assert len(one(rsa_member(3072, modulus=numbers.n))) == 1


def test_the_number_of_keys_is_bounded():
    many = [public(ED, kid=f"k{i}") for i in range(limits.MAX_JWKS_KEYS)]
    assert len(one(*many)) == limits.MAX_JWKS_KEYS
    with pytest.raises(MalformedRequest, match="more than"):
        one(*many, public(ED))
    with pytest.raises(MalformedRequest, match="more than"):
        one(*many * 100)


def test_the_size_of_a_set_is_bounded():
    text = json.dumps({"keys": [public(ED)], "pad": ""})
    fits = text.replace('"pad": ""', '"pad": "' + "x" * (limits.MAX_JWKS - len(text)) + '"')
    assert len(jwks.parse_jwks(fits, use=jwks.SIGNING)) == 1
    with pytest.raises(MalformedRequest, match="larger"):
        jwks.parse_jwks(fits + " ", use=jwks.SIGNING)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": {}}',
        '{"keys": [7]}',
        '{"keys": null}',
        '{"keys": [], "keys": []}',
        '{"keys": [NaN]}',
        '{"keys": ' + "[" * 40 + "]" * 40 + "}",
        "\ud800",
    ],
    ids=[
        "empty", "list", "no-keys", "object", "number", "null", "twice", "nan", "deep", "surrogate",
    ],
)  # fmt: skip
def test_what_is_no_set_is_refused(text: str):
    with pytest.raises(MalformedRequest):
        jwks.parse_jwks(text, use=jwks.SIGNING)


# -- tokens ---------------------------------------------------------------------------------------------


def test_what_a_token_says_of_itself():
    peeked = jwks.peek_foreign(sign("RS256", typ="JWT"))
    assert (peeked.alg, peeked.kid, peeked.iss, peeked.sub) == ("RS256", "k1", CLAIMS["iss"], "job")
    assert peeked.members == {"alg", "kid", "typ"}
    bare = jwks.peek_foreign(raw({"alg": "RS256"}, {}))
    assert (bare.kid, bare.iss, bare.sub) == (None, None, None)


def test_the_size_of_a_token_is_bounded():
    head, _, signature = sign("EdDSA").split(".")
    room = limits.MAX_TOKEN - len(head) - len(signature) - 2
    text = json.dumps({**CLAIMS, "pad": ""})
    # As many whole groups of four characters as fit.
    padded = json.dumps({**CLAIMS, "pad": "x" * (room // 4 * 3 - len(text))})
    token = f"{head}.{b64url(padded.encode())}.{signature}"
    assert limits.MAX_TOKEN - 4 < len(token) <= limits.MAX_TOKEN
    assert jwks.peek_foreign(token).sub == "job"
    with pytest.raises(MalformedRequest, match="at most"):
        jwks.peek_foreign(token + "A" * (limits.MAX_TOKEN + 1 - len(token)))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "EdDSA", "crit": ["exp"]},
        {"alg": "EdDSA", "b64": False},
        {"alg": "EdDSA", "jwk": ED.as_dict(private=False)},
        {"alg": "EdDSA", "jku": "https://evil.example/jwks"},
        {"alg": "EdDSA", "x5u": "https://evil.example/cert"},
        {"alg": "EdDSA", "x5c": ["AA"]},
        {"alg": "EdDSA", "zip": "DEF"},
        {"alg": "EdDSA", "enc": "A256GCM"},
        {"alg": "EdDSA", "cty": "JWT"},
        {"alg": "EdDSA", "kid": 7},
        {"alg": "EdDSA", "kid": ""},
        {"alg": "EdDSA", "kid": "k" * (limits.MAX_KID + 1)},
        {"alg": ["EdDSA"]},
        {"alg": ""},
        {},
        [],
    ],
)
def test_headers_that_are_refused(header: object):
    with pytest.raises(MalformedRequest):
        jwks.peek_foreign(raw(header, CLAIMS))


def test_harmless_members_of_a_header_pass():
    assert jwks.peek_foreign(raw({"alg": "RS256", "x5t": "AA", "k": 1}, CLAIMS)).alg == "RS256"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": 7},
        {"iss": ["a"]},
        {"iss": ""},
        {"sub": {}},
        {"sub": "a\nb"},
        {"sub": None},
        {"sub": "x" * 1025},
    ],
    ids=lambda claims: str(claims)[:20],
)
def test_names_of_other_types_are_refused(claims: dict[str, Any]):
    with pytest.raises(MalformedRequest, match="printable text"):
        jwks.peek_foreign(raw({"alg": "RS256"}, claims))


def test_the_longest_subject_passes():
    claims = {"sub": "x" * limits.MAX_CLAIM}
    assert jwks.peek_foreign(raw({"alg": "RS256"}, claims)).sub == claims["sub"]


def _twisted() -> dict[str, str]:
    head, body, signature = sign("EdDSA").split(".")
    stray = base64.urlsafe_b64encode(b"x" * 64).decode().rstrip("=")
    twice = b64url(b'{"alg":"EdDSA","alg":"none"}')
    claim_twice, deep = b64url(b'{"sub":"a","sub":"b"}'), b64url(b'{"a":' + b"[" * 40 + b"]" * 40 + b"}")
    utf16 = b64url("{}".encode("utf-16"))
    return {
        "empty": "",
        "two parts": f"{head}.{body}",
        "four parts": f"{head}.{body}.{signature}.",
        "five parts of a JWE": f"{head}.{body}.{signature}.{signature}.{signature}",
        "no header": f".{body}.{signature}",
        "no payload": f"{head}..{signature}",
        "no signature": f"{head}.{body}.",
        "padding": f"{head}.{body}.{signature}==",
        "stray bits": f"{head}.{body}.{stray[:-1]}B",
        "a space": f"{head}.{body}.{signature} ",
        "a newline": f"{head}.{body}.{signature}\n",
        "plain base64": f"{head}.{body}.{signature[:-2]}+/",
        "a member twice": f"{twice}.{body}.{signature}",
        "a claim twice": f"{head}.{claim_twice}.{signature}",
        "claims that are a list": f"{head}.{b64url(b'[]')}.{signature}",
        "claims that are no JSON": f"{head}.{b64url(b'{')}.{signature}",
        "claims in UTF-16": f"{head}.{utf16}.{signature}",
        "deep claims": f"{head}.{deep}.{signature}",
        "unicode": f"{head}.{body}.{signature[:-1]}ä",
    }


@pytest.mark.parametrize("name", sorted(_twisted()))
def test_tokens_of_another_form_are_refused(name: str):
    token = _twisted()[name]
    (key,) = one(public(ED))
    with pytest.raises(MalformedRequest):
        jwks.peek_foreign(token)
    with pytest.raises((MalformedRequest, IntegrityFailure)):
        jwks.verify_foreign(token, key)


def test_refusals_do_not_repeat_the_token():
    secret = "c2VjcmV0LXNlY3JldA"
    for token in (f"{secret}.{secret}.{secret}", raw({"alg": secret, "typ": secret}, {"iss": secret + "\n"})):
        with pytest.raises(BrokerError) as caught:
            jwks.peek_foreign(token)
        assert secret not in f"{caught.value.what} {caught.value.why}"


# -- URLs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://token.actions.githubusercontent.com",
        "https://issuer.example/",
        "https://oidc.eks.eu-west-1.amazonaws.com/id/0123ABCD",
        "https://kubernetes.default.svc.cluster.local",
        "https://10.0.0.1:6443/openid/v1/jwks",
        "https://[2001:db8::1]:8443/a",
        "http://127.0.0.1:8080",
        "http://[::1]:8080/x",
        "http://localhost:1",
    ],
)
def test_urls_of_issuers(url: str):
    assert jwks.parse_issuer_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "issuer.example",
        "http://issuer.example",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1@evil.example",
        "https://user:password@issuer.example",
        "https://issuer.example?x=1",
        "https://issuer.example#x",
        "https://issuer.example/a?",
        "https://issuer.example/../b",
        "https:///a",
        "https://issuer.example:port",
        "https://issuer.example:99999",
        "https://[::1",
        "HTTPS://issuer.example",
        "https://issuer.example/\n",
        "https://issuer.example/a b",
        "https://іssuer.example",  # Cyrillic
        "https://issuer.example\\@evil.example",
        "ftp://issuer.example",
        "file:///etc/passwd",
        "https://" + "x" * limits.MAX_CLAIM,
        None,
    ],
    ids=ascii,
)
def test_urls_that_are_refused(url: Any):
    with pytest.raises(InvalidRequest):
        jwks.parse_issuer_url(url)


def test_only_the_url_of_keys_has_a_query():
    url = "https://login.example/keys?p=policy"
    assert jwks.parse_issuer_url(url, query=True) == url
    for wrong in (url, "https://login.example/keys?"):
        with pytest.raises(InvalidRequest):
            jwks.parse_issuer_url(wrong)
    with pytest.raises(InvalidRequest):
        jwks.parse_issuer_url("https://login.example/keys?a#b", query=True)
