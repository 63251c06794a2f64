"""AWS Signature Version 4, checked: that an S3 request was made by whoever has the agent's secret.

The canonical request is made anew from what arrived, so a request that means something else than what was
signed does not match. Both forms are taken: the ``Authorization`` header, and the query of a presigned URL.

**Source**: AWS, *Signature Version 4 for API requests* ("Create a signed request"), and Amazon S3 API
Reference, *Authenticating Requests: Using the Authorization Header* and *Using Query Parameters*.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from broker import limits
from broker.client.agent.heads import Request
from broker.client.agent.s3_errors import S3Refusal

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
MAX_SKEW: Final = 15 * 60
"""Seconds that the time of a request may be off, either way."""
MAX_EXPIRES: Final = 7 * 24 * 3600
"""Seconds that a presigned URL may be good for."""
_SERVICE: Final = "s3"
_TERMINATOR: Final = "aws4_request"
_EMPTY: Final = hashlib.sha256(b"").hexdigest()
_SIGNATURE: Final = "X-Amz-Signature"
_HEADER_RE: Final = re.compile(
    rf"{ALGORITHM} +Credential=([!-+\--~]+), *SignedHeaders=([a-z0-9;._-]+), *Signature=([0-9a-f]{{64}})"
)
_SCOPE_RE: Final = re.compile(
    r"([!-.0-~]{1,128})/([0-9]{8})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/([a-z0-9_]{1,32})"
)
_TIME_RE: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_SPACES_RE: Final = re.compile(r"[ \t]+")
_HASH_RE: Final = re.compile(r"[0-9a-f]{64}")

Pairs = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What a request says of its own signature."""

    access_key: str
    date: str
    region: str
    service: str
    terminator: str
    time: str
    expires: int | None
    """Seconds; None for the form with a header, which is good for :data:`MAX_SKEW` either way."""
    names: tuple[str, ...]
    payload: str
    signature: str = field(repr=False)


def verify_signature(request: Request, *, access_key: str, secret: str, now: int) -> str:
    """The request is signed with the secret, fresh, and for S3; returns the region of its credential scope.

    Nothing of the request is used before that, and what is refused learns nothing of the library.

    Args:
        request: Of which the body, if there is one that is read, is compared with what was signed.
        access_key: The id that goes with the secret.
        secret: As exported to the tools of this agent.
        now: Milliseconds since 1970.

    Raises:
        S3Refusal: 403; the reason is in the words of S3.
    """
    pairs = parse_pairs(request.query)
    signed = _parse_signed(request, dict(pairs))
    _check_scope(signed, access_key)
    _check_time(signed, now)
    _check_names(signed, request.headers)
    _check_payload(signed, request)
    text = string_to_sign(signed, canonical_request(request, pairs, signed))
    expected = hmac.new(signing_key(secret, signed), text.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, signed.signature):
        raise _refuse("SignatureDoesNotMatch", "the request is not signed with this agent's secret")
    return signed.region


# -- what it says ---------------------------------------------------------------------------------------


def parse_pairs(query: str) -> Pairs:
    """The parameters of a query, decoded, in order; one without ``=`` has an empty value.

    Raises:
        S3Refusal: Too many, or one of them twice: which of the two was meant? 403, as before any answer.
    """
    found: dict[bytes, bytes] = {}
    parts = [part for part in query.split("&") if part]
    for part in parts:
        name, _, value = part.replace("+", "%20").partition("=")
        found[unquote_to_bytes(name)] = unquote_to_bytes(value)
    if len(parts) > limits.MAX_PAIRS or len(found) != len(parts):
        raise _refuse("InvalidArgument", "the query has too many parameters, or one of them twice")
    return tuple(found.items())


def _parse_signed(request: Request, query: Mapping[bytes, bytes]) -> Signed:
    headers = request.headers
    if "x-amz-security-token" in headers or b"X-Amz-Security-Token" in query:
        raise _refuse("InvalidToken", "this agent issues no session tokens")
    presigned = b"X-Amz-Algorithm" in query or _SIGNATURE.encode() in query
    if presigned == ("authorization" in headers):
        raise _refuse("AccessDenied", "the request is not signed, or twice")
    return _parse_presigned(query) if presigned else _parse_header(headers)


def _parse_header(headers: Mapping[str, str]) -> Signed:
    found = _HEADER_RE.fullmatch(headers["authorization"])
    if found is None:
        raise _refuse("AuthorizationHeaderMalformed", f"the authorization is not of {ALGORITHM}")
    return _make(
        credential=found[1],
        names=found[2],
        signature=found[3],
        time=headers.get("x-amz-date", ""),
        payload=headers.get("x-amz-content-sha256", ""),
    )


def _parse_presigned(query: Mapping[bytes, bytes]) -> Signed:
    text = {name.decode("latin-1"): value.decode("latin-1") for name, value in query.items()}
    expires = text.get("X-Amz-Expires", "")
    if text.get("X-Amz-Algorithm") != ALGORITHM or not re.fullmatch(r"[0-9]{1,6}", expires):
        raise _refuse("AuthorizationQueryParametersError", f"the URL is not presigned with {ALGORITHM}")
    if not 1 <= int(expires) <= MAX_EXPIRES:
        raise _refuse("AuthorizationQueryParametersError", "a presigned URL is good for 1 to 604800 seconds")
    return _make(
        credential=text.get("X-Amz-Credential", ""),
        names=text.get("X-Amz-SignedHeaders", ""),
        signature=text.get(_SIGNATURE, ""),
        time=text.get("X-Amz-Date", ""),
        payload=UNSIGNED,
        expires=int(expires),
    )


def _make(
    *, credential: str, names: str, signature: str, time: str, payload: str, expires: int | None = None
) -> Signed:
    scope = _SCOPE_RE.fullmatch(credential)
    if scope is None or not _HASH_RE.fullmatch(signature) or not _TIME_RE.fullmatch(time):
        raise _refuse("AuthorizationHeaderMalformed", "the credential, signature or X-Amz-Date is malformed")
    return Signed(
        access_key=scope[1],
        date=scope[2],
        region=scope[3],
        service=scope[4],
        terminator=scope[5],
        time=time,
        expires=expires,
        names=tuple(names.split(";")),
        payload=payload,
        signature=signature,
    )


# -- what it must be ------------------------------------------------------------------------------------


def _check_scope(signed: Signed, access_key: str) -> None:
    if not hmac.compare_digest(signed.access_key.encode(), access_key.encode()):
        raise _refuse("InvalidAccessKeyId", "the access key is not this agent's")
    if (signed.service, signed.terminator, signed.date) != (_SERVICE, _TERMINATOR, signed.time[:8]):
        raise _refuse("AuthorizationHeaderMalformed", "the credential's scope is not that of an S3 request")


def _check_time(signed: Signed, now: int) -> None:
    try:
        made = datetime.strptime(signed.time, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError) as exc:
        raise _refuse("AccessDenied", "X-Amz-Date is no time") from exc
    age = now / 1000 - made
    if not -MAX_SKEW <= age <= (MAX_SKEW if signed.expires is None else signed.expires):
        code = "RequestTimeTooSkewed" if signed.expires is None or age < 0 else "AccessDenied"
        raise _refuse(code, "the request's time is too far from now, or its URL has expired")


def _check_names(signed: Signed, headers: Mapping[str, str]) -> None:
    names = set(signed.names)
    # What changes the meaning of a request must be covered; the host is what a relay would change.
    needed = {"host"} | {name for name in headers if name.startswith("x-amz-")}
    if list(signed.names) != sorted(names) or not needed <= names or not names <= set(headers):
        raise _refuse("AccessDenied", "the signature does not cover the host and every x-amz header")


def _check_payload(signed: Signed, request: Request) -> None:
    """The body that was read is the one that was signed; that of a write is neither read nor used."""
    if request.method == "POST" and signed.payload != UNSIGNED:
        body = hashlib.sha256(request.body).hexdigest()
        if not hmac.compare_digest(body.encode(), signed.payload.encode()):
            raise _refuse("XAmzContentSHA256Mismatch", "the body is not the one that was signed")
    elif request.method in ("GET", "HEAD") and signed.payload not in (UNSIGNED, _EMPTY):
        raise _refuse("XAmzContentSHA256Mismatch", "x-amz-content-sha256 is not that of an empty body")


# -- the signature --------------------------------------------------------------------------------------


def canonical_request(request: Request, pairs: Pairs, signed: Signed) -> str:
    """The request in the one form that is hashed for the signature."""
    # Only these two are space here: a byte of UTF-8 may look like one of the others.
    values = {name: _SPACES_RE.sub(" ", request.headers[name]).strip(" ") for name in signed.names}
    headers = "".join(f"{name}:{value}\n" for name, value in values.items())
    return "\n".join(
        [
            request.method,
            _encode(unquote_to_bytes(request.raw_path), "/"),
            _canonical_query(pairs),
            headers,
            ";".join(signed.names),
            signed.payload,
        ]
    )


def string_to_sign(signed: Signed, canonical: str) -> str:
    """What the signature is over. Headers came in as Latin-1, so that is how their bytes come back."""
    digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
    scope = f"{signed.date}/{signed.region}/{signed.service}/{signed.terminator}"
    return "\n".join([ALGORITHM, signed.time, scope, digest])


def signing_key(secret: str, signed: Signed) -> bytes:
    """The key of one day, region and service: 32 bytes."""
    return _chain(f"AWS4{secret}".encode(), (signed.date, signed.region, signed.service, signed.terminator))


def _chain(key: bytes, parts: Iterable[str]) -> bytes:
    for part in parts:
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _canonical_query(pairs: Pairs) -> str:
    kept = ((_encode(name), _encode(value)) for name, value in pairs if name != _SIGNATURE.encode())
    return "&".join(f"{name}={value}" for name, value in sorted(kept))


def _encode(data: bytes, safe: str = "") -> str:
    return quote(data, safe=f"{safe}-_.~")


def _refuse(code: str, why: str) -> S3Refusal:
    # One status for all of them, and nothing of what was sent: this is said to anybody.
    return S3Refusal(why, status=403, s3_code=code)
