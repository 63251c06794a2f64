"""Keys and tokens of *foreign* issuers: JWK Sets, and JWTs as other people's libraries write them.

The broker's own signed objects are the business of :mod:`broker.jose`, which is stricter than what is
found in the wild. What holds for everything verified here (I14):

* the algorithms of a key follow from its own type, curve and ``alg``, never from a token: there is no
  ``none`` and nothing symmetric, and a public key is never the secret of anything;
* a token is verified with exactly one key. Its ``kid`` and ``alg`` only choose among the issuer's keys;
  when they fit none, or more than one, it is refused;
* ``typ`` is absent, ``JWT`` or ``JOSE``, so nothing that the broker signs itself passes as foreign, and
  neither does another issuer's access token (``at+jwt``);
* a token brings no keys of its own: ``jwk``, ``jku``, ``x5c``, ``x5u`` and ``crit`` are refused.

Times, issuers and audiences mean nothing here: :mod:`broker.identity.issuers` checks them.

**Source**: RFC 7515, 7517, 7518, 8037, 8725, 9864; SPIFFE JWT-SVID sections 2 and 4, SPIFFE Trust Domain
and Bundle section 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import (  # noqa: TID251 - foreign keys, beside our own in jose
    Algorithm,
    ECAlgorithm,
    OKPAlgorithm,
    RSAAlgorithm,
    RSAPSSAlgorithm,
)

from broker import jose, limits
from broker.canonical import Json, canonical_bytes, parse_b64url, parse_json_object, sha256_digest
from broker.errors import IntegrityFailure, InvalidRequest, MalformedRequest

SIGNING: Final = "sig"
SPIFFE: Final = "jwt-svid"
"""``use`` of the keys that a SPIFFE bundle has for JWTs."""

_ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "Ed25519": ("EdDSA", "Ed25519"),
}
"""Type of a key (its curve, if it has one) -> what it may verify unless its ``alg`` names one."""
_MEMBERS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("RSA", "RSA"): ("kty", "n", "e"),
    ("EC", "P-256"): ("kty", "crv", "x", "y"),
    ("EC", "P-384"): ("kty", "crv", "x", "y"),
    ("OKP", "Ed25519"): ("kty", "crv", "x"),
}
_VERIFIER: Final[Mapping[str, Algorithm]] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "RS384": RSAAlgorithm(RSAAlgorithm.SHA384),
    "RS512": RSAAlgorithm(RSAAlgorithm.SHA512),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "PS384": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA384),
    "PS512": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA512),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256, ec.SECP256R1),
    "ES384": ECAlgorithm(ECAlgorithm.SHA384, ec.SECP384R1),
    "EdDSA": OKPAlgorithm(),
    "Ed25519": OKPAlgorithm(),
}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_BRINGS_KEYS: Final = frozenset({"jwk", "jku", "x5c", "x5u"})
_REFUSED_HEADER: Final = frozenset({"crit", "b64", "zip", "enc", "cty", *_BRINGS_KEYS})
_TYPES: Final = ("JWT", "JOSE")
_MODULUS_BITS: Final = (2048, 8192)
_EXPONENT: Final = (3, 2**32)
_P384_COORDINATE: Final = 48
_KEYS_REMEMBERED: Final = 1024
_URL: Final = re.compile(r"[A-Za-z0-9._~:/\[\]@!$&'()*+,;=%-]+")
_QUERY: Final = re.compile(r"[A-Za-z0-9._~:/?@!$&'()*+,;=%-]+")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def use_for(kind: str) -> str:
    """The ``use`` of the keys that verify tokens of an issuer of this kind."""
    return SPIFFE if kind == "spiffe" else SIGNING


# -- keys ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ForeignKey:
    """A public key of a foreign issuer.

    Attributes:
        kid: Its name in the issuer's set, if it has one.
        algorithms: The values of ``alg`` that it verifies; never empty.
        jwk: Its public members and nothing else, as canonical JSON.
    """

    kid: str | None
    algorithms: tuple[str, ...]
    jwk: str


def parse_jwks(data: bytes | str | Json, *, use: str) -> tuple[ForeignKey, ...]:
    """The keys of a JWK Set that may verify tokens, in their order; the same key twice is one.

    A key of another type, curve, use or size is passed over, as a set may serve other purposes too; the
    answer may be empty. A set that holds a private or symmetric key is refused whole: whoever published
    it has lost that key, and what else went wrong there is not known.

    Args:
        data: The set: JSON text, or parsed.
        use: ``SIGNING`` (a key without ``use`` counts as well) or ``SPIFFE`` (it must say so).

    Raises:
        MalformedRequest: It is not a JWK Set, is larger than ``limits.MAX_JWKS`` or has more than
            ``limits.MAX_JWKS_KEYS`` keys, or one of them is not public.

    Source: RFC 7517 section 5; SPIFFE Trust Domain and Bundle section 4.
    """
    listed = _parse_set(data).get("keys")
    if not isinstance(listed, list):
        raise MalformedRequest("a JWK Set has no list of keys")
    if len(listed) > limits.MAX_JWKS_KEYS:
        raise MalformedRequest(f"a JWK Set has more than {limits.MAX_JWKS_KEYS} keys")
    found: dict[ForeignKey, None] = {}
    for member in listed:
        if not isinstance(member, dict):
            raise MalformedRequest("a key of a JWK Set is not an object")
        if member.get("kty") == "oct" or _PRIVATE & set(member):
            raise MalformedRequest("a JWK Set holds a private or symmetric key")
        if _is_for(member, use) and (key := _find_key(member)) is not None:
            found[key] = None
    return tuple(found)


def build_jwks(keys: Iterable[ForeignKey], *, use: str) -> Json:
    """The JWK Set of these keys: :func:`parse_jwks` with the same ``use`` gives them again.

    A key that verifies one algorithm only says which.
    """
    return {"keys": [_published(key, use) for key in keys]}


def _published(key: ForeignKey, use: str) -> Json:
    members = {**parse_json_object(key.jwk.encode("utf-8")), "use": use}
    if key.kid is not None:
        members["kid"] = key.kid
    if len(key.algorithms) == 1:
        members["alg"] = key.algorithms[0]
    return members


def _parse_set(data: bytes | str | Json) -> Json:
    if isinstance(data, dict):
        return data
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if len(raw) > limits.MAX_JWKS:
        raise MalformedRequest(f"a JWK Set is larger than {limits.MAX_JWKS} bytes")
    return parse_json_object(raw)


def _is_for(member: Json, use: str) -> bool:
    if use == SPIFFE:
        return member.get("use") == SPIFFE
    operations = member.get("key_ops", ["verify"])
    return member.get("use", SIGNING) == SIGNING and isinstance(operations, list) and "verify" in operations


def _find_key(member: Json) -> ForeignKey | None:
    """The key, or None when it is not one that we take."""
    kid = member.get("kid")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= limits.MAX_KID):
        return None
    try:
        family, public = _public_members(member)
        text = canonical_bytes(public).decode("utf-8")
        _load(text)
    except (MalformedRequest, ValueError):
        return None
    algorithms = _ALGORITHMS[family]
    if "alg" in member:
        algorithms = tuple(alg for alg in algorithms if alg == member["alg"])
    return ForeignKey(kid=kid, algorithms=algorithms, jwk=text) if algorithms else None


def _public_members(member: Json) -> tuple[str, dict[str, str]]:
    """The key's family in ``_ALGORITHMS`` and its public members, each of the right shape."""
    family = str(member.get("kty") if member.get("kty") == "RSA" else member.get("crv"))
    names = _MEMBERS.get((str(member.get("kty")), family))
    if names is None:
        raise MalformedRequest("a key is of a type that is not used here")
    public = {name: member.get(name) for name in names}
    if not all(isinstance(value, str) and len(value) <= 2 * limits.KIB for value in public.values()):
        raise MalformedRequest("a member of a key is not text, or is too long")
    return family, {name: str(value) for name, value in public.items()}


@lru_cache(maxsize=_KEYS_REMEMBERED)
def _load(jwk: str) -> Any:
    """The library's key object of a :attr:`ForeignKey.jwk`. Remembered: the check of a point is slow."""
    members = parse_json_object(jwk.encode("utf-8"))
    if members["kty"] == "RSA":
        return _load_rsa(members)
    if members.get("crv") == "P-384":
        x, y = (int.from_bytes(parse_b64url(members[c], size=_P384_COORDINATE), "big") for c in "xy")
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
    # The two types that are also our own have one gate: on the curve, and not of small order.
    public = jose.parse_public_jwk(members)
    if public["kty"] == "EC":
        return ECAlgorithm.from_jwk(dict(public))
    return OKPAlgorithm.from_jwk(dict(public))


def _load_rsa(members: Json) -> rsa.RSAPublicKey:
    modulus, exponent = (int.from_bytes(parse_b64url(members[name]), "big") for name in ("n", "e"))
    least, most = _MODULUS_BITS
    if not least <= modulus.bit_length() <= most or modulus % 2 == 0:
        raise MalformedRequest(f"an RSA modulus is not an odd number of {least} to {most} bits")
    # A large exponent costs the verifier time, an even one or 1 is no exponent at all (I17).
    if not _EXPONENT[0] <= exponent < _EXPONENT[1] or exponent % 2 == 0:
        raise MalformedRequest("an RSA exponent is not an odd number of 3 to 32 bits")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


# -- tokens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ForeignHeader:
    """What an **unverified** foreign token says of itself: enough to find its issuer and key.

    Attributes:
        alg: Its algorithm, as the header names it.
        kid: The key that signed it, by its name in the issuer's set.
        members: The names of the header's members.
        iss: The claim ``iss``, None when it is absent.
        sub: The claim ``sub``, None when it is absent.
    """

    alg: str
    kid: str | None
    members: frozenset[str]
    iss: str | None
    sub: str | None


def peek_foreign(text: str) -> ForeignHeader:
    """The unverified header and issuer of a compact JWT of at most ``limits.MAX_TOKEN`` bytes.

    Strict in form: unpadded base64url without stray bits, JSON without a member twice, a ``typ`` that
    is absent, ``JWT`` or ``JOSE``.

    Raises:
        MalformedRequest: It is not such a token, is of another type, or brings its own key.

    Source: RFC 7515 section 7.1, RFC 8725 sections 3.1, 3.10 and 3.11.
    """
    head, body, _ = _split(text)
    header = _parse_header(head)
    claims = parse_json_object(parse_b64url(body))
    return ForeignHeader(
        alg=header["alg"],
        kid=header.get("kid"),
        members=frozenset(header),
        iss=_get_text(claims, "iss"),
        sub=_get_text(claims, "sub"),
    )


def find_foreign_key(peeked: ForeignHeader, keys: Iterable[ForeignKey]) -> ForeignKey:
    """The one key that may have signed the token: of its ``kid``, and of a type that knows its ``alg``.

    A token without ``kid`` is for the one key that fits its ``alg``, whatever that key's name is.

    Raises:
        IntegrityFailure: There is none, or more than one.

    Source: RFC 7515 section 4.1.4, RFC 7517 section 4.5.
    """
    fitting = [
        key for key in keys if peeked.alg in key.algorithms and (peeked.kid is None or peeked.kid == key.kid)
    ]
    if not fitting:
        raise IntegrityFailure("the issuer has no key of that name and algorithm")
    if len(fitting) > 1:
        raise IntegrityFailure("the issuer has several keys that the token may mean")
    return fitting[0]


def verify_foreign(text: str, key: ForeignKey) -> Json:
    """The claims of a compact JWT that this key signed, with an algorithm of this key.

    Raises:
        MalformedRequest: It is not a token as :func:`peek_foreign` takes it.
        IntegrityFailure: It names another key or algorithm, or the signature does not hold.

    Source: RFC 7515 section 5.2, RFC 8725 section 3.1.
    """
    head, body, signature = _split(text)
    header = _parse_header(head)
    # Which verifier runs is looked up among the key's own algorithms (I14).
    if header["alg"] not in key.algorithms or header.get("kid", key.kid) != key.kid:
        raise IntegrityFailure("a token names a key or algorithm that is not this one")
    if not _VERIFIER[header["alg"]].verify(f"{head}.{body}".encode("ascii"), _load(key.jwk), signature):
        raise IntegrityFailure("the signature of a token does not hold")
    return parse_json_object(parse_b64url(body))


def signing_digest(text: str) -> str:
    """``sha256:<hex>`` of what was signed (header and payload): a signature made anew changes nothing.

    Raises:
        MalformedRequest: It is not a compact JWT.
    """
    head, body, _ = _split(text)
    return sha256_digest(f"{head}.{body}".encode("ascii"))


def _split(text: str) -> tuple[str, str, bytes]:
    # The size comes first: nothing below may cost more than it allows (I17).
    if not isinstance(text, str) or len(text) > limits.MAX_TOKEN:
        raise MalformedRequest(f"a token is not text of at most {limits.MAX_TOKEN} bytes")
    parts = text.split(".", 3)
    if len(parts) != 3 or not all(parts):
        raise MalformedRequest("a token does not have three parts")
    head, body, signature = parts
    parse_b64url(head)
    parse_b64url(body)
    return head, body, parse_b64url(signature)


def _parse_header(part: str) -> Json:
    header = parse_json_object(parse_b64url(part))
    if refused := _REFUSED_HEADER & set(header):
        raise MalformedRequest(f"a token's header has the member {min(refused)}")
    if not isinstance(header.get("alg"), str) or not 0 < len(header["alg"]) <= limits.MAX_KID:
        raise MalformedRequest("a token's header names no algorithm")
    if "typ" in header and header["typ"] not in _TYPES:
        raise MalformedRequest("a token is of a type that is not an identity's: typ is JWT, JOSE or absent")
    kid = header.get("kid", "-")
    if not isinstance(kid, str) or not 0 < len(kid) <= limits.MAX_KID:
        raise MalformedRequest(f"a token's kid is not text of 1 to {limits.MAX_KID} characters")
    return header


def _get_text(claims: Json, name: str) -> str | None:
    value = claims.get(name)
    if name not in claims:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= limits.MAX_CLAIM or not value.isprintable():
        raise MalformedRequest(
            f"a token's {name} is not printable text of 1 to {limits.MAX_CLAIM} characters"
        )
    return value


# -- where keys are -----------------------------------------------------------------------------------------


def parse_issuer_url(text: str, *, query: bool = False) -> str:
    """The URL of a foreign issuer, or of its keys: https, or http to this machine alone.

    An issuer's URL is compared as it is, character for character: ``https://a`` and ``https://a/`` are two
    issuers. It is ASCII, so it has no look-alikes.

    Args:
        query: Whether it may have a query: the URL of keys may, that of an issuer may not.

    Raises:
        InvalidRequest: It is something else, or has a user, a fragment or ``..``.

    Source: OpenID Connect Discovery 1.0 sections 2 and 4.3; RFC 8414 section 2.
    """
    grammar = "https://host[:port][/path] in ASCII; http on loopback only"
    refusal = InvalidRequest("the URL of an issuer or of its keys is not valid", why=grammar)
    if not isinstance(text, str) or len(text) > limits.MAX_CLAIM:
        raise refusal
    bare, mark, asked = text.partition("?")
    if not _URL.fullmatch(bare) or (mark and not (query and _QUERY.fullmatch(asked))):
        raise refusal
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise refusal from exc
    if not host or "@" in parts.netloc or ".." in parts.path.split("/"):
        raise refusal
    if not text.startswith("https://") and not (text.startswith("http://") and is_loopback(text)):
        raise refusal
    return text


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, by name or address."""
    return urlsplit(url).hostname in _LOOPBACK
