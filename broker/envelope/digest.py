"""Digests of plaintext: what a manifest commits to, segment by segment.

Encryption alone does not protect a reader from another reader, because everyone who ever read an
extent knows its key. So the publisher also signs, for each extent, a digest over the digests of its
segments. It can be checked as the extent arrives, or for one segment alone: fetch the extent's slice
of segment digests, check the slice against the extent digest, then the segment against the slice.

::

    seg_i           = BLAKE3(plaintext of segment i)
    extent digest   = BLAKE3 derive_key, context "broker extent digest v1",
                      over u32 count | seg_0 | seg_1 | ...
    segment list    = seg_0 | seg_1 | ... of the file's first extent, then of its second, ...

**Source**: ``docs/formats/extent.md``; BLAKE3 specification section 2.3 (modes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hmac import compare_digest
from typing import Final

from blake3 import blake3

from broker.envelope.extents import DIGEST_SIZE
from broker.errors import IntegrityFailure, InternalError

_CONTEXT: Final = "broker extent digest v1"


def segment_digest(plaintext: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 (32 bytes) of one segment's plaintext."""
    return blake3(plaintext).digest()


def extent_digest(segments: Sequence[bytes]) -> bytes:
    """The digest (32 bytes) of an extent whose segments have these digests, in order.

    Raises:
        InternalError: There is none, or one is not 32 bytes.
    """
    if not segments or any(len(segment) != DIGEST_SIZE for segment in segments):
        raise InternalError("an extent has segments, and each digest 32 bytes")
    message = len(segments).to_bytes(4, "big") + b"".join(segments)
    return blake3(message, derive_key_context=_CONTEXT).digest()


def verify_segments(segments: Sequence[bytes], expected: bytes) -> None:
    """These are all the segment digests of the extent whose digest is ``expected``.

    Raises:
        IntegrityFailure: They are not.
    """
    if not segments or any(len(segment) != DIGEST_SIZE for segment in segments):
        raise IntegrityFailure("a list of segment digests has the wrong form")
    if not compare_digest(extent_digest(segments), expected):
        raise IntegrityFailure("a list of segment digests is not what the publisher signed")


class ExtentHasher:
    """Computes the digest of one extent from its segments, in order, as they pass.

    Attributes:
        segments: The digests (32 bytes each) of the segments so far.
    """

    __slots__ = ("segments",)

    def __init__(self) -> None:
        self.segments: list[bytes] = []

    def add_segment(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """Take the next segment's plaintext; its digest is returned."""
        found = segment_digest(plaintext)
        self.segments.append(found)
        return found

    def digest(self) -> bytes:
        """The extent's digest (32 bytes).

        Raises:
            InternalError: No segment was added.
        """
        return extent_digest(self.segments)


def segment_list_bytes(file_extents: Iterable[Sequence[bytes]]) -> bytes:
    """The segment list of a file: the digests of each extent's segments, one after the other."""
    return b"".join(segment for segments in file_extents for segment in segments)


def parse_segment_list(data: bytes | bytearray | memoryview, count: int) -> list[bytes]:
    """The ``count`` digests of a segment list, or of a slice of one.

    Raises:
        IntegrityFailure: It has another length.
    """
    if len(data) != count * DIGEST_SIZE:
        raise IntegrityFailure("a list of segment digests has another length than its file needs")
    return [bytes(data[at : at + DIGEST_SIZE]) for at in range(0, len(data), DIGEST_SIZE)]
