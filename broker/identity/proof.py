"""Signed requests: a DPoP proof that also covers the body and the query.

A proof is a JWT with the public key in its header. It says: the holder of this key asks for this
method and URL, with this body and query, under this token, now. :func:`build_proof` makes one,
:func:`verify_proof` checks one; that it was not used before is for the replay table to say, with
``(jkt, jti_hash)``, in the transaction that records the request (I08).

Layout and vectors: ``docs/formats/signed-request.md``.

**Source**: RFC 9449; RFC 9530 for the form of the digests.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from broker import jose, limits
from broker.canonical import b64url
from broker.errors import ClockSkew, InvalidProof, MalformedRequest
from broker.identity.claims import get_jti, get_seconds, get_text, refuse_as

TYP: Final = "dpop+jwt"

NonceCheck = Callable[[str | None], None]
"""Takes the proof's nonce (None: it has none) and raises NonceRequired when it does not hold."""

_SAFE: Final = "/:@!$&'()*+,;=-._~"
"""What stays as it is in a path: unreserved, sub-delims, ``:``, ``@`` and the separator (RFC 3986 3.3)."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_MAX_METHOD: Final = 16
_MAX_NONCE: Final = 128


@dataclass(frozen=True, kw_only=True)
class VerifiedProof:
    """What a proof that holds says about its maker.

    Attributes:
        jwk: The public key that signed.
        jkt: Its thumbprint.
        jti: The proof's own id, 16 to 128 printable characters.
        jti_hash: SHA-256 of it, 32 bytes: with ``jkt`` the key of the replay table.
        iat_ms: When it says it was made, in milliseconds since 1970 (a whole second).
        alg: The algorithm as its header spells it.
    """

    jwk: dict[str, str]
    jkt: str
    jti: str
    jti_hash: bytes
    iat_ms: int
    alg: str


def digest_field(data: bytes) -> str:
    """``sha-256=:<base64>:``, the value of a ``Content-Digest`` of these bytes.

    Source: RFC 9530 section 2, RFC 8941 section 3.3.5.
    """
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode('ascii')}:"


def token_hash(access_token: str) -> str:
    """The claim ``ath`` of a token: base64url of its SHA-256, 43 characters.

    Raises:
        MalformedRequest: It is not ASCII, as every token is.

    Source: RFC 9449 section 4.2.
    """
    if not access_token.isascii():
        raise MalformedRequest("an access token is not ASCII")
    return b64url(hashlib.sha256(access_token.encode("ascii")).digest())


def encode_path(path: str) -> str:
    """The one raw form of a decoded path that :func:`verify_proof` accepts.

    Source: RFC 3986 sections 2 and 3.3.
    """
    return quote(path, safe=_SAFE)


def check_raw_path(raw_path: str) -> None:
    """``raw_path`` is absolute and the canonical encoding of what it decodes to.

    So the path that was signed and the path that is routed are one: no ``%2F``, no lower-case hex, no
    needless escape, no ``.``, ``..`` or empty segment (a single slash at the end is fine), no control
    characters.

    Raises:
        MalformedRequest: It is not.
    """
    try:
        path = unquote_to_bytes(raw_path).decode("utf-8")
    except UnicodeError as exc:
        raise MalformedRequest("the path of the request is not UTF-8") from exc
    segments = path.split("/")
    if (
        encode_path(path) != raw_path
        or not path.startswith("/")
        or any(segment in (".", "..") for segment in segments)
        or "" in segments[1:-1]
        or _CONTROL.search(path)
    ):
        raise MalformedRequest("the path of the request is not in its canonical encoding")


# -- making -------------------------------------------------------------------------------------------


def build_proof(
    *,
    key: jose.PrivateKey,
    method: str,
    url: str,
    now: int,
    jti: str,
    body: bytes | None,
    query: str | None,
    access_token: str | None,
    nonce: str | None,
) -> str:
    """A proof for one request.

    Args:
        key: The caller's key, the one that its token is bound to.
        method: As it is sent, in upper case.
        url: Absolute, its path as :func:`encode_path` writes it, without query and fragment.
        now: Milliseconds since 1970.
        jti: 16 to 128 printable characters, never used before with this key.
        body: The exact bytes of the body (``b""`` for none); None leaves the digest out, as stock
            clients of the OAuth endpoints do.
        query: The raw query without ``?``; None and ``""`` are the same.
        access_token: The token that the request carries, if any.
        nonce: The server's last nonce, if it asked for one.

    Raises:
        MalformedRequest: The URL has a query or fragment, the query is not ASCII, or the jti does not
            fit its limits.
        IntegrityFailure: The key does not sign proofs (I14).
    """
    if "?" in url or "#" in url:
        raise MalformedRequest("the URL of a proof has no query and no fragment")
    if query and not query.isascii():
        raise MalformedRequest("a raw query is ASCII")
    claims = {
        "jti": jti,
        "htm": method,
        "htu": url,
        "iat": now // 1000,
        "ath": None if access_token is None else token_hash(access_token),
        "nonce": nonce,
        "content_digest": None if body is None else digest_field(body),
        "query_digest": digest_field(query.encode("ascii")) if query else None,
    }
    get_jti(claims)
    return jose.sign_jwt(claims, key=key, typ=TYP, header_extra={"jwk": key.jwk})


# -- checking -----------------------------------------------------------------------------------------


def verify_proof(
    proof: str,
    *,
    method: str,
    public_urls: Sequence[str],
    raw_path: str,
    query: bytes,
    body: bytes,
    access_token: str | None,
    now: int,
    require_digests: bool,
    nonce_check: NonceCheck | None,
) -> VerifiedProof:
    """The proof holds for exactly this request, now. That it is used once is not checked here.

    The caller has refused duplicate ``DPoP``, ``Authorization`` and ``Host`` headers and any
    ``Content-Encoding``, and passes the path and query as they came over the wire.

    Args:
        proof: The value of the one ``DPoP`` header.
        method: The request's method.
        public_urls: The configured base URLs of this server. The Host header is never consulted.
        raw_path: The path as received, still encoded.
        query: The raw query bytes without ``?``.
        body: The exact body bytes.
        access_token: The token of the Authorization header, if any.
        now: The database's clock, milliseconds since 1970.
        require_digests: Whether the digests must be there (``/v1/*``) or are checked when they are.
        nonce_check: Checks the proof's nonce, see :mod:`broker.identity.nonce`; None asks for none.

    Raises:
        InvalidProof: It does not hold.
        ClockSkew: It holds, but its time is more than ``limits.PROOF_WINDOW`` seconds away.
        NonceRequired: From ``nonce_check``.

    Source: RFC 9449 section 4.3; the numbers below are those of its list.
    """
    with refuse_as(InvalidProof, "the proof of the signed request does not hold"):
        check_raw_path(raw_path)
        jwk, verified = _open(proof)  # 2 to 7
        claims = verified.claims
        jti, iat = get_jti(claims), get_seconds(claims, "iat")  # 3
        _check_target(claims, method, public_urls, raw_path)  # 8, 9
        _check_digests(claims, body, query, required=require_digests)
        _check_token_hash(claims, access_token)  # 12
        nonce = get_text(claims, "nonce", most=_MAX_NONCE) if "nonce" in claims else None
        if nonce_check is not None:
            nonce_check(nonce)  # 10
        _check_fresh(iat, now)  # 11
    return VerifiedProof(
        jwk=jwk,
        jkt=jose.thumbprint(jwk),
        jti=jti,
        jti_hash=hashlib.sha256(jti.encode("ascii")).digest(),
        iat_ms=iat * 1000,
        alg=verified.header["alg"],
    )


def _open(proof: str) -> tuple[dict[str, str], jose.Verified]:
    header = jose.peek_header(proof, max_size=limits.MAX_PROOF)
    jwk = jose.parse_public_jwk(header.get("jwk"))
    return jwk, jose.verify_jwt(proof, jwk=jwk, typ=TYP, max_size=limits.MAX_PROOF)


def _check_target(claims: Mapping[str, Any], method: str, public_urls: Sequence[str], raw_path: str) -> None:
    if get_text(claims, "htm", most=_MAX_METHOD) != method:
        raise InvalidProof("the proof is for another method")
    target = get_text(claims, "htu", most=limits.MAX_URL)
    # I08: only configured URLs, compared byte by byte; a forged Host header changes nothing.
    if target not in [url.rstrip("/") + raw_path for url in public_urls]:
        raise InvalidProof("the proof is for another URL")


def _check_digests(claims: Mapping[str, Any], body: bytes, query: bytes, *, required: bool) -> None:
    if (required or "content_digest" in claims) and claims.get("content_digest") != digest_field(body):
        raise InvalidProof("the proof does not cover this body")
    expected = digest_field(query) if query else None
    if (required or "query_digest" in claims) and claims.get("query_digest") != expected:
        raise InvalidProof("the proof does not cover this query")


def _check_token_hash(claims: Mapping[str, Any], access_token: str | None) -> None:
    if access_token is None:
        if "ath" in claims:
            raise InvalidProof("the proof is for a token that is not there")
    elif claims.get("ath") != token_hash(access_token):
        raise InvalidProof("the proof is for another token")


def _check_fresh(iat: int, now: int) -> None:
    difference = now - iat * 1000
    if abs(difference) > limits.PROOF_WINDOW * 1000:
        seconds = -(-abs(difference) // 1000)
        side = "behind" if difference > 0 else "ahead of"
        raise ClockSkew(
            f"the proof's time is {seconds} s {side} the broker's clock",
            why=f"at most {limits.PROOF_WINDOW} s are accepted",
            next="set this machine's clock, then try again",
        )
