"""Verified reading: the cipher and the publisher's digests joined (I09).

:class:`ExtentReader` is for whole extents: segments in order, and :meth:`ExtentReader.finish` before
the file gets its name. :class:`RangeReader` is for any segment alone: what it hands out is already
checked against what the publisher signed. Both refuse a forger who knows the extent key.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest

from broker.envelope import digest, extents
from broker.envelope.stream import Buffer, ExtentDecryptor, decrypt_extent
from broker.errors import IntegrityFailure


class ExtentReader:
    """Opens a whole extent, segment after segment, and checks its digest at the end.

    **Nothing that it wrote may be used, or stay under a final name, before** :meth:`finish` **has
    returned**: until then the bytes are authentic only against those who never had the key.

    Args:
        key: The extent key, 32 bytes.
        associated_data: From :func:`extents.associated_data`, built from the verified manifest.
        header: The first 40 bytes of the extent.
        plaintext_size: From :func:`extents.extent_plaintext_size`.
        extent_digest: The extent's digest in the verified manifest, 32 bytes.

    Attributes:
        segments: Number of segments.

    Raises:
        IntegrityFailure: The header is not one of this cipher.
    """

    __slots__ = ("_decryptor", "_expected", "_hasher", "segments")

    def __init__(
        self,
        key: bytes,
        associated_data: bytes,
        header: Buffer,
        *,
        plaintext_size: int,
        extent_digest: bytes,
    ) -> None:
        self._decryptor = ExtentDecryptor(key, associated_data, header, plaintext_size)
        self._hasher = digest.ExtentHasher()
        self._expected = extent_digest
        self.segments = self._decryptor.segments

    def read_segment(self, ciphertext: Buffer, out: bytearray | memoryview) -> int:
        """Write the next segment's plaintext to the front of ``out``; its size is returned.

        Raises:
            IntegrityFailure: The segment was changed, cut, extended, or is not the next one; ``out``
                then holds zeros there.
            InternalError: ``out`` is too short.
            InvalidRequest: The extent has no further segment.
        """
        size = self._decryptor.decrypt_segment(len(self._hasher.segments), ciphertext, out)
        self._hasher.add_segment(memoryview(out)[:size])
        return size

    def finish(self) -> None:
        """All segments were read and are what the publisher signed.

        Raises:
            IntegrityFailure: They are not.
        """
        if len(self._hasher.segments) != self.segments:
            raise IntegrityFailure("an extent ended before its last segment")
        if not compare_digest(self._hasher.digest(), self._expected):
            raise IntegrityFailure("an extent is not what the publisher signed")


class RangeReader:
    """Opens single segments of an extent, in any order and from any thread.

    Args:
        key: The extent key, 32 bytes.
        associated_data: From :func:`extents.associated_data`, built from the verified manifest.
        header: The first 40 bytes of the extent.
        plaintext_size: From :func:`extents.extent_plaintext_size`.
        extent_digest: The extent's digest in the verified manifest, 32 bytes.
        segment_digests: The extent's slice of the segment list, 32 bytes each. None for an extent of one
            segment, whose own digest follows from the extent's.

    Attributes:
        segments: Number of segments.

    Raises:
        IntegrityFailure: The slice is not what the publisher signed, or the header is not one of
            this cipher.
    """

    __slots__ = ("_decryptor", "_digests", "_expected", "segments")

    def __init__(
        self,
        key: bytes,
        associated_data: bytes,
        header: Buffer,
        *,
        plaintext_size: int,
        extent_digest: bytes,
        segment_digests: Sequence[bytes] | None,
    ) -> None:
        count = extents.segment_count(plaintext_size)
        if count != (1 if segment_digests is None else len(segment_digests)):
            raise IntegrityFailure("a list of segment digests has another length than its extent needs")
        if segment_digests is not None:
            digest.verify_segments(segment_digests, extent_digest)
        self._decryptor = ExtentDecryptor(key, associated_data, header, plaintext_size)
        self._digests = None if segment_digests is None else tuple(segment_digests)
        self._expected = extent_digest
        self.segments = self._decryptor.segments

    def read_segment(self, index: int, ciphertext: Buffer, out: bytearray | memoryview) -> int:
        """Write segment ``index``, verified, to the front of ``out``; its size is returned.

        Raises:
            IntegrityFailure: The segment is not what the publisher signed; ``out`` then holds zeros
                there.
            InternalError: ``out`` is too short.
            InvalidRequest: There is no such segment.
        """
        size = self._decryptor.decrypt_segment(index, ciphertext, out)
        opened = memoryview(out)[:size]
        found = digest.segment_digest(opened)
        if self._digests is None:
            fits = compare_digest(digest.extent_digest([found]), self._expected)
        else:
            fits = compare_digest(found, self._digests[index])
        if not fits:
            opened[:] = bytes(size)
            raise IntegrityFailure("a segment is not what the publisher signed")
        return size


def open_extent(
    key: bytes, associated_data: bytes, ciphertext: Buffer, *, plaintext_size: int, extent_digest: bytes
) -> bytes:
    """The verified plaintext of a whole extent, all or nothing.

    Args:
        key: The extent key, 32 bytes.
        associated_data: From :func:`extents.associated_data`, built from the verified manifest.
        ciphertext: The extent, header included.
        plaintext_size: From :func:`extents.extent_plaintext_size`.
        extent_digest: The extent's digest in the verified manifest, 32 bytes.

    Raises:
        IntegrityFailure: It is not what the publisher signed.
    """
    opened = decrypt_extent(key, associated_data, ciphertext, plaintext_size=plaintext_size)
    verify_extent(opened, extent_digest)
    return opened


def verify_extent(plaintext: Buffer, extent_digest: bytes) -> None:
    """A whole extent's plaintext is what the publisher signed.

    Args:
        plaintext: The extent, 1 byte or more.
        extent_digest: Its digest in the verified manifest, 32 bytes.

    Raises:
        IntegrityFailure: It is not.
        InvalidRequest: The plaintext is empty.
    """
    source, hasher = memoryview(plaintext), digest.ExtentHasher()
    for index in range(extents.segment_count(len(source))):
        start, length = extents.segment_plaintext_range(len(source), index)
        hasher.add_segment(source[start : start + length])
    if not compare_digest(hasher.digest(), extent_digest):
        raise IntegrityFailure("an extent is not what the publisher signed")
