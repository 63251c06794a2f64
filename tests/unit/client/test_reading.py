"""The reader: what it hands out, what it asks for, and what it leaves alone."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from broker import limits
from broker.client.library import Library
from broker.client.plaintext import Buffers
from broker.client.reading import Reader
from broker.client.sdk import Client
from broker.client.versions import TrustedVersion
from broker.envelope import extents
from broker.errors import GrantRevoked, IntegrityFailure, InvalidRequest, NotFound, StoreUnavailable
from tests.unit.client.conftest import MIB, Stack, make_tree, restored

EXTENT = 4 * MIB
BIG = os.urandom(5 * EXTENT + 77)
FILES = {"big.bin": BIG, "small [x].txt": b"hello", "empty": b"", "two": os.urandom(MIB + 9)}
REF = "acme/reading@v1"
SEGMENT = extents.SEGMENT_PLAINTEXT


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _published(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    publisher = shared_stack.add("first", roles=("publisher", "engineer"), groups=("acme",))
    publisher.publish(make_tree(tmp_path_factory.mktemp("src"), FILES), REF, extent_size=EXTENT)


@pytest.fixture
def version(reader: Client) -> TrustedVersion:
    return reader.info(REF)


@pytest.fixture
def files(reader: Client, version: TrustedVersion) -> Iterator[Reader]:
    found = Reader(reader._session, reader._log, reader.profile, version, purpose="look")
    yield found
    found.close()


def released(stack: Stack, since: int) -> list[dict[str, Any]]:
    entries = [stack.world.entry(index) for index in range(since, stack.world.size())]
    return [entry for entry in entries if entry["type"] in ("grant", "lease")]


def body_bytes(stack: Stack) -> int:
    """Bytes of files that the store was asked for."""
    spans = [what.removeprefix("bytes=").split("-") for name, what in stack.store.gets if "/f/" in name]
    return sum(int(last) - int(first) + 1 for first, last in spans)


# -- what is asked for ----------------------------------------------------------------------------------


def test_a_few_bytes_cost_one_segment(stack: Stack, files: Reader) -> None:
    size = stack.world.size()
    at = EXTENT + 2 * MIB
    assert files.read("big.bin", at, at + 100) == BIG[at : at + 100]
    (entry,) = released(stack, size)
    assert entry["purpose"] == "look"
    assert entry["selection"]["segments"] == 1
    assert entry["served"] == SEGMENT
    assert body_bytes(stack) == extents.HEADER_SIZE + limits.SEGMENT_SIZE
    assert files.read("big.bin", at + 50, at + 90) == BIG[at + 50 : at + 90]
    assert len(released(stack, size)) == 1, "what is kept is not asked for again"


def test_a_second_range_of_an_extent_fetches_no_header(stack: Stack, files: Reader) -> None:
    files.read("big.bin", 2 * MIB, 2 * MIB + 1)
    count = len(stack.store.gets)
    files.read("big.bin", 3 * MIB + 9, 3 * MIB + 10)
    assert len(stack.store.gets) == count + 1


def test_a_range_over_extents_asks_once(stack: Stack, files: Reader) -> None:
    size = stack.world.size()
    assert files.read("big.bin", EXTENT - 5, EXTENT + 5) == BIG[EXTENT - 5 : EXTENT + 5]
    (entry,) = released(stack, size)
    assert entry["selection"]["segments"] == 2
    assert entry["selection"]["extents"] == 1 or entry["type"] == "grant"


def test_a_whole_file_is_read_by_whole_extents(stack: Stack, files: Reader) -> None:
    size = stack.world.size()
    assert b"".join(files.iterate("big.bin", 0, len(BIG))) == BIG
    (entry,) = released(stack, size)
    assert "served" not in entry
    names = [name for name, _ in stack.store.gets]
    assert len(names) == len(set(stack.store.gets)) == 7, "six extents and one segment list, once each"


def test_a_long_range_begins_and_ends_with_spans(stack: Stack, files: Reader) -> None:
    size = stack.world.size()
    start, stop = EXTENT - 10, 3 * EXTENT + MIB
    assert b"".join(files.iterate("big.bin", start, stop)) == BIG[start:stop]
    (entry,) = released(stack, size)
    assert entry["selection"]["segments"] == 1 + 5 + 5 + 2
    plain = extents.segments_plaintext(EXTENT, 4, 4) + 2 * EXTENT + extents.segments_plaintext(EXTENT, 0, 1)
    assert entry["served"] == plain


def test_reading_in_order_reads_ahead(stack: Stack, files: Reader) -> None:
    size, buffer = stack.world.size(), bytearray(64 * 1024)
    for at in range(0, 3 * MIB, len(buffer)):
        assert files.readinto("big.bin", at, buffer) == len(buffer)
        assert buffer == BIG[at : at + len(buffer)]
    ahead = released(stack, size)
    assert len(ahead) < 5
    assert sum(entry["served"] for entry in ahead) <= 3 * MIB + 2 * 8 * MIB


def test_reading_here_and_there_does_not(stack: Stack, files: Reader) -> None:
    chance, size = random.Random(4), stack.world.size()
    places = chance.sample(range(20), 8)
    for place in places:
        at = place * MIB + MIB // 2
        assert files.read("big.bin", at, at + 10) == BIG[at : at + 10]
    assert len(released(stack, size)) == len(places)
    assert body_bytes(stack) <= len(places) * (limits.SEGMENT_SIZE + extents.HEADER_SIZE)


# -- what is handed out ---------------------------------------------------------------------------------


def test_files_of_one_segment_and_of_none(stack: Stack, files: Reader) -> None:
    assert files.read("small [x].txt", 1, 4) == b"ell"
    assert files.read("small [x].txt", 3, 100) == b"lo"
    size = stack.world.size()
    assert files.read("empty", 0, 10) == b""
    assert list(files.iterate("empty", 0, 10)) == []
    assert len(released(stack, size)) == 1, "reading an empty file is a recorded read too"


def test_past_the_end_there_is_nothing(stack: Stack, files: Reader) -> None:
    size = stack.world.size()
    assert files.read("two", MIB + 9, MIB + 10) == b""
    assert files.readinto("two", 10 * MIB, bytearray(5)) == 0
    assert list(files.iterate("two", 9, 9)) == []
    assert stack.world.size() == size


def test_what_is_not_there(files: Reader) -> None:
    for call in (files.size, lambda path: files.read(path, 0, 1), lambda path: files.iterate(path, 0, 1)):
        with pytest.raises(NotFound):
            call("none")
    with pytest.raises(InvalidRequest):
        files.read("two", -1, 1)
    with pytest.raises(InvalidRequest):
        files.iterate("two", -1, 1)


def test_pieces_stay_good_while_they_are_held(files: Reader) -> None:
    held = list(files.iterate("big.bin", 3, len(BIG)))
    assert all(len(piece) <= MIB for piece in held)
    slices = [bytes(piece[:10]) for piece in held]
    again = [piece[:10] for piece in held]
    del held
    assert b"".join(files.iterate("big.bin", 0, len(BIG))) == BIG
    assert [bytes(piece) for piece in again] == slices


def test_buffers_are_used_again(reader: Client, version: TrustedVersion) -> None:
    files = Reader(reader._session, reader._log, reader.profile, version, memory=0, jobs=1)
    seen = set()
    for piece in files.iterate("big.bin", 0, len(BIG)):
        assert isinstance(piece.obj, bytearray)
        seen.add(id(piece.obj))
    # Those read ahead, those on their way in and out; the file has more than twice as many segments.
    assert len(seen) < 10
    files.close()


def test_a_buffer_that_somebody_sees_is_theirs() -> None:
    buffers = Buffers()
    first = buffers.take()
    seen = memoryview(first)[5:9]
    buffers.give_back(first)
    assert buffers.take() is not first
    seen.release()
    buffers.give_back(first)
    assert buffers.take() is first
    assert len(first) > limits.SEGMENT_SIZE


def test_many_threads_read_one_segment_once(stack: Stack, files: Reader) -> None:
    size, at = stack.world.size(), 2 * EXTENT
    together = threading.Barrier(8)
    found: list[bytes] = []

    def read() -> None:
        together.wait()
        found.append(files.read("big.bin", at, at + 1000))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BIG[at : at + 1000]] * 8
    assert len(released(stack, size)) == 1
    assert body_bytes(stack) == extents.HEADER_SIZE + extents.FIRST_PLAINTEXT + extents.TAG_SIZE


def test_many_threads_read_many_ranges(stack: Stack, files: Reader) -> None:
    size, step = stack.world.size(), EXTENT // 2
    found: dict[int, bytes] = {}

    def read(at: int) -> None:
        found[at] = b"".join(files.iterate("big.bin", at, at + step))

    threads = [threading.Thread(target=read, args=(at,)) for at in range(0, len(BIG), step)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(found[at] for at in sorted(found)) == BIG
    assert len(released(stack, size)) <= len(threads)


def test_memory_stays_bounded_while_nobody_reads_on(
    reader: Client, version: TrustedVersion, stack: Stack
) -> None:
    files = Reader(reader._session, reader._log, reader.profile, version, memory=12 * MIB)
    pieces = files.iterate("big.bin", 0, len(BIG))
    found = [bytes(next(pieces))]
    # One extent is under way; what lies behind it does not fit beside it.
    assert files._kept._ahead <= 4 * MIB
    found.extend(map(bytes, pieces))
    assert b"".join(found) == BIG
    assert files._kept._ahead == 0
    files.close()


def test_a_reader_without_memory_still_reads(reader: Client, version: TrustedVersion) -> None:
    files = Reader(reader._session, reader._log, reader.profile, version, memory=0, jobs=1)
    assert b"".join(files.iterate("big.bin", 0, len(BIG))) == BIG
    found = bytearray(len(BIG))
    for at in range(0, len(BIG), 300_000):
        files.readinto("big.bin", at, memoryview(found)[at : at + 300_000])
    assert found == BIG
    files.close()


def test_giving_up_leaves_no_thread_behind(reader: Client, version: TrustedVersion) -> None:
    def workers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "broker-read"]

    before = set(workers())
    files = Reader(reader._session, reader._log, reader.profile, version, memory=0)
    pieces = files.iterate("big.bin", 0, len(BIG))
    next(pieces)
    buffer = bytearray(MIB)
    for at in range(0, 4 * MIB, MIB):
        files.readinto("big.bin", at, buffer)
    del pieces, files
    gc.collect()
    for thread in set(workers()) - before:
        thread.join(10)
        assert not thread.is_alive()
    files = Reader(reader._session, reader._log, reader.profile, version)
    assert files.read("big.bin", 0, 10) == BIG[:10]
    files.close()
    assert files.read("big.bin", 0, 10) == BIG[:10], "after close it begins anew"
    files.close()


# -- trouble --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "cut-head", "503", "403"])
@pytest.mark.parametrize("length", [10, len(BIG)])
def test_trouble_is_retried(stack: Stack, files: Reader, fault: str, length: int) -> None:
    stack.store.faults.extend([fault] * 2)
    assert b"".join(files.iterate("big.bin", 0, length)) == BIG[:length]


def test_what_is_leased_again_is_what_is_left(stack: Stack, files: Reader) -> None:
    files.read("two", 0, 1)
    size = stack.world.size()
    stack.store.faults.extend(["cut", "403"])
    at = 2 * MIB
    assert b"".join(files.iterate("big.bin", at, EXTENT)) == BIG[at:EXTENT]
    entries = released(stack, size)
    assert [entry["type"] for entry in entries] == ["grant", "lease"]


def test_urls_that_are_never_taken_are_an_error(stack: Stack, files: Reader) -> None:
    stack.store.faults.extend(["403"] * 50)
    with pytest.raises(StoreUnavailable):
        files.read("big.bin", 0, 1)


def test_a_flipped_bit_later_on_leaves_what_came_before(stack: Stack, files: Reader) -> None:
    name = max(stack.store.objects, key=lambda n: len(stack.store.objects[n]))
    data = bytearray(stack.store.objects[name])
    data[3 * EXTENT] ^= 1
    stack.store.objects[name] = bytes(data)
    got = bytearray()
    pieces = map(got.extend, files.iterate("big.bin", 0, len(BIG)))
    with pytest.raises(IntegrityFailure):
        list(pieces)
    assert got == BIG[: len(got)]
    assert len(got) < 3 * EXTENT


def test_a_revoked_grant_ends_reading(stack: Stack, files: Reader) -> None:
    size = stack.world.size()
    files.read("big.bin", 0, 1)
    (entry,) = released(stack, size)
    stack.world.revoke("grant", entry["grant"])
    with pytest.raises(GrantRevoked):
        files.read("big.bin", 9 * MIB, 9 * MIB + 1)


# -- the library ----------------------------------------------------------------------------------------


def test_what_a_library_lists(reader: Client) -> None:
    library = Library(reader._session, reader._log, reader.profile)
    assert "acme" in library.collections()
    (listed,) = [item for item in library.artifacts("acme") if item.name == "reading"]
    assert (listed.kind, listed.newest) == ("checkpoint", "v1")
    (found,) = library.versions("acme", "reading")
    assert (found.name, found.labels) == ("v1", {"tier": "standard"})
    assert library.artifacts("nobody") == []
    with pytest.raises(NotFound):
        library.versions("acme", "none")
    with pytest.raises(InvalidRequest):
        library.versions("acme", "../x")
    library.close()


def test_a_library_keeps_what_it_verified(
    stack: Stack, reader: Client, publisher: Client, tmp_path: Any
) -> None:
    library = Library(reader._session, reader._log, reader.profile)
    files = make_tree(tmp_path / "one", {"a": b"1"})
    publisher.publish(files, "acme/named@v1")
    first = library.version("acme", "named")
    assert library.version("acme", "named", "v1") is first
    assert library.version("acme", "named", first.digest) is first
    assert library.reader(first) is library.reader(first)
    files = make_tree(tmp_path / "two", {"a": b"2"})
    publisher.publish(files, "acme/named@v2")
    reader._session.clock = stack.world.clock
    library._names.clear()
    assert library.version("acme", "named").manifest.version == "v2"
    publisher.publish(make_tree(tmp_path / "three", {"a": b"3"}), "acme/named@v3")
    assert library.version("acme", "named").manifest.version == "v2", "for a few seconds"
    stack.world.clock.forward(6)
    assert library.version("acme", "named").manifest.version == "v3"
    assert library.reader(library.version("acme", "named", "v1")).read("a", 0, 9) == b"1"
    library.close()
