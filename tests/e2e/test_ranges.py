"""Parts of files on the real stack: what is read, what is written down, and what the store had to serve."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from broker import limits
from broker.client import rawhttp
from broker.client.library import Library
from broker.client.reading import Reader
from broker.envelope import extents
from tests.e2e.running import MIB, Stack, User, noise, write_tree

FILE = "model.safetensors"
EXTENT = 32 * MIB
SIZE = 64 * MIB
REF = "acme/tensors@v1"
HEAD = 1024
"""Bytes of the format's own header, without its length."""
HTTP_HEAD = 2048
"""Bytes of an answer that are not its body, at most."""


def safetensors() -> bytes:
    """A file of that format: two large tensors, and a small one between them."""
    lengths = {"embed": 20 * MIB, "norm": 3 * MIB // 2, "head": 30 * MIB}
    lengths["rest"] = SIZE - 8 - HEAD - sum(lengths.values())
    table, at = {}, 0
    for name, length in lengths.items():
        table[name] = {"dtype": "U8", "shape": [length], "data_offsets": [at, at + length]}
        at += length
    return struct.pack("<Q", HEAD) + json.dumps(table).encode().ljust(HEAD) + noise(at, "tensors")


DATA = safetensors()


@pytest.fixture(scope="module", autouse=True)
def _published(tmp_path_factory: pytest.TempPathFactory, pub: User) -> None:
    folder = write_tree(tmp_path_factory.mktemp("tensors") / "t", {FILE: DATA})
    pub.cli("put", folder, REF)


class Relay:
    """Stands before the store and counts the bytes that the store sends. It changes nothing."""

    def __init__(self, real: Any) -> None:
        self._connect = real
        self.sent = 0
        self._lock = threading.Lock()

    def connect(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = self._connect(listener.getsockname(), timeout=timeout)
            far, _ = listener.accept()
        store = self._connect(address, timeout=timeout)
        store.settimeout(None)
        for source, sink, counted in ((far, store, False), (store, far, True)):
            threading.Thread(target=self._pass_on, args=(source, sink, counted), daemon=True).start()
        return near

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(256 * 1024):
                with self._lock:
                    self.sent += len(data) if counted else 0
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()


class _Sockets:
    """The module ``socket`` as ``rawhttp`` sees it, with connections that lead through a relay."""

    def __init__(self, relay: Relay) -> None:
        self.create_connection = relay.connect

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    found = Relay(socket.create_connection)
    monkeypatch.setattr(rawhttp, "socket", _Sockets(found))
    return found


@pytest.fixture
def reader(ana: User) -> Iterator[Reader]:
    with ana.client() as client:
        library = client.library(purpose="one tensor")
        yield library.reader(library.version("acme", "tensors", "v1"))
        library.close()


def released(stack: Stack, since: int) -> list[dict[str, Any]]:
    return [entry for entry in stack.entries()[since:] if entry["type"] in ("grant", "lease")]


def test_one_tensor_touches_its_segments_and_no_more(stack: Stack, reader: Reader, relay: Relay) -> None:
    size = stack.size()
    (length,) = struct.unpack("<Q", reader.read(FILE, 0, 8))
    table = json.loads(reader.read(FILE, 8, 8 + length))
    first, last = (8 + length + at for at in table["norm"]["data_offsets"])
    assert reader.read(FILE, first, last) == DATA[first:last]

    touched = {at: _segment(at) for at in (0, first, last - 1)}
    assert touched[first][0] == touched[last - 1][0] == 0, "all of it is in the first extent"
    count = touched[last - 1][1] - touched[first][1] + 1
    entries = released(stack, size)
    assert [entry["selection"]["segments"] for entry in entries] == [1, count]
    assert count == 2
    assert entries[0]["purpose"] == "one tensor"
    assert entries[0]["served"] == extents.segments_plaintext(EXTENT, 0, 0)
    assert entries[1]["served"] == extents.segments_plaintext(
        EXTENT, *(touched[at][1] for at in (first, last - 1))
    )
    assert entries[1]["bytes"] == EXTENT, "the key opens the extent"

    digests = extents.segments_object_size(SIZE, EXTENT)
    needed = (1 + count) * limits.SEGMENT_SIZE + digests + extents.HEADER_SIZE
    assert needed - 100 <= relay.sent <= needed + 4 * HTTP_HEAD


def _segment(position: int) -> tuple[int, int]:
    extent, inside = divmod(position, EXTENT)
    return extent, extents.segment_span(EXTENT, inside, inside + 1)[0]


def test_the_whole_file_is_few_entries(stack: Stack, reader: Reader, relay: Relay) -> None:
    size = stack.size()
    assert b"".join(reader.iterate(FILE, 0, SIZE)) == DATA
    entries = released(stack, size)
    # The stack's window is one extent of this size.
    assert len(entries) == SIZE // EXTENT
    assert all("served" not in entry for entry in entries)
    assert relay.sent <= extents.object_size(SIZE, EXTENT) + extents.segments_object_size(SIZE, EXTENT) + (
        4 * HTTP_HEAD
    )


def test_reading_in_order_with_open(ana: User) -> None:
    with ana.client() as client, client.open(f"{REF}/{FILE}") as file:
        at = 0
        while piece := file.read(700_001):
            assert piece == DATA[at : at + len(piece)]
            at += len(piece)
        assert at == SIZE


def test_cat_of_a_range(stack: Stack, ana: User) -> None:
    size, at = stack.size(), 40 * MIB + 5
    assert ana.cli("cat", f"{REF}/{FILE}", "--range", f"{at}-{at + 99}").data == DATA[at : at + 100]
    (entry,) = released(stack, size)
    assert entry["selection"]["segments"] == 1


def test_cat_of_everything(ana: User) -> None:
    assert ana.cli("cat", f"{REF}/{FILE}").data == DATA


def test_the_auditor_sees_which_segments(stack: Stack, ana: User, aud: User) -> None:
    size = stack.size()
    ana.cli("cat", f"{REF}/{FILE}", "--range", f"{EXTENT + 3 * MIB}-{EXTENT + 3 * MIB}")
    index = next(at for at, entry in enumerate(stack.entries()) if at >= size and entry["type"] == "grant")
    shown = aud.cli("ledger", "show", str(index), "-o", "json").json()
    assert shown["record"]["spans"] == [[0, 1, 3, 3]]
    assert shown["record"]["extents"] == [[0, 1, 1]]
    assert shown["entry"]["selection"]["segments"] == 1
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True


def test_a_stranger_reads_no_segment(eve: User) -> None:
    eve.cli("cat", f"{REF}/{FILE}", "--range", "0-7", expect=5)


def test_a_library_of_the_real_thing(ana: User) -> None:
    with ana.client() as client:
        library: Library = client.library()
        assert "acme" in library.collections()
        assert "tensors" in {listed.name for listed in library.artifacts("acme")}
        assert [version.name for version in library.versions("acme", "tensors")] == ["v1"]
        library.close()
