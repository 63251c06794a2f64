"""Arithmetic and keys of extents and segments."""

from __future__ import annotations

import pytest

from broker import limits
from broker.envelope import extents
from broker.envelope.extents import FIRST_PLAINTEXT, HEADER_SIZE, SEGMENT_PLAINTEXT, TAG_SIZE
from broker.errors import InternalError, InvalidRequest

MIB = limits.MIB
KEY = bytes(range(32))
VERSION_ID = bytes(range(16))


def test_sizes_of_the_default_extent() -> None:
    assert FIRST_PLAINTEXT == 1_048_520
    assert SEGMENT_PLAINTEXT == 1_048_560
    assert extents.segment_count(32 * MIB) == 33
    assert extents.ciphertext_size(32 * MIB) == 33_555_000


@pytest.mark.parametrize(
    ("plain", "segments"),
    [
        (1, 1),
        (FIRST_PLAINTEXT - 1, 1),
        (FIRST_PLAINTEXT, 1),
        (FIRST_PLAINTEXT + 1, 2),
        (FIRST_PLAINTEXT + SEGMENT_PLAINTEXT, 2),
        (FIRST_PLAINTEXT + SEGMENT_PLAINTEXT + 1, 3),
    ],
)
def test_segment_count_at_boundaries(plain: int, segments: int) -> None:
    assert extents.segment_count(plain) == segments


def test_full_segments_end_at_multiples_of_one_mebibyte() -> None:
    for index in range(3):
        start, length = extents.segment_ciphertext_range(5 * MIB, index)
        assert start + length == (index + 1) * MIB
    assert extents.segment_ciphertext_range(5 * MIB, 0)[0] == HEADER_SIZE


def test_an_empty_file_has_nothing() -> None:
    assert extents.extent_count(0, 32 * MIB) == 0
    assert extents.object_size(0, 32 * MIB) == 0
    assert extents.file_segment_count(0, 32 * MIB) == 0
    assert extents.segments_object_size(0, 32 * MIB) == 0
    assert not extents.has_segments_object(0, 32 * MIB)


def test_only_a_file_of_one_short_extent_needs_no_segments_object() -> None:
    assert not extents.has_segments_object(FIRST_PLAINTEXT, MIB)
    assert extents.has_segments_object(FIRST_PLAINTEXT + 1, MIB)
    assert extents.has_segments_object(MIB + 1, MIB)
    assert extents.segments_object_size(MIB + 1, MIB) == HEADER_SIZE + 3 * 32 + TAG_SIZE


def test_spans_are_inclusive() -> None:
    size = 3 * MIB
    assert extents.extent_span(size, MIB, 0, size) == (0, 2)
    assert extents.extent_span(size, MIB, MIB - 1, MIB) == (0, 0)
    assert extents.extent_span(size, MIB, MIB - 1, MIB + 1) == (0, 1)
    assert extents.segment_span(size, 0, FIRST_PLAINTEXT) == (0, 0)
    assert extents.segment_span(size, 0, FIRST_PLAINTEXT + 1) == (0, 1)
    assert extents.segment_span(size, FIRST_PLAINTEXT, FIRST_PLAINTEXT + 1) == (1, 1)
    assert extents.segment_span(size, FIRST_PLAINTEXT + SEGMENT_PLAINTEXT, size) == (2, 3)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 4), (-1, 4), (0, MIB + 1)])
def test_spans_outside_are_refused(start: int, stop: int) -> None:
    with pytest.raises(InvalidRequest):
        extents.extent_span(MIB, MIB, start, stop)
    with pytest.raises(InvalidRequest):
        extents.segment_span(MIB, start, stop)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(InvalidRequest):
        extents.extent_range(MIB + 1, MIB, index)
    with pytest.raises(InvalidRequest):
        extents.segments_slice(MIB + 1, MIB, index)
    with pytest.raises(InvalidRequest):
        extents.segment_ciphertext_range(MIB, index)


def test_sizes_at_their_limits_and_one_past() -> None:
    assert extents.extent_count(limits.MAX_FILE_SIZE, limits.MAX_EXTENT_SIZE) == 5 * 1024
    assert extents.extent_count(1, limits.MIN_EXTENT_SIZE) == 1
    for size, extent_size in (
        (limits.MAX_FILE_SIZE + 1, limits.MAX_EXTENT_SIZE),
        (-1, limits.MAX_EXTENT_SIZE),
        (1, limits.MAX_EXTENT_SIZE + 1),
        (1, limits.MIN_EXTENT_SIZE - 1),
    ):
        with pytest.raises(InvalidRequest):
            extents.extent_count(size, extent_size)
    with pytest.raises(InvalidRequest):
        extents.segment_count(0)


def test_every_part_of_the_place_changes_the_key() -> None:
    place = (KEY, VERSION_ID, "a/b", 1)
    others = [
        (bytes(32), VERSION_ID, "a/b", 1),
        (KEY, bytes(16), "a/b", 1),
        (KEY, VERSION_ID, "a/c", 1),
        (KEY, VERSION_ID, "a/b", 2),
    ]
    keys = {extents.extent_key(*place), *(extents.extent_key(*other) for other in others)}
    keys.add(extents.segments_key(KEY, VERSION_ID, "a/b"))
    assert len(keys) == 6
    assert all(len(key) == 32 for key in keys)


def test_path_and_index_cannot_be_shifted_into_each_other() -> None:
    # Without the length prefix these two would be the same info.
    one = extents.extent_key(KEY, VERSION_ID, "ab", int.from_bytes(b"cdef", "big"))
    other = extents.extent_key(KEY, VERSION_ID, "abcd", int.from_bytes(b"ef\0\0", "big"))
    assert one != other


def test_every_part_of_the_place_changes_the_associated_data() -> None:
    place = {"artifact": "a/b", "version_id": VERSION_ID, "path": "p", "extent": 0, "extents": 2}
    found = {extents.associated_data(**place)}  # type: ignore[arg-type]
    for name, value in (
        ("artifact", "a/c"),
        ("version_id", bytes(16)),
        ("path", "q"),
        ("extent", 1),
        ("extents", 3),
    ):
        found.add(extents.associated_data(**{**place, name: value}))  # type: ignore[arg-type]
    segments = {"artifact": "a/b", "version_id": VERSION_ID, "path": "p", "segments": 2}
    found.add(extents.segments_associated_data(**segments))  # type: ignore[arg-type]
    assert len(found) == 7


def test_a_key_of_another_size_is_a_bug() -> None:
    with pytest.raises(InternalError):
        extents.extent_key(KEY[:31], VERSION_ID, "a", 0)
    with pytest.raises(InternalError):
        extents.segments_key(KEY, VERSION_ID[:15], "a")
