"""I09 for parts of files: whatever the store makes of a segment, it is refused before its bytes are used.

The store is in the hands of an enemy who also knows every extent key, because every former reader does:
so besides flips, swaps and cuts there are forgeries that decrypt perfectly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.client.reading import Reader
from broker.client.sdk import Client
from broker.envelope import extents, stream
from broker.envelope.stream import ExtentDecryptor
from broker.errors import BrokerError, IntegrityFailure
from broker.services import releasing
from tests.unit.client.conftest import MIB, Stack, make_tree, restored, shared_stack

__all__ = ["shared_stack"]

REF = "acme/attacked@v1"
EXTENT = 3 * MIB
PLAIN = os.urandom(2 * EXTENT + MIB // 2)
TWIN = os.urandom(len(PLAIN))
TARGET = 1, 2
"""The segment that is attacked and read: extent, segment."""
SIZES = len(PLAIN), EXTENT
START, LENGTH = extents.segments_range(*SIZES, TARGET[0], TARGET[1], TARGET[1])
"""Where it is in the object."""


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module")
def client(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Client:
    publisher = shared_stack.add("pub", roles=("publisher", "engineer"), groups=("acme",))
    files = {"a.bin": PLAIN, "b.bin": TWIN}
    for ref in (REF, "acme/attacked@v2"):
        publisher.publish(make_tree(tmp_path_factory.mktemp("src"), files), ref, extent_size=EXTENT)
    return publisher


class Attack:
    """The store of one version, and everything that its worst enemy knows."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self.objects = stack.store.objects
        self.version = client.info(REF)
        self.other = client.info("acme/attacked@v2")
        self.keys = self._keys(stack)
        self.name, self.twin = (releasing.object_name(self.id, file) for file in (0, 1))
        self.list = releasing.segments_name(self.id, 0)
        self.other_name = releasing.object_name(self.other.manifest.version_id, 0)

    @property
    def id(self) -> bytes:
        return self.version.manifest.version_id

    def _keys(self, stack: Stack) -> Callable[[str, int], bytes]:
        from broker.model import Version

        with stack.world.ledger.view() as view:
            row = view.find(Version, "acme", "attacked", "v1")
        assert row is not None
        key = stack.world.house.custody.unwrap(row.wrapped_key, releasing.version_aad(row))
        return lambda path, index: extents.extent_key(key, self.id, path, index)

    def bound(self, path: str, index: int) -> bytes:
        count = len(self.version.manifest.files[0].extents)
        return extents.associated_data(
            artifact="acme/attacked", version_id=self.id, path=path, extent=index, extents=count
        )

    def put(self, name: str, start: int, data: bytes) -> None:
        held = self.objects[name]
        self.objects[name] = held[:start] + data + held[start + len(data) :]

    def segment(self, name: str, extent: int, segment: int) -> bytes:
        start, length = extents.segments_range(*SIZES, extent, segment, segment)
        return self.objects[name][start : start + length]

    def forge(self, plain: bytes) -> None:
        """Encrypt another plaintext for the whole extent with its own key, header and all."""
        sealed = stream.encrypt_extent(
            self.keys("a.bin", TARGET[0]),
            self.bound("a.bin", TARGET[0]),
            plain,
            salt=os.urandom(32),
            nonce_prefix=os.urandom(7),
        )
        self.put(self.name, extents.extent_range(*SIZES, TARGET[0])[0], sealed)


def forge_one_bit(attack: Attack) -> None:
    plain = bytearray(PLAIN[EXTENT : 2 * EXTENT])
    plain[2 * MIB + 77] ^= 1
    attack.forge(bytes(plain))


def forge_a_move(attack: Attack) -> None:
    attack.forge(PLAIN[:EXTENT])


def under_the_same_nonce(attack: Attack) -> None:
    """The forger keeps the header and seals another segment in its very place."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    begin = extents.extent_range(*SIZES, TARGET[0])[0]
    header = attack.objects[attack.name][begin : begin + extents.HEADER_SIZE]
    key = HKDF(hashes.SHA256(), 32, header[1:33], attack.bound("a.bin", TARGET[0])).derive(
        attack.keys("a.bin", TARGET[0])
    )
    last = extents.segment_count(EXTENT) - 1 == TARGET[1]
    nonce = header[33:] + TARGET[1].to_bytes(4, "big") + bytes([last])
    forged = AESGCM(key).encrypt(nonce, bytes(LENGTH - extents.TAG_SIZE), None)
    assert ExtentDecryptor(
        attack.keys("a.bin", TARGET[0]), attack.bound("a.bin", TARGET[0]), header, EXTENT
    ).decrypt_segment(TARGET[1], forged, bytearray(LENGTH))
    attack.put(attack.name, START, forged)


def flip(where: int) -> Callable[[Attack], None]:
    def change(attack: Attack) -> None:
        attack.put(attack.name, where, bytes([attack.objects[attack.name][where] ^ 0x10]))

    return change


def flip_the_list(attack: Attack) -> None:
    attack.put(attack.list, 100, bytes([attack.objects[attack.list][100] ^ 1]))


def swap(extent: int, segment: int) -> Callable[[Attack], None]:
    def change(attack: Attack) -> None:
        other = attack.segment(attack.name, extent, segment)
        assert len(other) == LENGTH
        attack.put(attack.name, START, other)

    return change


ATTACKS: dict[str, Callable[[Attack], None]] = {
    "first bit of the segment": flip(START),
    "a bit in the middle": flip(START + LENGTH // 2),
    "a bit of the tag": flip(START + LENGTH - 1),
    "a bit of the header's size": flip(extents.extent_range(*SIZES, 1)[0]),
    "a bit of the header's salt": flip(extents.extent_range(*SIZES, 1)[0] + 5),
    "a bit of the header's nonce": flip(extents.extent_range(*SIZES, 1)[0] + 39),
    "a bit of the segment list": flip_the_list,
    "another segment of the extent": swap(1, 1),
    "the same segment of another extent": swap(0, 2),
    "the same segment of another file": lambda attack: attack.put(
        attack.name, START, attack.segment(attack.twin, *TARGET)
    ),
    "the whole object of another file": lambda attack: attack.objects.update(
        {attack.name: attack.objects[attack.twin]}
    ),
    "the whole object of another version": lambda attack: attack.objects.update(
        {attack.name: attack.objects[attack.other_name]}
    ),
    "a cut object": lambda attack: attack.objects.update(
        {attack.name: attack.objects[attack.name][: START + LENGTH - 1]}
    ),
    "a cut before it": lambda attack: attack.objects.update(
        {attack.name: attack.objects[attack.name][:START]}
    ),
    "nothing": lambda attack: attack.objects.update({attack.name: b""}),
    "zeros": lambda attack: attack.put(attack.name, START, bytes(LENGTH)),
    "a forgery with the extent's key": forge_one_bit,
    "a forgery that moves an extent": forge_a_move,
    "a forgery under the same nonce": under_the_same_nonce,
}


def begin_of(place: tuple[int, int]) -> int:
    return place[0] * EXTENT + extents.segment_plaintext_range(EXTENT, place[1])[0]


@pytest.mark.parametrize("how", ["one segment", "over a border", "a long range", "in order"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_I09_no_byte_of_a_changed_segment_is_used(
    stack: Stack, client: Client, attack: Callable[[Attack], None], how: str
) -> None:
    attack(Attack(stack, client))
    reader = Reader(client._session, client._log, client.profile, client.info(REF))
    begin, end = begin_of(TARGET), 2 * EXTENT
    start, stop = {
        "one segment": (begin + 10, begin + 20),
        "over a border": (begin - 10, begin + 10),
        "a long range": (0, len(PLAIN)),
        "in order": (begin_of((0, 1)), end),
    }[how]
    got = bytearray()
    with pytest.raises(BrokerError) as refused:
        take(reader, start, stop, got, step=300_000 if how == "in order" else None)
    assert refused.value.code in ("integrity", "store_unavailable")
    assert got == PLAIN[start : start + len(got)], "what came before it is what was published"
    assert not got or start + len(got) <= begin
    reader.close()


def take(reader: Reader, start: int, stop: int, got: bytearray, *, step: int | None) -> None:
    if step is None:
        for piece in reader.iterate("a.bin", start, stop):
            got += piece
        return
    for at in range(start, stop, step):
        buffer = bytearray(min(step, stop - at))
        assert reader.readinto("a.bin", at, buffer) == len(buffer)
        got += buffer


def test_I09_the_untouched_store_is_read(stack: Stack, client: Client) -> None:
    reader = Reader(client._session, client._log, client.profile, client.info(REF))
    for start, stop in ((0, len(PLAIN)), (begin_of(TARGET) - 10, begin_of(TARGET) + 10)):
        assert reader.read("a.bin", start, stop) == PLAIN[start:stop]
    reader.close()


def test_I09_a_refused_segment_is_not_kept(stack: Stack, client: Client) -> None:
    whole: dict[str, Any] = dict(stack.store.objects)
    flip(START + 5)(Attack(stack, client))
    reader = Reader(client._session, client._log, client.profile, client.info(REF))
    at = begin_of(TARGET)
    for _ in range(2):
        with pytest.raises(IntegrityFailure):
            reader.read("a.bin", at, at + 5)
    stack.store.objects.update(whole)
    assert reader.read("a.bin", at, at + 5) == PLAIN[at : at + 5]
    reader.close()
