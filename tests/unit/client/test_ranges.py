"""Random access: what is handed out is what was published, wherever it is read."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator

import pytest

from broker.client import source
from broker.client.sdk import Client
from broker.errors import IntegrityFailure, InvalidRequest, NotFound, Unreachable
from tests.unit.client.conftest import MIB, Stack, make_tree, restored

BIG = os.urandom(9 * MIB + 77)
FILES = {"big.bin": BIG, "small [x].txt": b"hello", "empty": b""}
REF = "acme/ranges@v1"


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _published(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    publisher = shared_stack.add("first", roles=("publisher", "engineer"), groups=("acme",))
    publisher.publish(make_tree(tmp_path_factory.mktemp("src"), FILES), REF, extent_size=4 * MIB)


def test_reading_in_order(stack: Stack, reader: Client) -> None:
    with reader.open(f"{REF}/big.bin", purpose="look") as file:
        assert file.read() == BIG
    names = {name for name, _ in stack.store.gets}
    assert len(stack.store.gets) == 4, "three extents and one segment list, each asked for once"
    assert len(names) == 2


def test_reading_anywhere(reader: Client) -> None:
    chance = random.Random(7)
    with reader.open(f"{REF}/big.bin") as file:
        assert file.seekable()
        for _ in range(25):
            at, size = chance.randrange(len(BIG) + 10), chance.choice([1, 17, 40_000, MIB + 3])
            assert file.seek(at) == at
            assert file.read(size) == BIG[at : at + size]
        assert file.seek(-5, io.SEEK_END) == len(BIG) - 5
        assert file.read() == BIG[-5:]
        assert file.read() == b""


def test_small_and_empty_files(stack: Stack, reader: Client) -> None:
    with reader.open(f"{REF}/small [x].txt") as file:
        assert file.read(2) == b"he"
        assert file.read() == b"llo"
    size = stack.world.size()
    with reader.open(f"{REF}/empty") as file:
        assert file.read() == b""
    types = [stack.world.entry(index)["type"] for index in range(size, stack.world.size())]
    assert "grant" in types, "reading an empty file is a recorded read too"


def test_what_is_not_there(reader: Client) -> None:
    with pytest.raises(NotFound):
        reader.open(f"{REF}/none")
    with pytest.raises(InvalidRequest):
        reader.open(REF)


def test_only_whole_verified_segments_are_handed_out(stack: Stack, reader: Client) -> None:
    name = max(stack.store.objects, key=lambda n: len(stack.store.objects[n]))
    data = bytearray(stack.store.objects[name])
    data[2 * MIB + 100] ^= 1
    stack.store.objects[name] = bytes(data)
    with reader.open(f"{REF}/big.bin") as file:
        assert file.read(1000) == BIG[:1000]
        file.seek(2 * MIB + 5)
        with pytest.raises(IntegrityFailure):
            file.read(10)
        file.seek(5 * MIB)
        assert file.read(10) == BIG[5 * MIB : 5 * MIB + 10]


def test_a_tampered_segment_list_is_refused(stack: Stack, reader: Client) -> None:
    [name] = [n for n in stack.store.objects if "/s/" in n]
    data = bytearray(stack.store.objects[name])
    data[-20] ^= 1
    stack.store.objects[name] = bytes(data)
    with reader.open(f"{REF}/big.bin") as file, pytest.raises(IntegrityFailure):
        file.read(10)


@pytest.mark.parametrize("fault", ["cut", "503", "403"])
def test_trouble_is_retried(stack: Stack, reader: Client, fault: str) -> None:
    stack.store.faults.extend([fault] * 2)
    with reader.open(f"{REF}/big.bin") as file:
        file.seek(6 * MIB)
        assert file.read(100) == BIG[6 * MIB : 6 * MIB + 100]


def test_lasting_trouble_is_an_error(stack: Stack, reader: Client) -> None:
    stack.store.faults.extend(["503"] * 50)
    with reader.open(f"{REF}/big.bin") as file, pytest.raises(Unreachable):
        file.read(1)
    assert len(stack.store.faults) == 50 - source.ATTEMPTS
