"""Presigned URLs: AWS Signature Version 4 in the query, with the signing key cached.

Nothing here talks to a store: a URL is arithmetic over the caller's time and credentials, so that a
lease of a thousand extents costs milliseconds. The result is byte for byte what botocore would make
for the same request; a test compares the two.

Each URL is as narrow as the protocol allows: one method, one object, and by signed headers one byte
range (GET), or one length and create-only (PUT). The request must carry the signed headers exactly as
each method names them. A URL is a secret until it expires: it is never logged or shown.

Source: AWS Signature Version 4, "Authenticating requests: using query parameters".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urlsplit

from broker import limits
from broker.canonical import format_time
from broker.errors import ConfigurationError, InvalidRequest, StoreUnavailable

_RANGE: Final = re.compile(r"bytes=(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"
MAX_OBJECT_NAME: Final = 1024
"""UTF-8 bytes of an object's name (Amazon S3 user guide, "Naming objects")."""
MAX_PARTS: Final = 10_000
"""Part numbers of a multipart upload are 1 to this (Amazon S3 user guide, "Multipart upload limits")."""
GRANT_PARAMETER: Final = "x-broker-grant"
"""The signed query parameter that names the grant, so that a store's access log joins with the ledger."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a URL is signed with.

    ``expires_at`` is in milliseconds since 1970, or None for long-lived keys; a URL never outlives it.
    """

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires_at: int | None = None


CredentialSource = Callable[[], Credentials]
"""Gives the credentials of this moment; called once for each URL, so it must be cheap."""


@lru_cache(maxsize=8)
def _signing_key(secret_key: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), hashlib.sha256)
    return key


def check_object_name(name: str) -> None:
    """``name`` is an object name that every HTTP client sends unchanged.

    Empty, ``.`` and ``..`` segments are refused: clients resolve them, so the URL would ask for
    another object than the one that was signed.

    Raises:
        InvalidRequest: It is not such a name.
    """
    segments = name.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or "\0" in name:
        raise InvalidRequest("an object name has an empty, '.' or '..' segment or a NUL")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as exc:
        raise InvalidRequest("an object name is not UTF-8") from exc
    if size > MAX_OBJECT_NAME:
        raise InvalidRequest(f"an object name is longer than {MAX_OBJECT_NAME} bytes")


def format_range(start: int, length: int) -> str:
    """The ``Range`` header of ``length`` bytes from ``start``. Source: RFC 9110 section 14.1.2.

    Raises:
        InvalidRequest: Negative start, or a length below 1.
    """
    if start < 0 or length < 1:
        raise InvalidRequest("a byte range is empty or negative")
    return f"bytes={start}-{start + length - 1}"


@dataclass(frozen=True, kw_only=True)
class Presigner:
    """Makes presigned URLs for one bucket of one store; each call gives (URL, real expiry in ms).

    Args:
        endpoint: Base URL of the store as its clients reach it, without a path.
        region: SigV4 region.
        bucket: The bucket.
        credentials: Gives the credentials to sign with.
        path_style: ``endpoint/bucket/name`` (True) or ``bucket.endpoint/name``.

    Raises:
        ConfigurationError: The endpoint is not ``http(s)://host[:port]``.
    """

    endpoint: str
    region: str
    bucket: str
    credentials: CredentialSource = field(repr=False)
    path_style: bool = True
    _base: str = field(init=False, repr=False)
    _host: str = field(init=False, repr=False)
    _prefix: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Split the endpoint once: it is the same for every URL."""
        scheme, host = _split_endpoint(self.endpoint)
        host = host if self.path_style else f"{self.bucket}.{host}"
        object.__setattr__(self, "_base", f"{scheme}://{host}")
        object.__setattr__(self, "_host", host)
        object.__setattr__(self, "_prefix", f"/{quote(self.bucket, safe='~')}" if self.path_style else "")

    @property
    def host(self) -> str:
        """``host[:port]`` of every URL made here: what a client's profile may allow."""
        return self._host

    def get(self, name: str, *, byte_range: str, grant: str, expires: int, now: int) -> tuple[str, int]:
        """A GET that yields exactly ``byte_range`` of one object; it needs the header ``Range``.

        Args:
            name: The object.
            byte_range: ``bytes=first-last``, both inclusive; signed, so no other range passes.
            grant: The grant's id; signed into the query.
            expires: Seconds from ``now``; cut to ``limits.LEASE_TTL`` and to the credentials' life (I06).
            now: Milliseconds since 1970.

        Raises:
            InvalidRequest: The name or range is not valid, or ``expires`` is below 1.
            StoreUnavailable: The credentials have expired.
        """
        match = _RANGE.fullmatch(byte_range)
        if match is None or int(match[1]) > int(match[2]):
            raise InvalidRequest("a byte range is not bytes=first-last")
        lifetime = min(expires, limits.LEASE_TTL)
        return self._sign(
            "GET", name, {GRANT_PARAMETER: grant}, {"range": byte_range}, lifetime=lifetime, now=now
        )

    def put(
        self, name: str, *, content_length: int, expires: int, now: int, if_none_match: bool = True
    ) -> tuple[str, int]:
        """A PUT of one object of exactly ``content_length`` bytes, create-only unless told otherwise.

        It needs the headers ``Content-Length`` and ``If-None-Match: *``.

        Args:
            name: The object.
            content_length: Bytes of the body; signed.
            expires: Seconds from ``now``; cut to ``limits.UPLOAD_URL_TTL`` and to the credentials' life.
            now: Milliseconds since 1970.
            if_none_match: Sign ``If-None-Match: *``, so that an existing object is never replaced (I20).

        Raises:
            InvalidRequest: The name or a number is not valid.
            StoreUnavailable: The credentials have expired.
        """
        headers = _length_header(content_length)
        if if_none_match:
            headers["if-none-match"] = "*"
        lifetime = min(expires, limits.UPLOAD_URL_TTL)
        return self._sign("PUT", name, {}, headers, lifetime=lifetime, now=now)

    def upload_part(
        self,
        name: str,
        *,
        upload_id: str,
        part_number: int,
        content_length: int,
        expires: int,
        now: int,
    ) -> tuple[str, int]:
        """A PUT of one part of a multipart upload; it dies with the upload (I20).

        It needs the header ``Content-Length``.

        Args:
            name: The object that the upload will become.
            upload_id: The store's id of the upload.
            part_number: 1 to :data:`MAX_PARTS`.
            content_length: Bytes of the part; signed.
            expires: Seconds from ``now``; cut to ``limits.UPLOAD_URL_TTL`` and to the credentials' life.
            now: Milliseconds since 1970.

        Raises:
            InvalidRequest: The name or a number is not valid.
            StoreUnavailable: The credentials have expired.
        """
        if not 1 <= part_number <= MAX_PARTS or not upload_id:
            raise InvalidRequest(f"a part needs an upload and a number from 1 to {MAX_PARTS}")
        lifetime = min(expires, limits.UPLOAD_URL_TTL)
        query = {"uploadId": upload_id, "partNumber": str(part_number)}
        return self._sign("PUT", name, query, _length_header(content_length), lifetime=lifetime, now=now)

    def _sign(
        self,
        method: str,
        name: str,
        query: Mapping[str, str],
        headers: dict[str, str],
        *,
        lifetime: int,
        now: int,
    ) -> tuple[str, int]:
        check_object_name(name)
        credentials = self.credentials()
        # A store whose clock runs behind ours refuses a URL from the future: date it back, and let
        # its life count from there, so that it still ends when we say it does.
        signed_at = now // 1000 - limits.PRESIGN_BACKDATE
        expires = _clamp_expiry(credentials, lifetime=lifetime, now=now) - signed_at
        stamp = format_time(signed_at * 1000)[:19].replace("-", "").replace(":", "") + "Z"
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        signed = {**headers, "host": self._host}
        names = ";".join(sorted(signed))
        parameters = {
            **query,
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{credentials.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(expires),
            "X-Amz-SignedHeaders": names,
        }
        if credentials.session_token is not None:
            parameters["X-Amz-Security-Token"] = credentials.session_token
        pairs = [f"{_quote(key)}={_quote(value)}" for key, value in parameters.items()]
        path = f"{self._prefix}/{quote(name, safe='/~')}"
        canonical_headers = "".join(f"{key}:{signed[key]}\n" for key in sorted(signed))
        request = "\n".join([method, path, "&".join(sorted(pairs)), canonical_headers, names, _UNSIGNED])
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signing_key = _signing_key(credentials.secret_key, stamp[:8], self.region)
        signature = hmac.digest(signing_key, text.encode(), hashlib.sha256).hex()
        url = f"{self._base}{path}?{'&'.join(pairs)}&X-Amz-Signature={signature}"
        return url, (signed_at + expires) * 1000


def _quote(text: str) -> str:
    return quote(text, safe="-_.~")


def _length_header(content_length: int) -> dict[str, str]:
    if not 0 <= content_length <= limits.MAX_FILE_SIZE:
        raise InvalidRequest("a content length is negative or larger than a file may be")
    return {"content-length": str(content_length)}


def _split_endpoint(endpoint: str) -> tuple[str, str]:
    parts = urlsplit(endpoint)
    extra = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in ("http", "https") or not parts.hostname or extra:
        raise ConfigurationError("the store's endpoint is not http(s)://host[:port]")
    host = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, host if parts.port in (None, default) else f"{host}:{parts.port}"


def _clamp_expiry(credentials: Credentials, *, lifetime: int, now: int) -> int:
    """The second at which a URL may end: never past the credentials that sign it (I06)."""
    if lifetime < 1:
        raise InvalidRequest("a presigned URL must live for a second at least")
    end = now // 1000 + lifetime
    if credentials.expires_at is not None:
        end = min(end, credentials.expires_at // 1000)
    if end * 1000 <= now:
        raise StoreUnavailable("the credentials of the object store have expired")
    return end
