"""Keys, thumbprints, JWTs and detached JWS: published vectors, and another library as the judge."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from joserfc import jws as other_jws
from joserfc import jwt as other_jwt
from joserfc.jwk import ECKey, OKPKey

from broker import jose, limits
from broker.canonical import b64url, parse_b64url
from broker.errors import IntegrityFailure, MalformedRequest

# RFC 8037 appendix A.1 and A.2.
ED25519 = {
    "kty": "OKP",
    "crv": "Ed25519",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
# RFC 7515 appendix A.3.1.
P256 = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
}
TYP = "example+jwt"


def public(jwk: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in jwk.items() if name != "d"}


@pytest.fixture(params=[ED25519, P256], ids=["EdDSA", "ES256"])
def key(request: pytest.FixtureRequest) -> jose.PrivateKey:
    return jose.PrivateKey.from_jwk(request.param)


# -- published vectors --------------------------------------------------------------------------------


def test_thumbprint_of_rfc_8037_appendix_a3():
    assert jose.thumbprint(public(ED25519)) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_thumbprint_of_the_key_of_rfc_9449():
    """The proof key of section 4.1 and the ``jkt`` of section 6.1 are one key."""
    jwk = {
        "kty": "EC",
        "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
        "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
        "crv": "P-256",
    }
    assert jose.thumbprint(jwk) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def test_signature_of_rfc_8037_appendix_a4():
    signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    expected = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    key = jose.PrivateKey.from_jwk(ED25519)
    assert b64url(key.sign_bytes(signed.encode(), typ=TYP)) == expected


def test_the_private_part_of_rfc_7515_appendix_a3_belongs_to_its_public_part():
    key = jose.PrivateKey.from_jwk(P256)
    assert key.jwk == public(P256)
    assert key.to_jwk() == P256
    assert key.alg == "ES256"


# -- another library ----------------------------------------------------------------------------------


def _other(key: jose.PrivateKey) -> OKPKey | ECKey:
    return (OKPKey if key.alg == "EdDSA" else ECKey).import_key(key.to_jwk())


def test_another_library_opens_our_token(key: jose.PrivateKey):
    token = jose.sign_jwt({"sub": "user:ana", "n": 1, "gone": None}, key=key, typ=TYP)
    opened = other_jwt.decode(token, _other(key), algorithms=[key.alg])
    assert opened.claims == {"sub": "user:ana", "n": 1}
    assert opened.header == {"alg": key.alg, "typ": TYP}


@pytest.mark.parametrize("spelling", ["EdDSA", "Ed25519", "ES256"])
def test_we_open_the_token_of_another_library(spelling: str):
    key = jose.PrivateKey.from_jwk(P256 if spelling == "ES256" else ED25519)
    header = {"alg": spelling, "typ": TYP, "jwk": key.jwk}
    token = other_jwt.encode(header, {"sub": "user:ana"}, _other(key), algorithms=[spelling])
    verified = jose.verify_jwt(token, jwk=key.jwk, typ=TYP)
    assert verified.claims == {"sub": "user:ana"}
    assert verified.header["alg"] == spelling


def test_another_library_agrees_on_thumbprints(key: jose.PrivateKey):
    assert _other(key).thumbprint() == key.jkt == jose.thumbprint(key.jwk)


def test_another_library_opens_our_detached_signature(key: jose.PrivateKey):
    signature = jose.sign_detached(b"a payload", key=key, typ="broker-manifest+jws")
    head, _, tail = signature.partition("..")
    whole = f"{head}.{b64url(b'a payload')}.{tail}"
    assert other_jws.deserialize_compact(whole, _other(key), algorithms=[key.alg]).payload == b"a payload"


# -- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_generated_key_survives_its_jwk(alg: str):
    key = jose.PrivateKey.generate(alg)
    again = jose.PrivateKey.from_jwk(json.loads(json.dumps(key.to_jwk())))
    assert (again.jkt, again.jwk, again.alg) == (key.jkt, key.jwk, alg)
    assert jose.PrivateKey.generate(alg).jkt != key.jkt


def test_no_other_algorithm_is_generated():
    with pytest.raises(MalformedRequest):
        jose.PrivateKey.generate("RS256")


def test_a_private_key_shows_nothing_and_cannot_be_changed_or_pickled(key: jose.PrivateKey):
    secret = key.to_jwk()["d"]
    assert secret not in repr(key) + str(key) + f"{key!r}"
    assert secret not in json.dumps(key.jwk)
    with pytest.raises(AttributeError):
        key.alg = "none"  # type: ignore[misc]
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        copy.copy(key)


def test_the_public_half_is_a_copy(key: jose.PrivateKey):
    key.jwk["x"] = "changed"
    assert key.jwk["x"] != "changed"


def test_bookkeeping_members_are_dropped():
    given = {**public(ED25519), "kid": "k", "use": "sig", "alg": "HS256"}
    assert jose.parse_public_jwk(given) == public(ED25519)


@pytest.mark.parametrize(
    "change",
    [
        {"d": ED25519["d"]},
        {"k": "AAAA"},
        {"key_ops": ["sign"]},
        {"y": P256["y"]},
        {"crv": "Ed448"},
        {"crv": "P-256"},
        {"kty": "oct"},
        {"kty": "RSA"},
        {"kty": ["OKP"]},
        {"x": None},
        {"x": 7},
        {"x": ED25519["x"] + "="},
        {"x": ED25519["x"][:-1]},
        {"x": ED25519["x"] + "A"},
        {"x": ED25519["x"][:-1] + "p"},
        {"x": " " + ED25519["x"][1:]},
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value)[:40],
)
def test_a_public_ed25519_key_has_one_form(change: dict[str, object]):
    with pytest.raises(MalformedRequest):
        jose.parse_public_jwk({**public(ED25519), **change})


@pytest.mark.parametrize("value", [None, [], "{}", {}, {"kty": "OKP", "crv": "Ed25519"}, 3], ids=repr)
def test_what_is_not_a_key_is_refused(value: object):
    with pytest.raises(MalformedRequest):
        jose.parse_public_jwk(value)


def test_a_p256_point_off_the_curve_is_refused():
    x = bytearray(parse_b64url(P256["x"]))
    x[31] ^= 1
    for change in (
        {"x": b64url(bytes(x))},
        {"x": b64url(bytes(32))},
        {"y": P256["x"]},
        {"x": b64url(b"\xff" * 32)},
    ):
        with pytest.raises(MalformedRequest):
            jose.parse_public_jwk({**public(P256), **change})


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def _edwards_add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """The addition law of RFC 8032 section 5.1.4, in affine coordinates."""
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P,
    )


def _sqrt(value: int) -> int | None:
    root = pow(value, (P + 3) // 8, P)
    for candidate in (root, root * pow(2, (P - 1) // 4, P) % P):
        if candidate * candidate % P == value % P:
            return candidate
    return None


def _small_order_points() -> set[tuple[int, int]]:
    """The eight points whose order divides 8: the multiples of one point of order 8."""
    square = (-2 + 2 * (_sqrt(1 + D) or 0)) * pow(2 * D, -1, P) % P
    y = _sqrt(square) or _sqrt((-2 - 2 * (_sqrt(1 + D) or 0)) * pow(2 * D, -1, P) % P)
    assert y is not None
    x = _sqrt((y * y - 1) * pow(D * y * y + 1, -1, P))
    assert x is not None
    points, point = set(), (0, 1)
    for _ in range(8):
        points.add(point)
        point = _edwards_add(point, (x, y))
    assert point == (0, 1)
    return points


def test_ed25519_points_of_small_order_are_refused():
    points = _small_order_points()
    assert len(points) == 8
    for x, y in points:
        for sign in {x & 1, 0, 1}:
            encoded = (y | sign << 255).to_bytes(32, "little")
            with pytest.raises(MalformedRequest):
                jose.parse_public_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64url(encoded)})


@pytest.mark.parametrize("y", [2, P + 3, 2**255 - 1], ids=["no such x", "not reduced", "largest"])
def test_ed25519_encodings_that_are_no_canonical_point_are_refused(y: int):
    with pytest.raises(MalformedRequest):
        jose.parse_public_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64url(y.to_bytes(32, "little"))})


@pytest.mark.parametrize("jwk", [ED25519, P256], ids=["EdDSA", "ES256"])
def test_a_private_jwk_needs_a_private_part_that_belongs_to_it(jwk: dict[str, str]):
    other = jose.PrivateKey.generate("EdDSA" if jwk is ED25519 else "ES256").to_jwk()
    for wrong in (public(jwk), {**jwk, "d": other["d"]}, {**jwk, "d": "AAAA"}, {**jwk, "d": None}, [], None):
        with pytest.raises(MalformedRequest):
            jose.PrivateKey.from_jwk(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("scalar", [0, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551])
def test_a_p256_scalar_out_of_range_is_refused(scalar: int):
    with pytest.raises(MalformedRequest):
        jose.PrivateKey.from_jwk({**P256, "d": b64url(scalar.to_bytes(32, "big"))})


# -- signed objects -----------------------------------------------------------------------------------


def test_claims_stay_out_of_the_repr(key: jose.PrivateKey):
    token = jose.sign_jwt({"secret": "squirrel"}, key=key, typ=TYP)
    assert "squirrel" not in repr(jose.verify_jwt(token, jwk=key.jwk, typ=TYP))


def test_the_header_takes_kid_and_jwk_only(key: jose.PrivateKey):
    token = jose.sign_jwt({}, key=key, typ=TYP, header_extra={"kid": "a", "jwk": key.jwk})
    assert jose.peek_header(token) == {"alg": key.alg, "typ": TYP, "kid": "a", "jwk": key.jwk}
    for extra in ({"alg": "none"}, {"typ": "x"}, {"crit": []}, {"x5c": []}):
        with pytest.raises(MalformedRequest):
            jose.sign_jwt({}, key=key, typ=TYP, header_extra=extra)


def test_another_key_does_not_verify(key: jose.PrivateKey):
    token = jose.sign_jwt({"a": 1}, key=key, typ=TYP)
    with pytest.raises(IntegrityFailure):
        jose.verify_jwt(token, jwk=jose.PrivateKey.generate(key.alg).jwk, typ=TYP)


def test_a_detached_signature_is_over_its_payload_alone(key: jose.PrivateKey):
    signature = jose.sign_detached(b"payload", key=key, typ="m+jws")
    jose.verify_detached(signature, b"payload", jwk=key.jwk, typ="m+jws")
    for payload in (b"Payload", b"", b"payload\n"):
        with pytest.raises(IntegrityFailure):
            jose.verify_detached(signature, payload, jwk=key.jwk, typ="m+jws")
    with pytest.raises(IntegrityFailure):
        jose.verify_detached(signature, b"payload", jwk=key.jwk, typ="n+jws")
    head, _, tail = signature.partition("..")
    with pytest.raises(MalformedRequest):
        jose.verify_detached(f"{head}.{b64url(b'payload')}.{tail}", b"payload", jwk=key.jwk, typ="m+jws")


def test_the_size_limit_is_exact():
    key = jose.PrivateKey.from_jwk(ED25519)
    token = jose.sign_jwt({"a": 1}, key=key, typ=TYP)
    jose.verify_jwt(token, jwk=key.jwk, typ=TYP, max_size=len(token))
    jose.peek_header(token, max_size=len(token))
    with pytest.raises(MalformedRequest):
        jose.verify_jwt(token, jwk=key.jwk, typ=TYP, max_size=len(token) - 1)
    with pytest.raises(MalformedRequest):
        jose.peek_header(token, max_size=len(token) - 1)
    with pytest.raises(MalformedRequest):
        jose.peek_header("." * (limits.MAX_TOKEN + 1))


def test_the_kid_limit_is_exact(key: jose.PrivateKey):
    assert jose.peek_header(jose.sign_jwt({}, key=key, typ=TYP, header_extra={"kid": "k" * 128}))
    for kid in ("k" * 129, "", 7):
        with pytest.raises(MalformedRequest):
            jose.peek_header(jose.sign_jwt({}, key=key, typ=TYP, header_extra={"kid": kid}))
