"""The S3 endpoint: the read side of the S3 API over a library, path-style, for unmodified clients.

A collection is a bucket; ``name/path`` is a file of an artifact's newest version, ``name@version/path`` one
of a named version (or of a manifest digest). Nothing is written. What the S3 API has and this endpoint has
not (ACLs, tags, versions of a key, parts) is refused as not implemented, never ignored.

Listing and looking at a file is ``describe`` to policy. Bytes are leased range by range when they are asked
for, and recorded; what policy says no to is answered before the first byte.

**Source**: Amazon S3 API Reference, *Amazon S3 actions*; RFC 9110 section 13 (preconditions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Final
from urllib.parse import quote, unquote

from broker.canonical import parse_time
from broker.client.agent import s3_listing as listing
from broker.client.agent.byterange import read_range
from broker.client.agent.environment import S3_ACCESS_KEY
from broker.client.agent.http import Answer, Request
from broker.client.agent.repos import etag_of, find_file
from broker.client.agent.s3_errors import S3Refusal, refuse, refuse_key, refuse_write
from broker.client.agent.s3_xml import XML_TYPE, Element, document
from broker.client.agent.sigv4 import parse_pairs, verify_signature
from broker.client.library import Library
from broker.client.versions import TrustedVersion
from broker.envelope.manifest import ManifestFile
from broker.errors import BrokerError, InvalidRequest, MalformedRequest
from broker.ports import Clock
from broker.runtime import SystemClock

_UNSAID_REGION: Final = "us-east-1"
"""The S3 API spells this region as none at all."""
_UNKNOWN_TIME: Final = "1970-01-01T00:00:00.000Z"
"""A collection has no time of its own, but every bucket needs one."""
_SIGNING: Final = "x-amz-"
_ANY: Final = frozenset({"x-id"})
"""Names the operation, which method and path do anyway."""
_LISTED: Final = frozenset({"prefix", "delimiter", "max-keys", "encoding-type"})
_LISTED_V1: Final = _LISTED | {"marker"}
_LISTED_V2: Final = _LISTED | {"list-type", "continuation-token", "start-after", "fetch-owner"}

Query = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A request whose signature holds, taken apart."""

    request: Request
    region: str
    bucket: str
    key: str
    query: Query

    def check_query(self, known: frozenset[str] = frozenset()) -> None:
        """Nothing is asked for that would be ignored.

        Raises:
            S3Refusal: 501; there is a parameter or subresource that is not served.
        """
        if not set(self.query) <= known | _ANY:
            raise S3Refusal("this endpoint does not serve that", status=501, s3_code="NotImplemented")


class S3App:
    """Answers S3 clients out of a library. Safe to share between threads.

    Args:
        library: What the caller may see and read.
        secret: The secret access key without which nothing is answered.
        clock: Compared with the time of requests.
    """

    def __init__(self, library: Library, *, secret: str, clock: Clock | None = None) -> None:
        self._library = library
        self._secret = secret
        self._clock = clock or SystemClock()

    def answer(self, request: Request) -> Answer:
        """The answer to one request.

        Raises:
            BrokerError: It is refused; :meth:`refusal` says so to the client.
        """
        region = verify_signature(
            request, access_key=S3_ACCESS_KEY, secret=self._secret, now=self._clock.now()
        )
        if request.method not in ("GET", "HEAD"):
            raise refuse_write()
        call = _parse_call(request, region)
        return self._view(call)(call)

    def refusal(self, error: BrokerError) -> Answer:
        """An error in the words of S3."""
        return refuse(error)

    def _view(self, call: _Call) -> Callable[[_Call], Answer]:
        if call.key:
            return self._object
        if not call.bucket:
            return self._buckets
        if call.request.method == "HEAD":
            return self._bucket
        if "location" in call.query:
            return self._location
        return self._list_v2 if call.query.get("list-type") == "2" else self._list_v1

    # -- buckets ----------------------------------------------------------------------------------------

    def _buckets(self, call: _Call) -> Answer:
        call.check_query()
        names = self._library.collections()
        buckets = [("Bucket", (("Name", name), ("CreationDate", _UNKNOWN_TIME))) for name in names]
        return _xml("ListAllMyBucketsResult", [("Owner", (("ID", S3_ACCESS_KEY),)), ("Buckets", buckets)])

    def _bucket(self, call: _Call) -> Answer:
        call.check_query()
        listing.find_artifacts(self._library, call.bucket)
        return Answer(status=200, headers=[("x-amz-bucket-region", call.region)])

    def _location(self, call: _Call) -> Answer:
        call.check_query(frozenset({"location"}))
        listing.find_artifacts(self._library, call.bucket)
        return _xml("LocationConstraint", "" if call.region == _UNSAID_REGION else call.region)

    # -- listings ---------------------------------------------------------------------------------------

    def _list_v2(self, call: _Call) -> Answer:
        call.check_query(_LISTED_V2)
        token, start = call.query.get("continuation-token"), call.query.get("start-after", "")
        # A token goes on where the page before ended, which is behind where the listing began.
        after = start.encode() if token is None else listing.parse_token(token)
        question, show = _question(call.query, after), _shown(call.query)
        page = listing.list_page(self._library, call.bucket, question)
        more: list[Element] = [("KeyCount", str(len(page.items)))]
        if token is not None:
            more.append(("ContinuationToken", token))
        if page.truncated:
            more.append(("NextContinuationToken", listing.token_of(page.items[-1].place)))
        if start:
            more.append(("StartAfter", show(start)))
        return _list_result(call, question, page, more)

    def _list_v1(self, call: _Call) -> Answer:
        call.check_query(_LISTED_V1)
        marker, show = call.query.get("marker", ""), _shown(call.query)
        question = _question(call.query, b"")
        after = listing.place_of_marker(marker, prefix=question.prefix, delimiter=question.delimiter)
        question = _question(call.query, after)
        page = listing.list_page(self._library, call.bucket, question)
        more: list[Element] = [("Marker", show(marker))]
        if page.truncated:
            more.append(("NextMarker", show(page.items[-1].key)))
        return _list_result(call, question, page, more)

    # -- objects ----------------------------------------------------------------------------------------

    def _object(self, call: _Call) -> Answer:
        call.check_query()
        version, file = self._find(call)
        headers, sent = _object_headers(version, file), call.request.headers
        etag = etag_of(file)
        if _is_unchanged(sent, etag=etag, modified=_committed(version)):
            return Answer(status=304, headers=headers)
        wanted = read_range(sent, size=file.size, etag=etag)
        if wanted is None:
            size = [("Content-Range", f"bytes */{file.size}")]
            raise S3Refusal("the file has no such range", status=416, s3_code="InvalidRange", headers=size)
        if wanted.partial:
            headers.append(("Content-Range", wanted.content_range))
        status = 206 if wanted.partial else 200
        if call.request.method == "HEAD":
            return Answer(status=status, headers=headers, length=wanted.length)
        # Recorded before a byte leaves (I01): leased at the first piece, before the status is sent.
        body = self._library.reader(version).iterate(file.path, wanted.start, wanted.stop)
        return Answer(status=status, headers=headers, body=body, length=wanted.length)

    def _find(self, call: _Call) -> tuple[TrustedVersion, ManifestFile]:
        named, _, path = call.key.partition("/")
        version = listing.open_version(self._library, call.bucket, named)
        file = find_file(version, path)
        if file is None:
            raise refuse_key()
        return version, file


# -- requests -----------------------------------------------------------------------------------------------


def _parse_call(request: Request, region: str) -> _Call:
    try:
        path = unquote(request.raw_path, errors="strict")
        pairs = [(name.decode(), value.decode()) for name, value in parse_pairs(request.query)]
    except UnicodeDecodeError as exc:
        raise MalformedRequest("the path or query is not UTF-8") from exc
    bucket, _, key = path[1:].partition("/")
    query = {name: value for name, value in pairs if not name.lower().startswith(_SIGNING)}
    return _Call(request=request, region=region, bucket=bucket, key=key, query=query)


def _question(query: Query, after: bytes) -> listing.Question:
    most = query.get("max-keys", str(listing.MAX_KEYS))
    if not most.isascii() or not most.isdigit() or len(most) > 10:
        raise InvalidRequest("max-keys is not a number")
    return listing.Question(
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        after=after,
        most=min(int(most), listing.MAX_KEYS),
    )


def _shown(query: Query) -> Callable[[str], str]:
    """How names are spelt in a listing."""
    encoding = query.get("encoding-type", "")
    if encoding not in ("", "url"):
        raise InvalidRequest("encoding-type is url, or absent")
    return quote if encoding else str


def _is_unchanged(headers: Mapping[str, str], *, etag: str, modified: int) -> bool:
    """Whether the answer is 304, since the client has these bytes.

    Raises:
        S3Refusal: 412; the client wants other bytes than these.

    Source: RFC 9110 section 13.2.2.
    """
    if "if-match" in headers:
        holds = _names_tag(headers["if-match"], etag)
    else:
        since = _seconds(headers.get("if-unmodified-since"))
        holds = since is None or modified // 1000 <= since
    if not holds:
        raise S3Refusal("the file is another now", status=412, s3_code="PreconditionFailed")
    if "if-none-match" in headers:
        return _names_tag(headers["if-none-match"], etag)
    since = _seconds(headers.get("if-modified-since"))
    return since is not None and modified // 1000 <= since


def _names_tag(value: str, etag: str) -> bool:
    # Some clients leave the quotes out.
    return value.strip() == "*" or etag.strip('"') in (part.strip().strip('"') for part in value.split(","))


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None


# -- answers ------------------------------------------------------------------------------------------------


def _xml(name: str, content: str | Sequence[Element]) -> Answer:
    return Answer(status=200, headers=[("Content-Type", XML_TYPE)], body=document(name, content))


def _list_result(
    call: _Call, question: listing.Question, page: listing.Page, more: Sequence[Element]
) -> Answer:
    show = _shown(call.query)
    content: list[Element] = [("Name", call.bucket), ("Prefix", show(question.prefix))]
    if question.delimiter:
        content.append(("Delimiter", show(question.delimiter)))
    if "encoding-type" in call.query:
        content.append(("EncodingType", "url"))
    content += [("MaxKeys", str(question.most)), ("IsTruncated", str(page.truncated).lower()), *more]
    content += [_item_element(item, show) for item in page.items]
    return _xml("ListBucketResult", content)


def _item_element(item: listing.Item, show: Callable[[str], str]) -> Element:
    if item.file is None or item.version is None:
        return "CommonPrefixes", (("Prefix", show(item.key)),)
    return "Contents", (
        ("Key", show(item.key)),
        ("LastModified", item.version.commit.entry["time"]),
        ("ETag", etag_of(item.file)),
        ("Size", str(item.file.size)),
        ("StorageClass", "STANDARD"),
        ("Owner", (("ID", item.version.publisher),)),
    )


def _committed(version: TrustedVersion) -> int:
    return parse_time(version.commit.entry["time"])


def _object_headers(version: TrustedVersion, file: ManifestFile) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/octet-stream"),
        ("Accept-Ranges", "bytes"),
        ("ETag", etag_of(file)),
        ("Last-Modified", formatdate(_committed(version) / 1000, usegmt=True)),
        ("x-amz-meta-broker-version", version.manifest.version),
        ("x-amz-meta-broker-manifest", version.digest),
    ]
