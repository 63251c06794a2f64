"""Verified reading: order, completeness, and what is left in the caller's buffer."""

from __future__ import annotations

import pytest

from broker.envelope import extents, reader
from broker.envelope.digest import ExtentHasher
from broker.envelope.extents import FIRST_PLAINTEXT, HEADER_SIZE, SEGMENT_PLAINTEXT
from broker.envelope.stream import encrypt_extent
from broker.errors import IntegrityFailure, InvalidRequest

KEY, AD = bytes(range(32)), bytes(32)
SIZE = FIRST_PLAINTEXT + 1000
PLAINTEXT = (bytes(range(256)) * (SIZE // 256 + 1))[:SIZE]
CIPHERTEXT = encrypt_extent(KEY, AD, PLAINTEXT, salt=bytes(32), nonce_prefix=bytes(7))
FORGED = encrypt_extent(
    KEY, AD, PLAINTEXT[:-1] + b"\xee", salt=b"\x01" * 32, nonce_prefix=bytes(7)
)  # by somebody who has the extent key


def hashes(plaintext: bytes) -> ExtentHasher:
    hasher = ExtentHasher()
    for index in range(extents.segment_count(len(plaintext))):
        start, length = extents.segment_plaintext_range(len(plaintext), index)
        hasher.add_segment(plaintext[start : start + length])
    return hasher


HASHES = hashes(PLAINTEXT)


def segment(ciphertext: bytes, index: int) -> bytes:
    at, room = extents.segment_ciphertext_range(SIZE, index)
    return ciphertext[at : at + room]


def whole(ciphertext: bytes) -> reader.ExtentReader:
    header = ciphertext[:HEADER_SIZE]
    return reader.ExtentReader(KEY, AD, header, plaintext_size=SIZE, extent_digest=HASHES.digest())


def ranged(ciphertext: bytes, digests: list[bytes] | None = None) -> reader.RangeReader:
    return reader.RangeReader(
        KEY,
        AD,
        ciphertext[:HEADER_SIZE],
        plaintext_size=SIZE,
        extent_digest=HASHES.digest(),
        segment_digests=HASHES.segments if digests is None else digests,
    )


def test_a_whole_extent() -> None:
    found, out = bytearray(), bytearray(SEGMENT_PLAINTEXT)
    extent = whole(CIPHERTEXT)
    for index in range(extent.segments):
        found += out[: extent.read_segment(segment(CIPHERTEXT, index), out)]
    extent.finish()
    assert found == PLAINTEXT
    assert (
        reader.open_extent(KEY, AD, CIPHERTEXT, plaintext_size=SIZE, extent_digest=HASHES.digest())
        == PLAINTEXT
    )


def test_an_unfinished_extent_does_not_finish() -> None:
    extent = whole(CIPHERTEXT)
    with pytest.raises(IntegrityFailure):
        extent.finish()
    extent.read_segment(segment(CIPHERTEXT, 0), bytearray(SEGMENT_PLAINTEXT))
    with pytest.raises(IntegrityFailure):
        extent.finish()


def test_there_is_no_segment_after_the_last() -> None:
    extent = whole(CIPHERTEXT)
    for index in range(extent.segments):
        extent.read_segment(segment(CIPHERTEXT, index), bytearray(SEGMENT_PLAINTEXT))
    with pytest.raises(InvalidRequest):
        extent.read_segment(segment(CIPHERTEXT, 1), bytearray(SEGMENT_PLAINTEXT))


def test_a_forgery_under_the_right_key_does_not_finish() -> None:
    extent = whole(FORGED)
    for index in range(extent.segments):
        extent.read_segment(segment(FORGED, index), bytearray(SEGMENT_PLAINTEXT))
    with pytest.raises(IntegrityFailure):
        extent.finish()
    with pytest.raises(IntegrityFailure):
        reader.open_extent(KEY, AD, FORGED, plaintext_size=SIZE, extent_digest=HASHES.digest())


def test_single_segments() -> None:
    out = bytearray(SEGMENT_PLAINTEXT)
    size = ranged(CIPHERTEXT).read_segment(1, segment(CIPHERTEXT, 1), out)
    assert out[:size] == PLAINTEXT[FIRST_PLAINTEXT:]


def test_a_forged_segment_leaves_no_plaintext_behind() -> None:
    out = bytearray(b"\xff" * SEGMENT_PLAINTEXT)
    with pytest.raises(IntegrityFailure):
        ranged(FORGED).read_segment(1, segment(FORGED, 1), out)
    assert out[:1000] == bytes(1000)


def test_forged_digests_are_refused_before_any_segment() -> None:
    forged = hashes(PLAINTEXT[:-1] + b"\xee")
    for digests in (forged.segments, HASHES.segments[:1], [*HASHES.segments, bytes(32)], []):
        with pytest.raises(IntegrityFailure):
            ranged(FORGED, digests)


def test_a_shorter_extent_needs_a_shorter_list() -> None:
    # A list that is right for the extent digest, but not for the size that the manifest gives.
    with pytest.raises(IntegrityFailure):
        reader.RangeReader(
            KEY,
            AD,
            CIPHERTEXT[:HEADER_SIZE],
            plaintext_size=FIRST_PLAINTEXT,
            extent_digest=HASHES.digest(),
            segment_digests=HASHES.segments,
        )


def test_plaintext_on_disk_is_checked_by_its_digest() -> None:
    reader.verify_extent(PLAINTEXT, HASHES.digest())
    with pytest.raises(IntegrityFailure):
        reader.verify_extent(PLAINTEXT[:-1] + b"\xee", HASHES.digest())
    with pytest.raises(IntegrityFailure):
        reader.verify_extent(PLAINTEXT[:-1], HASHES.digest())
