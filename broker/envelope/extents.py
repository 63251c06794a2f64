"""Extents and segments: arithmetic, keys and associated data of an encrypted version.

A file is cut into extents of ``extent_size`` plaintext bytes (the last is shorter); each extent is one
stream of ciphertext segments; the file's object is the concatenation of its extents. Everything about
offsets follows from the file's size and the extent size, both of which the publisher signed.

::

    extent     header (40) | segment 0 | segment 1 | ...
    segment    ciphertext | tag (16);  1 MiB each, the first 40 less, the last as short as it needs

Sizes and offsets are bytes, indices count from 0, spans are inclusive.

**Source**: ``docs/formats/extent.md``; Tink streaming AEAD wire format (AES-GCM-HKDF).
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker import limits
from broker.canonical import b64url, canonical_bytes
from broker.errors import InternalError, InvalidRequest

KEY_SIZE: Final = 32
VERSION_ID_SIZE: Final = 16
DIGEST_SIZE: Final = 32
TAG_SIZE: Final = 16
HEADER_SIZE: Final = 40
"""One length byte, a 32-byte salt, a 7-byte nonce prefix."""
SEGMENT_PLAINTEXT: Final = limits.SEGMENT_SIZE - TAG_SIZE
"""Plaintext of a full segment after the first: 1,048,560 bytes."""
FIRST_PLAINTEXT: Final = SEGMENT_PLAINTEXT - HEADER_SIZE
"""Plaintext of a full first segment, which shares its 1 MiB with the header: 1,048,520 bytes."""

_EXTENT_INFO: Final = b"broker/extent/v1"
_SEGMENTS_INFO: Final = b"broker/segments/v1"


# -- arithmetic of a file ---------------------------------------------------------------------------


def extent_count(size: int, extent_size: int) -> int:
    """Extents of a file; an empty file has none.

    Raises:
        InvalidRequest: A size is outside its limits.
    """
    _check_sizes(size, extent_size)
    return -(-size // extent_size)


def extent_plaintext_size(size: int, extent_size: int, index: int) -> int:
    """Plaintext bytes of extent ``index``: ``extent_size``, or less for the last.

    Raises:
        InvalidRequest: A size is outside its limits, or there is no such extent.
    """
    if not 0 <= index < extent_count(size, extent_size):
        raise InvalidRequest(f"there is no extent {index} in this file")
    return min(extent_size, size - index * extent_size)


def extent_range(size: int, extent_size: int, index: int) -> tuple[int, int]:
    """``(start, length)`` of extent ``index`` in the file's object.

    Raises:
        InvalidRequest: A size is outside its limits, or there is no such extent.
    """
    length = ciphertext_size(extent_plaintext_size(size, extent_size, index))
    return index * ciphertext_size(extent_size), length


def extent_span(size: int, extent_size: int, start: int, stop: int) -> tuple[int, int]:
    """``(first, last)`` extent that plaintext ``start`` to ``stop`` (exclusive) of the file touches.

    Raises:
        InvalidRequest: A size is outside its limits, or the range is empty or outside the file.
    """
    _check_sizes(size, extent_size)
    _check_span(size, start, stop)
    return start // extent_size, (stop - 1) // extent_size


def object_size(size: int, extent_size: int) -> int:
    """Bytes of the file's object; 0 for an empty file, which has no object.

    Raises:
        InvalidRequest: A size is outside its limits.
    """
    count = extent_count(size, extent_size)
    return sum(extent_range(size, extent_size, count - 1)) if count else 0


# -- arithmetic of a stream -------------------------------------------------------------------------


def segment_count(plain: int) -> int:
    """Segments of a stream over ``plain`` (1 or more) plaintext bytes.

    Raises:
        InvalidRequest: ``plain`` is not positive.
    """
    if plain < 1:
        raise InvalidRequest("an extent has at least one byte")
    return 1 + -(-max(0, plain - FIRST_PLAINTEXT) // SEGMENT_PLAINTEXT)


def ciphertext_size(plain: int) -> int:
    """Bytes of a stream over ``plain`` bytes, header included: 33,555,000 for 32 MiB.

    Raises:
        InvalidRequest: ``plain`` is not positive.
    """
    return HEADER_SIZE + plain + TAG_SIZE * segment_count(plain)


def segment_plaintext_range(plain: int, index: int) -> tuple[int, int]:
    """``(start, length)`` of segment ``index`` in the stream's plaintext.

    Raises:
        InvalidRequest: ``plain`` is not positive, or there is no such segment.
    """
    if not 0 <= index < segment_count(plain):
        raise InvalidRequest(f"there is no segment {index} in this extent")
    if index == 0:
        return 0, min(plain, FIRST_PLAINTEXT)
    start = FIRST_PLAINTEXT + (index - 1) * SEGMENT_PLAINTEXT
    return start, min(plain - start, SEGMENT_PLAINTEXT)


def segment_ciphertext_range(plain: int, index: int) -> tuple[int, int]:
    """``(start, length)`` of segment ``index`` in the stream's ciphertext, tag included.

    The header is not part of any segment: segment 0 starts at 40.

    Raises:
        InvalidRequest: ``plain`` is not positive, or there is no such segment.
    """
    start, length = segment_plaintext_range(plain, index)
    return HEADER_SIZE + start + index * TAG_SIZE, length + TAG_SIZE


def segment_span(plain: int, start: int, stop: int) -> tuple[int, int]:
    """``(first, last)`` segment that plaintext ``start`` to ``stop`` (exclusive) of an extent touches.

    Raises:
        InvalidRequest: The range is empty or outside the extent.
    """
    _check_span(plain, start, stop)
    return _segment_at(start), _segment_at(stop - 1)


def _segment_at(offset: int) -> int:
    return (offset + HEADER_SIZE) // SEGMENT_PLAINTEXT


def segments_plaintext(plain: int, first: int, last: int) -> int:
    """Plaintext bytes of segments ``first`` to ``last`` (both included) of an extent.

    Raises:
        InvalidRequest: ``plain`` is not positive, or there are no such segments.
    """
    start, _ = segment_plaintext_range(plain, first)
    end, length = segment_plaintext_range(plain, last)
    if last < first:
        raise InvalidRequest("the last segment comes before the first")
    return end + length - start


def segments_range(size: int, extent_size: int, index: int, first: int, last: int) -> tuple[int, int]:
    """``(start, length)`` of segments ``first`` to ``last`` of extent ``index`` in the file's object.

    With segment 0 comes the header in front of it, so that all segments together are the whole extent.

    Raises:
        InvalidRequest: A size is outside its limits, or there are no such segments.
    """
    plain = extent_plaintext_size(size, extent_size, index)
    begin, _ = segment_ciphertext_range(plain, first)
    end, length = segment_ciphertext_range(plain, last)
    if last < first:
        raise InvalidRequest("the last segment comes before the first")
    begin = begin if first else 0
    return extent_range(size, extent_size, index)[0] + begin, end + length - begin


# -- the segment list of a file ---------------------------------------------------------------------


def has_segments_object(size: int, extent_size: int) -> bool:
    """Whether the file's segment list is stored: some extent has more than one segment.

    Raises:
        InvalidRequest: A size is outside its limits.
    """
    _check_sizes(size, extent_size)
    return min(size, extent_size) > FIRST_PLAINTEXT


def file_segment_count(size: int, extent_size: int) -> int:
    """Segments of all extents of a file: the number of digests in its segment list.

    Raises:
        InvalidRequest: A size is outside its limits.
    """
    count = extent_count(size, extent_size)
    return sum(segments_slice(size, extent_size, count - 1)) if count else 0


def segments_slice(size: int, extent_size: int, index: int) -> tuple[int, int]:
    """``(first, count)`` of the digests that belong to extent ``index``, in the file's segment list.

    Raises:
        InvalidRequest: A size is outside its limits, or there is no such extent.
    """
    count = segment_count(extent_plaintext_size(size, extent_size, index))
    return index * segment_count(extent_size), count


def segments_object_size(size: int, extent_size: int) -> int:
    """Bytes of the file's encrypted segment list; 0 when it has none.

    Raises:
        InvalidRequest: A size is outside its limits.
    """
    if not has_segments_object(size, extent_size):
        return 0
    return ciphertext_size(DIGEST_SIZE * file_segment_count(size, extent_size))


# -- keys -------------------------------------------------------------------------------------------


def extent_key(version_key: bytes, version_id: bytes, path: str, index: int) -> bytes:
    """The key (32 bytes) of one extent: what a reader of that extent is given.

    Source: RFC 5869; salt is the version id, info ``broker/extent/v1`` + u16 length + path + u32 index.
    """
    return _derive(version_key, version_id, _EXTENT_INFO + _prefixed(path) + index.to_bytes(4, "big"))


def segments_key(version_key: bytes, version_id: bytes, path: str) -> bytes:
    """The key (32 bytes) of a file's segment list.

    The list is encrypted because digests of plaintext would tell the store which file it holds.

    Source: RFC 5869; salt is the version id, info ``broker/segments/v1`` + u16 length + path.
    """
    return _derive(version_key, version_id, _SEGMENTS_INFO + _prefixed(path))


def associated_data(*, artifact: str, version_id: bytes, path: str, extent: int, extents: int) -> bytes:
    """What an extent's ciphertext is bound to, as 32 bytes: its place in its file, version and artifact.

    Args:
        artifact: ``collection/name``.
        version_id: 16 bytes.
        path: The file's path in its version.
        extent: Index of the extent.
        extents: Number of extents of the file.
    """
    place = {"artifact": artifact, "version_id": b64url(version_id), "path": path}
    return hashlib.sha256(canonical_bytes({**place, "extent": extent, "extents": extents})).digest()


def segments_associated_data(*, artifact: str, version_id: bytes, path: str, segments: int) -> bytes:
    """What a segment list's ciphertext is bound to, as 32 bytes: its file, version and artifact.

    Args:
        artifact: ``collection/name``.
        version_id: 16 bytes.
        path: The file's path in its version.
        segments: Number of digests in the list.
    """
    place = {"artifact": artifact, "version_id": b64url(version_id), "path": path}
    return hashlib.sha256(canonical_bytes({**place, "segments": segments})).digest()


def _derive(version_key: bytes, version_id: bytes, info: bytes) -> bytes:
    if len(version_key) != KEY_SIZE or len(version_id) != VERSION_ID_SIZE:
        raise InternalError("a version key has 32 bytes and a version id 16")
    return HKDF(algorithm=hashes.SHA256(), length=KEY_SIZE, salt=version_id, info=info).derive(version_key)


def _prefixed(path: str) -> bytes:
    encoded = path.encode("utf-8")
    return len(encoded).to_bytes(2, "big") + encoded


def check_extent_size(extent_size: int) -> None:
    """The extent size is within its limits (1 MiB to 1 GiB).

    Raises:
        InvalidRequest: It is not.
    """
    if not limits.MIN_EXTENT_SIZE <= extent_size <= limits.MAX_EXTENT_SIZE:
        raise InvalidRequest(f"an extent has {limits.MIN_EXTENT_SIZE} to {limits.MAX_EXTENT_SIZE} bytes")


def _check_sizes(size: int, extent_size: int) -> None:
    check_extent_size(extent_size)
    if not 0 <= size <= limits.MAX_FILE_SIZE:
        raise InvalidRequest(f"a file has at most {limits.MAX_FILE_SIZE} bytes")


def _check_span(size: int, start: int, stop: int) -> None:
    if not 0 <= start < stop <= size:
        raise InvalidRequest("a byte range is empty or goes past the end")
