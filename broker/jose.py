"""Signatures over JSON: keys as JWK, their thumbprints, JWTs and detached JWS.

The only module that knows PyJWT, and only its algorithms: the framing is our own, because it has to
be stricter than a general library's. What holds for everything verified here (I14):

* the algorithm is chosen by the key, never by the header: an Ed25519 key verifies ``EdDSA`` (also
  spelled ``Ed25519``, RFC 9864), a P-256 key verifies ``ES256``, nothing else exists;
* ``typ`` is compared exactly, so that a signature of one kind never passes as another;
* a header has only ``alg``, ``typ``, ``kid`` and ``jwk``; ``crit`` and everything else is refused;
* each part is canonical unpadded base64url and strict JSON, so that one token has one spelling.

Times, issuers, audiences and the ``kid`` or ``jwk`` in a header mean nothing here: callers check
them with their own ``now`` and keys.

Failures: :class:`~broker.errors.MalformedRequest` when the form is wrong,
:class:`~broker.errors.IntegrityFailure` when a well-formed object is not signed by this key, with
its algorithm, as this kind.

**Source**: RFC 7515, 7517, 7518, 7519, 7638, 8037, 8725, 9864.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm  # noqa: TID251 - the one place
from jwt.exceptions import PyJWTError  # noqa: TID251 - the one place

from broker import limits
from broker.canonical import Json, b64url, canonical_bytes, parse_b64url, parse_json_object
from broker.errors import IntegrityFailure, MalformedRequest

EDDSA: Final = "EdDSA"
ES256: Final = "ES256"

_MEMBERS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("OKP", "Ed25519"): ("kty", "crv", "x"),
    ("EC", "P-256"): ("kty", "crv", "x", "y"),
}
_DROPPED: Final = frozenset({"kid", "use", "alg"})
_HEADER_MEMBERS: Final = frozenset({"alg", "typ", "kid", "jwk"})
_ACCEPTED: Final[Mapping[str, tuple[str, ...]]] = {"OKP": (EDDSA, "Ed25519"), "EC": (ES256,)}
_ALGORITHM: Final[Mapping[str, Algorithm]] = {
    "OKP": OKPAlgorithm(),
    "EC": ECAlgorithm(ECAlgorithm.SHA256, ec.SECP256R1),
}
_COORDINATE: Final = 32
_SIGNATURE: Final = 64
_KEYS_REMEMBERED: Final = 4096
_MAX_KID: Final = 128


# -- keys ---------------------------------------------------------------------------------------------


def parse_public_jwk(obj: object) -> dict[str, str]:
    """A public signing key in its one form: ``{kty, crv, x}`` (Ed25519) or ``{kty, crv, x, y}`` (P-256).

    ``kid``, ``use`` and ``alg`` are dropped; what the key may do follows from its type. The point is
    on its curve and, for Ed25519, canonical and not of small order (a signature under such a key says
    nothing about who made it).

    Raises:
        MalformedRequest: Another type or curve, a private or unknown member, or no such point.

    Source: RFC 7517 section 4, RFC 7518 section 6.2, RFC 8037 section 2, RFC 8032 section 5.1.3.
    """
    if not isinstance(obj, Mapping):
        raise MalformedRequest("a key is not a JWK object")
    members = _MEMBERS.get((str(obj.get("kty")), str(obj.get("crv"))))
    if members is None:
        raise MalformedRequest("a key is neither Ed25519 nor P-256")
    if "d" in obj:
        raise MalformedRequest("a key that should be public has a private part")
    if set(obj) - _DROPPED != set(members):
        raise MalformedRequest(f"a JWK of this type has exactly the members {', '.join(members)}")
    jwk = {member: obj[member] for member in members}
    _load_public(jwk["kty"], _coordinate(jwk["x"]), _coordinate(jwk["y"]) if "y" in jwk else "")
    return jwk


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """The key's SHA-256 thumbprint, base64url: 43 characters, the ``jkt`` of everything bound to it.

    Raises:
        MalformedRequest: It is not a public key as :func:`parse_public_jwk` takes it.

    Source: RFC 7638 section 3 (RFC 8785 of the required members is that section's form).
    """
    return b64url(hashlib.sha256(canonical_bytes(parse_public_jwk(jwk))).digest())


class PrivateKey:
    """A signing key: Ed25519 or P-256. It shows its thumbprint only, and cannot be changed.

    Attributes:
        alg: ``EdDSA`` or ``ES256``.
        jwk: The public half, as :func:`parse_public_jwk` gives it (a fresh copy each time).
        jkt: Its thumbprint.
        kinds: The ``typ`` values that this key may sign, or None for a key without such a record.
    """

    __slots__ = ("_jwk", "_key", "alg", "jkt", "kinds")

    alg: str
    jkt: str
    kinds: frozenset[str] | None
    _jwk: dict[str, str]
    _key: Any

    def __init__(
        self,
        key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
        *,
        kinds: Iterable[str] | None = None,
    ) -> None:
        public = (
            OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
            if isinstance(key, ed25519.Ed25519PrivateKey)
            else ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        )
        jwk = parse_public_jwk(public)
        for name, value in (
            ("_key", key),
            ("_jwk", jwk),
            ("alg", EDDSA if jwk["kty"] == "OKP" else ES256),
            ("jkt", thumbprint(jwk)),
            ("kinds", None if kinds is None else frozenset(kinds)),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a private key cannot be changed")

    def __repr__(self) -> str:
        return f"PrivateKey(alg={self.alg!r}, jkt={self.jkt!r})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @property
    def jwk(self) -> dict[str, str]:
        """The public half as a JWK."""
        return dict(self._jwk)

    @classmethod
    def generate(cls, alg: str = EDDSA, *, kinds: Iterable[str] | None = None) -> PrivateKey:
        """A new key from the operating system's generator.

        Raises:
            MalformedRequest: ``alg`` is neither ``EdDSA`` nor ``ES256``.
        """
        if alg == EDDSA:
            return cls(ed25519.Ed25519PrivateKey.generate(), kinds=kinds)
        if alg == ES256:
            return cls(ec.generate_private_key(ec.SECP256R1()), kinds=kinds)
        raise MalformedRequest("the algorithm of a signing key is EdDSA or ES256")

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any], *, kinds: Iterable[str] | None = None) -> PrivateKey:
        """The key of a private JWK, as :meth:`to_jwk` writes it.

        Raises:
            MalformedRequest: It is not one, or its two halves do not belong together.

        Source: RFC 7518 section 6.2.2, RFC 8037 section 2.
        """
        if not isinstance(jwk, Mapping) or "d" not in jwk:
            raise MalformedRequest("a key that should be private has no private part")
        public = parse_public_jwk({name: value for name, value in jwk.items() if name != "d"})
        secret = parse_b64url(jwk["d"], size=_COORDINATE)
        try:
            if public["kty"] == "OKP":
                key = cls(ed25519.Ed25519PrivateKey.from_private_bytes(secret), kinds=kinds)
            else:
                scalar = int.from_bytes(secret, "big")
                key = cls(ec.derive_private_key(scalar, ec.SECP256R1()), kinds=kinds)
        except ValueError as exc:
            raise MalformedRequest("the private part of a key is out of range") from exc
        if key._jwk != public:
            raise MalformedRequest("the private part of a key does not belong to its public part")
        return key

    def to_jwk(self) -> dict[str, str]:
        """The private JWK: a secret, for a key file of mode 0600 and for nothing else."""
        algorithm = OKPAlgorithm if self.alg == EDDSA else ECAlgorithm
        return {**self._jwk, "d": str(algorithm.to_jwk(self._key, as_dict=True)["d"])}

    def sign_bytes(self, message: bytes, *, typ: str) -> bytes:
        """The 64-byte signature over ``message``, for an object of kind ``typ``.

        Raises:
            IntegrityFailure: The key's record does not name this kind (I14).
        """
        if self.kinds is not None and typ not in self.kinds:
            raise IntegrityFailure(f"this key does not sign objects of type {typ}")
        return _ALGORITHM[self._jwk["kty"]].sign(message, self._key)


def _coordinate(text: object) -> str:
    if not isinstance(text, str):
        raise MalformedRequest("a coordinate of a key is not text")
    parse_b64url(text, size=_COORDINATE)
    return text


@lru_cache(maxsize=_KEYS_REMEMBERED)
def _load_public(kty: str, x: str, y: str) -> Any:
    """The library's key object. Remembered: callers present few keys, and a check of a point is slow."""
    if kty == "OKP":
        _check_ed25519_point(parse_b64url(x, size=_COORDINATE))
        return OKPAlgorithm.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": x})
    try:
        return ECAlgorithm.from_jwk({"kty": "EC", "crv": "P-256", "x": x, "y": y})
    except (PyJWTError, ValueError) as exc:
        raise MalformedRequest("the point of a P-256 key is not on the curve") from exc


_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P


def _check_ed25519_point(encoded: bytes) -> None:
    """The 32 bytes decode to a point of the curve that is not of small order.

    With ``x^2 = u / v`` there is such an x exactly when ``u * v`` is a square. The points of order 1
    and 2 have u = 0, those of order 4 have y = 0, and those of order 8 double to y = 0, which is
    ``d y^4 + 2 y^2 - 1 = 0``.

    Source: RFC 8032 section 5.1.3.
    """
    y = int.from_bytes(encoded, "little") & (2**255 - 1)
    square = y * y % _P
    u, v = square - 1, _D * square + 1
    on_curve = y < _P and pow(u * v, (_P - 1) // 2, _P) == 1
    if not on_curve or y == 0 or (_D * square * square + 2 * square - 1) % _P == 0:
        raise MalformedRequest("the point of an Ed25519 key is not a usable point of the curve")


# -- signed objects -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A JWT whose signature, algorithm and type hold. The claims stay out of its repr."""

    header: Json
    claims: Json = field(repr=False)


def sign_jwt(
    claims: Mapping[str, Any], *, key: PrivateKey, typ: str, header_extra: Mapping[str, Any] | None = None
) -> str:
    """A compact JWT over the canonical JSON of ``claims``; absent (None) members are left out.

    Args:
        claims: The members of the payload.
        key: Chooses ``alg``.
        typ: The kind of object, exactly as its verifier will require it.
        header_extra: ``kid`` and/or ``jwk`` for the header; nothing else is allowed there.

    Raises:
        MalformedRequest: The claims have no canonical form, or the header has another member.
        IntegrityFailure: The key's record does not name ``typ`` (I14).

    Source: RFC 7519 section 7.1.
    """
    payload = canonical_bytes({name: value for name, value in claims.items() if value is not None})
    signed = f"{_header_part(key, typ, header_extra or {})}.{b64url(payload)}"
    return f"{signed}.{b64url(key.sign_bytes(signed.encode('ascii'), typ=typ))}"


def verify_jwt(token: str, *, jwk: Mapping[str, Any], typ: str, max_size: int = limits.MAX_TOKEN) -> Verified:
    """The header and claims of a JWT that this key signed as this kind. Times are not checked.

    Args:
        token: The compact form.
        jwk: The public key that must have signed; it alone chooses the algorithm (I14).
        typ: The exact ``typ`` of the header.
        max_size: Bytes that the token may have (I17).

    Raises:
        MalformedRequest: Not a JWT in its one strict form, or the key is not a public key.
        IntegrityFailure: Another ``typ`` or ``alg``, or the signature does not hold.

    Source: RFC 7519 section 7.2, RFC 8725 sections 3.1, 3.9 and 3.11.
    """
    head, body, signature = _split(token, max_size)
    header, payload = _parse_header(head), parse_b64url(body)
    _check_signature(header, f"{head}.{body}".encode("ascii"), signature, jwk, typ)
    return Verified(header=header, claims=parse_json_object(payload))


def peek_header(token: str, *, max_size: int = limits.MAX_TOKEN) -> Json:
    """The **unverified** header of a JWT, to find the key with: ``kid``, or ``jwk``.

    Raises:
        MalformedRequest: Not a JWT, or its header is not one that :func:`verify_jwt` takes.
    """
    return _parse_header(_split(token, max_size)[0])


def sign_detached(payload: bytes, *, key: PrivateKey, typ: str) -> str:
    """A JWS with detached payload: ``header..signature``.

    Raises:
        IntegrityFailure: The key's record does not name ``typ`` (I14).

    Source: RFC 7515 appendix F.
    """
    head = _header_part(key, typ, {})
    message = f"{head}.{b64url(payload)}".encode("ascii")
    return f"{head}..{b64url(key.sign_bytes(message, typ=typ))}"


def verify_detached(signature: str, payload: bytes, *, jwk: Mapping[str, Any], typ: str) -> None:
    """``signature`` is this key's detached JWS of kind ``typ`` over exactly ``payload``.

    Raises:
        MalformedRequest: Not a detached JWS in its one strict form, or the key is not a public key.
        IntegrityFailure: Another ``typ`` or ``alg``, or the signature does not hold.

    Source: RFC 7515 appendix F.
    """
    head, body, raw = _split(signature, limits.MAX_PROOF)
    if body:
        raise MalformedRequest("a detached signature carries a payload")
    header = _parse_header(head)
    _check_signature(header, f"{head}.{b64url(payload)}".encode("ascii"), raw, jwk, typ)


def _header_part(key: PrivateKey, typ: str, extra: Mapping[str, Any]) -> str:
    if not set(extra) <= {"kid", "jwk"}:
        raise MalformedRequest("a JOSE header has only alg, typ, kid and jwk")
    return b64url(canonical_bytes({"alg": key.alg, "typ": typ, **extra}))


def _split(token: str, max_size: int) -> tuple[str, str, bytes]:
    # The size comes first: nothing below may cost more than max_size allows (I17).
    if not isinstance(token, str) or len(token) > max_size:
        raise MalformedRequest(f"a signed object is not text of at most {max_size} bytes")
    parts = token.split(".", 3)
    if len(parts) != 3 or not parts[0]:
        raise MalformedRequest("a signed object does not have three parts")
    return parts[0], parts[1], parse_b64url(parts[2], size=_SIGNATURE)


def _parse_header(part: str) -> Json:
    header = parse_json_object(parse_b64url(part))
    if not set(header) <= _HEADER_MEMBERS:
        raise MalformedRequest("a JOSE header has a member other than alg, typ, kid and jwk")
    if not isinstance(header.get("alg"), str) or not isinstance(header.get("typ"), str):
        raise MalformedRequest("a JOSE header lacks alg or typ")
    kid = header.get("kid", "-")
    if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID:
        raise MalformedRequest(f"the kid of a JOSE header is not text of 1 to {_MAX_KID} characters")
    if not isinstance(header.get("jwk", {}), dict):
        raise MalformedRequest("the jwk of a JOSE header is not an object")
    return header


def _check_signature(
    header: Json, message: bytes, signature: bytes, jwk: Mapping[str, Any], typ: str
) -> None:
    key = parse_public_jwk(jwk)
    if header["typ"] != typ:
        raise IntegrityFailure(f"a signed object is not of type {typ}")
    if header["alg"] not in _ACCEPTED[key["kty"]]:
        raise IntegrityFailure("a signed object names an algorithm that its key does not have")
    loaded = _load_public(key["kty"], key["x"], key.get("y", ""))
    if not _ALGORITHM[key["kty"]].verify(message, loaded, signature):
        raise IntegrityFailure("a signature does not hold")
