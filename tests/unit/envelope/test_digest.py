"""Digests of segments and extents."""

from __future__ import annotations

import pytest
from blake3 import blake3

from broker.envelope import digest
from broker.errors import IntegrityFailure, InternalError

SEGMENTS = [bytes([n]) * 32 for n in range(3)]


def test_the_extent_digest_is_over_count_and_segments() -> None:
    message = b"\x00\x00\x00\x03" + b"".join(SEGMENTS)
    expected = blake3(message, derive_key_context="broker extent digest v1").digest()
    assert digest.extent_digest(SEGMENTS) == expected
    assert digest.extent_digest(SEGMENTS) != blake3(message).digest()


def test_the_hasher_agrees() -> None:
    hasher = digest.ExtentHasher()
    parts: list[bytes | bytearray | memoryview] = [b"a" * 5, bytearray(b"b" * 6), memoryview(b"c" * 7)]
    found = [hasher.add_segment(part) for part in parts]
    assert found == hasher.segments == [blake3(part).digest() for part in parts]
    assert hasher.digest() == digest.extent_digest(found)


@pytest.mark.parametrize(
    "changed",
    [
        SEGMENTS[:2],
        [*SEGMENTS, bytes(32)],
        SEGMENTS[::-1],
        [SEGMENTS[0], SEGMENTS[1], bytes(32)],
        [],
        [SEGMENTS[0], SEGMENTS[1], SEGMENTS[2][:31]],
        # The same bytes in another cut.
        [b"".join(SEGMENTS)],
    ],
)
def test_another_list_is_refused(changed: list[bytes]) -> None:
    expected = digest.extent_digest(SEGMENTS)
    digest.verify_segments(SEGMENTS, expected)
    with pytest.raises(IntegrityFailure):
        digest.verify_segments(changed, expected)


def test_no_segments_have_no_digest() -> None:
    with pytest.raises(InternalError):
        digest.extent_digest([])
    with pytest.raises(InternalError):
        digest.ExtentHasher().digest()


def test_segment_lists_round_trip() -> None:
    data = digest.segment_list_bytes([SEGMENTS[:2], SEGMENTS[2:]])
    assert data == b"".join(SEGMENTS)
    assert digest.parse_segment_list(memoryview(data), 3) == SEGMENTS
    assert digest.parse_segment_list(b"", 0) == []


@pytest.mark.parametrize("size", [0, 95, 97, 128])
def test_a_segment_list_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(IntegrityFailure):
        digest.parse_segment_list(bytes(size), 3)
