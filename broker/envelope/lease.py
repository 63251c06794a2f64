"""The plaintext of a sealed lease, and of a publisher's sealed version key.

Both are RFC 8785 JSON. They exist in the clear only between :func:`~broker.envelope.seal.seal` and
:func:`~broker.envelope.seal.open_sealed`; keys and URLs stay out of every repr (I11).

**Source**: ``docs/formats/lease.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from broker import limits, names
from broker.canonical import Json, b64url, canonical_bytes, drop_absent, parse_b64url, parse_canonical
from broker.envelope.extents import HEADER_SIZE, KEY_SIZE, VERSION_ID_SIZE
from broker.errors import BrokerError, IntegrityFailure, InternalError

SCHEMA: Final = "broker/lease/v1"
UPLOAD_SCHEMA: Final = "broker/upload/v1"

_MAX_INDEX: Final = 2**32 - 1
_MAX_ID: Final = 128
_RANGE: Final = re.compile(r"bytes=(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")
_URL: Final = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True, kw_only=True)
class LeasePlace:
    """Where ciphertext is: ``length`` bytes of the object from ``start``.

    A GET of ``url`` must carry exactly the header ``Range: <range>``, which its signature covers.
    """

    url: str = field(repr=False)
    start: int
    length: int

    @property
    def range(self) -> str:
        """The value of the ``Range`` header: ``bytes=first-last``."""
        return range_header(self.start, self.length)


@dataclass(frozen=True, kw_only=True)
class LeasePiece(LeasePlace):
    """A piece of ciphertext: its place, and its key (32 bytes)."""

    key: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LeaseExtent(LeasePiece):
    """One extent of a file: its index, key, and place.

    Attributes:
        span: First and last segment that the URL reaches; None when it is the whole extent. The key
            opens the whole extent all the same. One extent may be there with several spans.
        header: Where the extent's header is, when the span does not begin with it (at segment 0).
    """

    index: int
    span: tuple[int, int] | None = None
    header: LeasePlace | None = None


@dataclass(frozen=True, kw_only=True)
class LeaseFile:
    """The extents of one file that a lease opens, ascending.

    Attributes:
        file: Index of the file in the manifest.
        path: Its path there.
        segments: Its encrypted segment list, when ranges were asked for and the file has one.
    """

    file: int
    path: str
    extents: tuple[LeaseExtent, ...]
    segments: LeasePiece | None = None


@dataclass(frozen=True, kw_only=True)
class OpenLease:
    """An opened lease: lease ``number`` of a grant, its files ascending by index."""

    grant: str
    number: int
    files: tuple[LeaseFile, ...]


@dataclass(frozen=True, kw_only=True)
class UploadKey:
    """What a publisher is sealed: the version's id (16 bytes) and key (32 bytes)."""

    upload: str
    version_id: bytes
    version_key: bytes = field(repr=False)


def range_header(start: int, length: int) -> str:
    """The value of a ``Range`` header for ``length`` (1 or more) bytes from ``start``.

    Source: RFC 9110 section 14.1.2.
    """
    return f"bytes={start}-{start + length - 1}"


def lease_bytes(lease: OpenLease) -> bytes:
    """The plaintext of a lease.

    Raises:
        InternalError: It does not fit its own form or limits.
    """
    try:
        _check_lease(lease)
    except BrokerError as exc:
        raise InternalError("a lease does not fit its form") from exc
    files = [_file_json(file) for file in lease.files]
    return canonical_bytes({"schema": SCHEMA, "grant": lease.grant, "number": lease.number, "files": files})


def parse_lease(data: bytes) -> OpenLease:
    """The lease that was sealed.

    That its files, extents, ranges and hosts are the ones that were asked for is for the caller to
    check, against the verified manifest and its own selection.

    Raises:
        IntegrityFailure: It opened, but is not a lease.
    """
    try:
        value = _object(parse_canonical(data), {"schema", "grant", "number", "files"})
        _expect(value["schema"] == SCHEMA)
        files = tuple(_parse_file(item) for item in _array(value["files"]))
        lease = OpenLease(grant=_id(value["grant"]), number=_index(value["number"]), files=files)
        _check_lease(lease)
    except BrokerError as exc:
        raise IntegrityFailure("a lease that opened does not have the form of one") from exc
    return lease


def upload_key_bytes(key: UploadKey) -> bytes:
    """The plaintext of a publisher's sealed version key.

    Raises:
        InternalError: The id or the key has another size.
    """
    if len(key.version_id) != VERSION_ID_SIZE or len(key.version_key) != KEY_SIZE:
        raise InternalError("a version id has 16 bytes and a version key 32")
    return canonical_bytes(
        {
            "schema": UPLOAD_SCHEMA,
            "upload": key.upload,
            "version_id": b64url(key.version_id),
            "version_key": b64url(key.version_key),
        }
    )


def parse_upload_key(data: bytes) -> UploadKey:
    """The version key that was sealed.

    Raises:
        IntegrityFailure: It opened, but is not one.
    """
    try:
        value = _object(parse_canonical(data), {"schema", "upload", "version_id", "version_key"})
        _expect(value["schema"] == UPLOAD_SCHEMA)
        return UploadKey(
            upload=_id(value["upload"]),
            version_id=parse_b64url(value["version_id"], size=VERSION_ID_SIZE),
            version_key=parse_b64url(value["version_key"], size=KEY_SIZE),
        )
    except BrokerError as exc:
        raise IntegrityFailure("a version key that opened does not have the form of one") from exc


# -- form -------------------------------------------------------------------------------------------


def _file_json(file: LeaseFile) -> Json:
    return drop_absent(
        {
            "file": file.file,
            "path": file.path,
            "extents": [_extent_json(extent) for extent in file.extents],
            "segments": None if file.segments is None else _piece_json(file.segments),
        }
    )


def _extent_json(extent: LeaseExtent) -> Json:
    return drop_absent(
        {
            "index": extent.index,
            **_piece_json(extent),
            "span": None if extent.span is None else list(extent.span),
            "header": None if extent.header is None else _place_json(extent.header),
        }
    )


def _piece_json(piece: LeasePiece) -> Json:
    return {"key": b64url(piece.key), **_place_json(piece)}


def _place_json(place: LeasePlace) -> Json:
    return {"url": place.url, "range": place.range}


def _parse_file(item: object) -> LeaseFile:
    ranged = isinstance(item, dict) and "segments" in item
    value = _object(item, {"file", "path", "extents"} | ({"segments"} if ranged else set()))
    return LeaseFile(
        file=_index(value["file"]),
        path=names.parse_path(value["path"]),
        extents=tuple(_parse_extent(extent) for extent in _array(value["extents"])),
        segments=_parse_segments(value["segments"]) if ranged else None,
    )


def _parse_extent(item: object) -> LeaseExtent:
    more = {"span", "header"} & set(item) if isinstance(item, dict) else set()
    value = _object(item, {"index", "key", "url", "range"} | more)
    return LeaseExtent(
        index=_index(value["index"]),
        span=_parse_span(value["span"]) if "span" in more else None,
        header=_parse_header(value["header"]) if "header" in more else None,
        **_piece_members(value),
    )


def _parse_span(item: object) -> tuple[int, int]:
    span = _array(item)
    _expect(len(span) == 2)
    return _index(span[0]), _index(span[1])


def _parse_header(item: object) -> LeasePlace:
    return LeasePlace(**_place_members(_object(item, {"url", "range"})))


def _parse_segments(item: object) -> LeasePiece:
    return LeasePiece(**_piece_members(_object(item, {"key", "url", "range"})))


def _piece_members(value: Json) -> dict[str, Any]:
    return {"key": parse_b64url(value["key"], size=KEY_SIZE), **_place_members(value)}


def _place_members(value: Json) -> dict[str, Any]:
    start, length = _parse_range(value["range"])
    _expect(isinstance(value["url"], str))
    return {"url": value["url"], "start": start, "length": length}


def _parse_range(text: object) -> tuple[int, int]:
    found = _RANGE.fullmatch(text) if isinstance(text, str) else None
    if found is None or int(found[2]) < int(found[1]):
        raise IntegrityFailure("a range of a lease is not bytes=first-last")
    return int(found[1]), int(found[2]) - int(found[1]) + 1


def _object(item: object, members: set[str]) -> Json:
    if not isinstance(item, dict) or set(item) != members:
        raise IntegrityFailure("an object has other members than its form")
    return item


def _array(item: object) -> list[Any]:
    if not isinstance(item, list):
        raise IntegrityFailure("a member is not a list")
    return item


def _index(item: object) -> int:
    if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= _MAX_INDEX:
        raise IntegrityFailure("an index is not a number of 32 bits")
    return item


def _id(item: object) -> str:
    if not isinstance(item, str) or not 0 < len(item) <= _MAX_ID:
        raise IntegrityFailure("an id is not text of 1 to 128 characters")
    return item


def _expect(fact: bool) -> None:  # noqa: FBT001 - an assertion that stays on
    if not fact:
        raise IntegrityFailure("a value has another form than it must have")


# -- meaning ----------------------------------------------------------------------------------------


def _check_lease(lease: OpenLease) -> None:
    _id(lease.grant)
    _index(lease.number)
    _expect(_ascends([file.file for file in lease.files]))
    _expect(sum(len(file.extents) for file in lease.files) <= limits.MAX_LEASE_EXTENTS)
    for file in lease.files:
        names.parse_path(file.path)
        _expect(all(0 <= extent.index <= _MAX_INDEX for extent in file.extents))
        _expect(all(_precedes(before, after) for before, after in pairwise(file.extents)))
        for piece in (*file.extents, *([] if file.segments is None else [file.segments])):
            _check_piece(piece)
        for extent in file.extents:
            _check_span(extent)


def _ascends(indices: list[int]) -> bool:
    bounded = all(0 <= index <= _MAX_INDEX for index in indices)
    return bounded and all(before < after for before, after in pairwise(indices))


def _precedes(before: LeaseExtent, after: LeaseExtent) -> bool:
    """Extents ascend; several spans of one extent ascend in it and do not overlap."""
    if before.index == after.index and before.span is not None and after.span is not None:
        return before.span[1] < after.span[0] and before.key == after.key
    return before.index < after.index


def _check_piece(piece: LeasePiece) -> None:
    _expect(len(piece.key) == KEY_SIZE)
    _check_place(piece)


def _check_place(place: LeasePlace) -> None:
    _expect(place.start >= 0 and place.length >= 1)
    _expect(len(place.url) <= limits.MAX_URL and _URL.fullmatch(place.url) is not None)


def _check_span(extent: LeaseExtent) -> None:
    first, last = extent.span or (0, 0)
    _expect(0 <= first <= last <= _MAX_INDEX)
    # Without its header no segment opens; with segment 0 it comes along.
    _expect((extent.header is not None) == (first > 0))
    if extent.header is not None:
        _check_place(extent.header)
        _expect(extent.header.length == HEADER_SIZE)
        _expect(extent.header.start + HEADER_SIZE <= extent.start)
