"""Access tokens, and the assertions with which an enrolled key asks for one.

An access token says who asks (``sub``), with which key (``cnf.jkt``), and what it covers: ``limits``
holds one list of ``authorization_details`` for each exchange that led to it, ``chain`` the ids of the
tokens that it came from. A token that verifies here is still worth nothing unless its row, and that of
every token in its chain, exists and is live (I07, I19): the caller looks them up.

Layout and vectors: ``docs/formats/access-token.md``.

**Source**: RFC 9068, RFC 9449 section 6, RFC 9396, RFC 7523.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker import jose, limits, names
from broker.canonical import Json, b64url, parse_b64url
from broker.errors import InvalidGrant, InvalidToken, MalformedRequest, TooLarge
from broker.identity.claims import check_members, check_times, get_jti, get_seconds, get_text, refuse_as

ACCESS_TYP: Final = "at+jwt"
ASSERTION_TYP: Final = "client-assertion+jwt"

_ACCESS_MEMBERS: Final = frozenset(
    {"iss", "sub", "aud", "client_id", "iat", "exp", "jti", "cnf", "limits", "chain"}
)
_ASSERTION_MEMBERS: Final = frozenset({"iss", "sub", "aud", "iat", "exp", "jti"})
_TOKEN_ID: Final = re.compile(r"t_[A-Za-z0-9_-]{22}")
_TOKEN_ID_BYTES: Final = 16
_MAX_URI: Final = 512


def token_id(random: bytes) -> str:
    """``t_`` and 22 characters: the id of a token, from 16 random bytes.

    Raises:
        MalformedRequest: Another number of bytes.
    """
    if len(random) != _TOKEN_ID_BYTES:
        raise MalformedRequest(f"a token id is made of {_TOKEN_ID_BYTES} random bytes")
    return f"t_{b64url(random)}"


@dataclass(frozen=True, kw_only=True)
class AccessClaims:
    """The claims of an access token.

    Attributes:
        iss: The issuer identifier.
        sub: The principal, ``user:...`` or ``workload:...``.
        aud: The one audience.
        client_id: The client that it was issued to (RFC 9068 section 2.2).
        iat: Issued at, NumericDate (seconds).
        exp: Dead from this second on, NumericDate; at most ``limits.ACCESS_TOKEN_TTL`` after ``iat``.
        jti: The token's id, ``t_...``.
        jkt: Thumbprint of the key that it is bound to (``cnf.jkt``).
        limits: One list of ``authorization_details`` a level, oldest first, as they were granted.
        chain: Ids of the ancestors, oldest first: one fewer than there are levels.
    """

    iss: str
    sub: str
    aud: str
    client_id: str
    iat: int
    exp: int
    jti: str
    jkt: str
    limits: tuple[tuple[Json, ...], ...]
    chain: tuple[str, ...] = ()

    @property
    def holders(self) -> tuple[str, ...]:
        """The token id behind each level of ``limits``: the chain, then the token itself."""
        return (*self.chain, self.jti)

    @property
    def expires_at(self) -> int:
        """``exp`` in milliseconds since 1970."""
        return self.exp * 1000


def sign_access_token(claims: AccessClaims, *, key: jose.PrivateKey, kid: str) -> str:
    """The token, signed. Nothing that would not verify is signed.

    Raises:
        MalformedRequest: A claim is out of its range.
        TooLarge: The token would be larger than ``limits.MAX_TOKEN``.
        IntegrityFailure: The key does not sign access tokens (I14).
    """
    body = _claims_of(claims)
    _parse_access(body)
    token = jose.sign_jwt(body, key=key, typ=ACCESS_TYP, header_extra={"kid": kid})
    if len(token) > limits.MAX_TOKEN:
        raise TooLarge("the access token would be too large", next="ask for fewer or shorter details")
    return token


def verify_access_token(
    token: str, *, keys: Mapping[str, Mapping[str, Any]], issuer: str, audience: str, now: int
) -> AccessClaims:
    """The claims of a token that holds now. Its row and its key's proof are for the caller to check.

    Args:
        token: The value after ``DPoP`` in the Authorization header.
        keys: ``kid`` -> public JWK of each key whose record names ``at+jwt``, and of no other (I14).
        issuer: The exact issuer identifier.
        audience: The exact audience.
        now: Milliseconds since 1970.

    Raises:
        InvalidToken: It does not hold.

    Source: RFC 9068 section 4.
    """
    claims = open_access_token(token, keys=keys)
    check_access_claims(claims, issuer=issuer, audience=audience, now=now)
    return claims


def open_access_token(token: str, *, keys: Mapping[str, Mapping[str, Any]]) -> AccessClaims:
    """The claims of a token that one of these keys signed. The same token and keys always give the same.

    Whether they hold now is for :func:`check_access_claims` to say, each time.

    Raises:
        InvalidToken: It was not signed by one of them, or is no access token.
    """
    with refuse_as(InvalidToken, "the access token does not hold"):
        jwk = keys.get(jose.peek_header(token).get("kid", ""))
        if jwk is None:
            raise InvalidToken("the access token was not signed by a key of this server")
        return _parse_access(jose.verify_jwt(token, jwk=jwk, typ=ACCESS_TYP).claims)


def check_access_claims(claims: AccessClaims, *, issuer: str, audience: str, now: int) -> None:
    """The claims of an opened token are for this server and hold now.

    Raises:
        InvalidToken: They do not.
    """
    with refuse_as(InvalidToken, "the access token does not hold"):
        if claims.iss != issuer or claims.aud != audience:
            raise InvalidToken("the access token is of another issuer or for another audience")
        check_times(iat=claims.iat, exp=claims.exp, now=now, ttl=limits.ACCESS_TOKEN_TTL)


def _claims_of(claims: AccessClaims) -> Json:
    return {
        "iss": claims.iss,
        "sub": claims.sub,
        "aud": claims.aud,
        "client_id": claims.client_id,
        "iat": claims.iat,
        "exp": claims.exp,
        "jti": claims.jti,
        "cnf": {"jkt": claims.jkt},
        "limits": [list(level) for level in claims.limits],
        "chain": list(claims.chain),
    }


def _parse_access(claims: Json) -> AccessClaims:
    check_members(claims, _ACCESS_MEMBERS)
    levels = _parse_levels(claims["limits"])
    jti = _parse_token_id(claims["jti"])
    return AccessClaims(
        iss=get_text(claims, "iss", most=_MAX_URI),
        sub=_parse_subject(claims),
        aud=get_text(claims, "aud", most=_MAX_URI),
        client_id=get_text(claims, "client_id", most=_MAX_URI),
        iat=get_seconds(claims, "iat"),
        exp=get_seconds(claims, "exp"),
        jti=jti,
        jkt=_parse_confirmation(claims["cnf"]),
        limits=levels,
        chain=_parse_chain(claims["chain"], jti, len(levels)),
    )


def _parse_subject(claims: Json) -> str:
    subject = get_text(claims, "sub", most=limits.MAX_PRINCIPAL)
    if names.parse_principal(subject) != subject:
        raise MalformedRequest("the subject is not a full principal id")
    return subject


def _parse_token_id(value: object) -> str:
    if not isinstance(value, str) or not _TOKEN_ID.fullmatch(value):
        raise MalformedRequest("a token id is not t_ and 22 characters")
    return value


def _parse_confirmation(cnf: object) -> str:
    if not isinstance(cnf, dict) or set(cnf) != {"jkt"}:
        raise MalformedRequest("the token is not bound to a key by cnf.jkt alone")
    parse_b64url(cnf["jkt"], size=32)
    return str(cnf["jkt"])


def _parse_levels(value: object) -> tuple[tuple[Json, ...], ...]:
    # Whether a level's details mean anything is for scope to say; a level that says nothing grants
    # nothing (I03). Here only the shape: at least one level, bounded lists of objects.
    if not isinstance(value, list) or not 1 <= len(value) <= limits.MAX_LIMITS_LEVELS:
        raise MalformedRequest(f"the limits are not 1 to {limits.MAX_LIMITS_LEVELS} levels")
    for level in value:
        if not isinstance(level, list) or len(level) > limits.MAX_DETAILS:
            raise MalformedRequest(f"a level of the limits is not a list of at most {limits.MAX_DETAILS}")
        if not all(isinstance(detail, dict) for detail in level):
            raise MalformedRequest("an authorization detail is not an object")
    return tuple(tuple(level) for level in value)


def _parse_chain(value: object, jti: str, levels: int) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) != levels - 1:
        raise MalformedRequest("the chain does not name one ancestor for each earlier level")
    chain = tuple(_parse_token_id(ancestor) for ancestor in value)
    if len({*chain, jti}) != levels:
        raise MalformedRequest("the chain names a token twice")
    return chain


# -- assertions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AssertionClaims:
    """What an assertion that holds says.

    Attributes:
        principal: Who signed it (``iss`` and ``sub``).
        jti: Its own id.
        jti_hash: SHA-256 of it, 32 bytes, for the replay table.
        iat: Issued at, NumericDate (seconds).
        exp: Dead from this second on, NumericDate.
    """

    principal: str
    jti: str
    jti_hash: bytes
    iat: int
    exp: int


def build_assertion(
    *, key: jose.PrivateKey, principal: str, issuer: str, now: int, jti: str, ttl: int = limits.ASSERTION_TTL
) -> str:
    """An assertion with which an enrolled key asks ``issuer`` for a token of ``principal``.

    Args:
        key: The enrolled key.
        principal: Full id, ``user:...`` or ``workload:...``.
        issuer: The server's issuer identifier, exactly: the assertion's only audience.
        now: Milliseconds since 1970.
        jti: 16 to 128 printable characters, never used before with this key.
        ttl: Seconds, at most ``limits.ASSERTION_TTL``.

    Raises:
        IntegrityFailure: The key does not sign assertions (I14).

    Source: RFC 7523 section 3.
    """
    iat = now // 1000
    claims = {"iss": principal, "sub": principal, "aud": issuer, "iat": iat, "exp": iat + ttl, "jti": jti}
    return jose.sign_jwt(claims, key=key, typ=ASSERTION_TYP, header_extra={"kid": key.jkt})


def verify_assertion(
    assertion: str, *, jwk: Mapping[str, Any], principal: str, issuer: str, now: int
) -> AssertionClaims:
    """``principal`` asks ``issuer`` for a token, with this key, now. That it is used once is not checked.

    Args:
        assertion: The compact form.
        jwk: The enrolled key: the one that the request's proof is made with.
        principal: Who owns that key, according to its row.
        issuer: This server's issuer identifier; the audience is exactly this one string.
        now: Milliseconds since 1970.

    Raises:
        InvalidGrant: It does not hold.

    Source: RFC 7523 section 3.
    """
    with refuse_as(InvalidGrant, "the assertion does not hold"):
        claims = jose.verify_jwt(assertion, jwk=jwk, typ=ASSERTION_TYP).claims
        check_members(claims, _ASSERTION_MEMBERS)
        if claims["iss"] != principal or _parse_subject(claims) != principal:
            raise InvalidGrant("the assertion is not made by, and for, the principal that owns the key")
        if get_text(claims, "aud", most=_MAX_URI) != issuer:
            raise InvalidGrant("the assertion is for another server")
        iat, exp, jti = get_seconds(claims, "iat"), get_seconds(claims, "exp"), get_jti(claims)
        check_times(iat=iat, exp=exp, now=now, ttl=limits.ASSERTION_TTL)
    digest = hashlib.sha256(jti.encode("ascii")).digest()
    return AssertionClaims(principal=principal, jti=jti, jti_hash=digest, iat=iat, exp=exp)
