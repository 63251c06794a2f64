"""I14: algorithms are chosen by the key, never by the header; every kind has its own ``typ``."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json

import pytest

from broker import jose
from broker.canonical import b64url, parse_b64url
from broker.errors import IntegrityFailure, MalformedRequest
from broker.identity import proof, token

ED = jose.PrivateKey.generate("EdDSA")
EC = jose.PrivateKey.generate("ES256")
KINDS = (proof.TYP, token.ACCESS_TYP, token.ASSERTION_TYP, "broker-manifest+jws", "JWT")
TYP = token.ACCESS_TYP


def forge(header: bytes, payload: bytes, key: jose.PrivateKey) -> str:
    """A token with exactly these header and payload bytes, rightly signed."""
    signed = f"{b64url(header)}.{b64url(payload)}"
    return f"{signed}.{b64url(key.sign_bytes(signed.encode(), typ=TYP))}"


def header(**members: object) -> bytes:
    return json.dumps(members).encode()


@pytest.mark.parametrize(
    ("key", "alg"),
    [(ED, "EdDSA"), (ED, "Ed25519"), (EC, "ES256")],
    ids=lambda value: value if isinstance(value, str) else value.alg,
)
def test_I14_a_key_verifies_its_own_algorithm(key: jose.PrivateKey, alg: str):
    forged = forge(header(alg=alg, typ=TYP), b'{"a":1}', key)
    assert jose.verify_jwt(forged, jwk=key.jwk, typ=TYP).claims == {"a": 1}


FOREIGN = ["none", "None", "", "HS256", "RS256", "ES384", "ES256K", "Ed448", "eddsa", "es256"]


@pytest.mark.parametrize(
    ("key", "alg"),
    [(ED, alg) for alg in [*FOREIGN, "ES256"]] + [(EC, alg) for alg in [*FOREIGN, "EdDSA", "Ed25519"]],
    ids=lambda value: value if isinstance(value, str) else value.alg,
)
def test_I14_a_header_cannot_choose_another_algorithm(key: jose.PrivateKey, alg: str):
    with pytest.raises(IntegrityFailure):
        jose.verify_jwt(forge(header(alg=alg, typ=TYP), b"{}", key), jwk=key.jwk, typ=TYP)


@pytest.mark.parametrize("key", [ED, EC], ids=["ed", "ec"])
def test_I14_a_public_key_is_no_mac_key(key: jose.PrivateKey):
    signed = f"{b64url(header(alg='HS256', typ=TYP))}.{b64url(b'{}')}"
    for secret in (parse_b64url(key.jwk["x"]), json.dumps(key.jwk).encode()):
        tag = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        for signature in (tag, tag + tag):
            with pytest.raises((IntegrityFailure, MalformedRequest)):
                jose.verify_jwt(f"{signed}.{b64url(signature)}", jwk=key.jwk, typ=TYP)


@pytest.mark.parametrize("key", [ED, EC], ids=["ed", "ec"])
def test_I14_no_signature_is_no_signature(key: jose.PrivateKey):
    signed = f"{b64url(header(alg='none', typ=TYP))}.{b64url(b'{}')}"
    for tail in ("", ".", "." + b64url(bytes(64)), "." + b64url(bytes(63))):
        with pytest.raises((IntegrityFailure, MalformedRequest)):
            jose.verify_jwt(signed + tail, jwk=key.jwk, typ=TYP)


@pytest.mark.parametrize(("made", "wanted"), list(itertools.permutations(KINDS, 2)))
def test_I14_one_kind_never_passes_as_another(made: str, wanted: str):
    with pytest.raises(IntegrityFailure):
        jose.verify_jwt(jose.sign_jwt({}, key=ED, typ=made), jwk=ED.jwk, typ=wanted)
    with pytest.raises(IntegrityFailure):
        jose.verify_detached(jose.sign_detached(b"x", key=ED, typ=made), b"x", jwk=ED.jwk, typ=wanted)


@pytest.mark.parametrize(
    "typ", [TYP.upper(), f"application/{TYP}", TYP + " ", ""], ids=["case", "prefix", "space", "empty"]
)
def test_I14_the_type_is_compared_exactly(typ: str):
    with pytest.raises(IntegrityFailure):
        jose.verify_jwt(forge(header(alg="EdDSA", typ=typ), b"{}", ED), jwk=ED.jwk, typ=TYP)


@pytest.mark.parametrize("key", [ED, EC], ids=["ed", "ec"])
def test_I14_a_key_signs_only_the_kinds_that_its_record_names(key: jose.PrivateKey):
    limited = jose.PrivateKey.from_jwk(key.to_jwk(), kinds=[token.ACCESS_TYP])
    assert jose.sign_jwt({}, key=limited, typ=token.ACCESS_TYP)
    for kind in KINDS:
        if kind != token.ACCESS_TYP:
            with pytest.raises(IntegrityFailure):
                jose.sign_jwt({}, key=limited, typ=kind)
            with pytest.raises(IntegrityFailure):
                jose.sign_detached(b"", key=limited, typ=kind)
    with pytest.raises(IntegrityFailure):
        jose.sign_jwt({}, key=jose.PrivateKey.generate(kinds=[]), typ=token.ACCESS_TYP)


@pytest.mark.parametrize(
    "head",
    [
        header(alg="EdDSA", typ=TYP, crit=["b64"], b64=False),
        header(alg="EdDSA", typ=TYP, crit=[]),
        header(alg="EdDSA", typ=TYP, b64=True),
        header(alg="EdDSA", typ=TYP, jku="https://attacker.example/keys"),
        header(alg="EdDSA", typ=TYP, x5u="https://attacker.example/keys"),
        header(alg="EdDSA", typ=TYP, cty="JWT"),
        header(alg="EdDSA", typ=TYP, zip="DEF"),
        header(alg="EdDSA", typ=TYP, jwk="{}"),
        header(alg="EdDSA", typ=TYP, kid=None),
        header(alg="EdDSA", typ=TYP, kid=["a"]),
        header(alg="EdDSA"),
        header(typ=TYP),
        header(alg=["EdDSA"], typ=TYP),
        header(alg="EdDSA", typ=None),
        b'{"alg":"none","alg":"EdDSA","typ":"at+jwt"}',
        b'{"alg":"EdDSA","typ":"at+jwt","\\u0074yp":"at+jwt"}',
        b'["alg"]',
        b"null",
        b"",
        b"\xff",
        b'{"alg":"EdDSA","typ":"at+jwt"',
        b'\xef\xbb\xbf{"alg":"EdDSA","typ":"at+jwt"}',
    ],
    ids=lambda head: head.decode("utf-8", "replace")[:60],
)
def test_I14_a_header_has_one_strict_form(head: bytes):
    forged = forge(head, b"{}", ED)
    with pytest.raises(MalformedRequest):
        jose.verify_jwt(forged, jwk=ED.jwk, typ=TYP)
    with pytest.raises(MalformedRequest):
        jose.peek_header(forged)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"1",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b"{" * 40,
        b"\xff",
        b'{"a":1}x',
    ],
    ids=lambda payload: payload.decode("utf-8", "replace"),
)
def test_I14_claims_have_one_strict_form(payload: bytes):
    with pytest.raises(MalformedRequest):
        jose.verify_jwt(forge(header(alg="EdDSA", typ=TYP), payload, ED), jwk=ED.jwk, typ=TYP)


def _last_character_with_stray_bits(part: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return part[:-1] + alphabet[alphabet.index(part[-1]) ^ 1]


RESPELLED = {
    "padded": lambda head, body, tail: f"{head}.{body}.{tail}==",
    "padded header": lambda head, body, tail: f"{head}=.{body}.{tail}",
    "stray bits": lambda head, body, tail: f"{head}.{body}.{_last_character_with_stray_bits(tail)}",
    "leading space": lambda head, body, tail: f" {head}.{body}.{tail}",
    "trailing newline": lambda head, body, tail: f"{head}.{body}.{tail}\n",
    "inner newline": lambda head, body, tail: f"{head}.{body}.{tail[:9]}\n{tail[9:]}",
    "four parts": lambda head, body, tail: f"{head}.{body}.{tail}.",
    "two parts": lambda head, body, tail: f"{head}.{body}",
    "no header": lambda head, body, tail: f".{body}.{tail}",
    "standard alphabet": lambda *parts: ".".join(parts).replace("-", "+").replace("_", "/"),
    "not ascii": lambda head, body, tail: f"{head}.{body}\u00e9.{tail}",
    "full-width": lambda head, body, tail: f"{head}.{body}.{tail[:-1]}\uff21",
    "short signature": lambda head, body, tail: f"{head}.{body}.{tail[:-4]}",
    "long signature": lambda head, body, tail: f"{head}.{body}.{tail}AAAA",
}


@pytest.mark.parametrize("key", [ED, EC], ids=["ed", "ec"])
@pytest.mark.parametrize("spelling", RESPELLED)
def test_I14_a_token_has_one_spelling(spelling: str, key: jose.PrivateKey):
    # Draw until the base64url has both characters that differ from the standard alphabet.
    for attempt in range(1000):
        made = jose.sign_jwt({"n": attempt}, key=key, typ=TYP)
        if "-" in made and "_" in made:
            break
    other = RESPELLED[spelling](*made.split("."))
    assert other != made
    with pytest.raises(MalformedRequest):
        jose.verify_jwt(other, jwk=key.jwk, typ=TYP)


@pytest.mark.parametrize("value", [None, b"a.b.c", 7, ["a.b.c"]], ids=repr)
def test_I14_what_is_not_text_is_refused(value: object):
    with pytest.raises(MalformedRequest):
        jose.verify_jwt(value, jwk=ED.jwk, typ=TYP)  # type: ignore[arg-type]
