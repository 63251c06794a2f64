"""Any range of any file, read in any way, is that range of what was published."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.client.pieces import Layout
from broker.client.reading import Reader
from broker.envelope import extents
from tests.unit.client.conftest import MIB, Stack, make_tree, shared_stack

__all__ = ["shared_stack"]

EXTENT = 2 * MIB
FIRST, NEXT = extents.FIRST_PLAINTEXT, extents.SEGMENT_PLAINTEXT
BORDERS = (0, FIRST, FIRST + NEXT, EXTENT, EXTENT + FIRST, EXTENT + FIRST + NEXT, 2 * EXTENT, 3 * EXTENT)
SIZES = sorted({max(0, border + more) for border in BORDERS for more in (-1, 0, 1)})
"""Sizes around every border between segments and between extents, and nothing at all."""
DATA = random.Random(16).randbytes(max(SIZES))
REF = "acme/property@v1"


@pytest.fixture(scope="module")
def readers(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Reader]]:
    publisher = shared_stack.add("pub", roles=("publisher", "engineer"), groups=("acme",))
    files = {f"{size}.bin": DATA[:size] for size in SIZES}
    publisher.publish(make_tree(tmp_path_factory.mktemp("src"), files), REF, extent_size=EXTENT)
    found = [
        Reader(
            publisher._session,
            publisher._log,
            publisher.profile,
            publisher.info(REF),
            jobs=jobs,
            memory=memory,
        )
        for jobs, memory in ((1, 0), (3, 11 * MIB), (4, 64 * MIB))
    ]
    yield found
    for reader in found:
        reader.close()


sizes = st.sampled_from(SIZES)
near = st.builds(lambda border, more: max(0, border + more), st.sampled_from(BORDERS), st.integers(-3, 3))
places = st.one_of(near, st.integers(0, max(SIZES) + 5))


@settings(max_examples=60, deadline=None)
@given(sizes, places, places, st.sampled_from(["read", "readinto", "iterate"]), st.integers(0, 2))
def test_a_range_is_that_range(
    readers: list[Reader], size: int, start: int, stop: int, how: str, which: int
) -> None:
    reader, path = readers[which], f"{size}.bin"
    assert reader.size(path) == size
    expected = DATA[:size][start:stop]
    if how == "read":
        assert reader.read(path, start, stop) == expected
    elif how == "iterate":
        assert b"".join(reader.iterate(path, start, stop)) == expected
    else:
        buffer = bytearray(b"\xee" * max(0, stop - start))
        got = reader.readinto(path, start, buffer)
        assert buffer == expected + b"\xee" * (len(buffer) - got)
        assert got == len(expected)


@settings(max_examples=15, deadline=None)
@given(sizes, st.lists(st.integers(1, 2 * MIB), min_size=1, max_size=4), st.integers(0, 2))
def test_a_file_in_steps_is_the_file(readers: list[Reader], size: int, steps: list[int], which: int) -> None:
    reader, at, found = readers[which], 0, bytearray()
    for step in itertools.cycle([max(step, size // 40) for step in steps]):
        buffer = bytearray(step)
        got = reader.readinto(f"{size}.bin", at, buffer)
        found += buffer[:got]
        at += got
        if got < step:
            break
    assert found == DATA[:size]


@pytest.mark.parametrize("size", SIZES)
def test_every_file_as_a_whole(readers: list[Reader], size: int) -> None:
    for reader in readers:
        assert b"".join(reader.iterate(f"{size}.bin", 0, size + 9)) == DATA[:size]


@given(sizes, places, places)
def test_pieces_cover_a_range_and_no_segment_more(
    readers: list[Reader], size: int, start: int, stop: int
) -> None:
    version = readers[0].version
    at = next(i for i, file in enumerate(version.manifest.files) if file.path == f"{size}.bin")
    layout, stop = Layout(version.manifest, at), min(stop, size)
    if start >= stop:
        return
    pieces = layout.pieces(start, stop)
    places = [(p.extent, segment) for p in pieces for segment in range(p.first, p.last + 1)]
    needed = {layout.locate(position)[0] for position in (*_every(layout, start, stop), stop - 1)}
    assert places == sorted(needed)
    assert sum(piece.size for piece in pieces) == sum(layout.length(*place) for place in places)


def _every(layout: Layout, start: int, stop: int) -> Iterator[int]:
    while start < stop:
        place, begin = layout.locate(start)
        assert begin <= start < begin + layout.length(*place)
        yield start
        start = begin + layout.length(*place)
