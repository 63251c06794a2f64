"""I09: what was changed, cut, reordered or swapped is refused before its bytes are used.

Three readers look at a store that an attacker may rewrite at will: two fetch whole files, one reads
ranges through the segment list. A fourth, the cipher alone, is what stands against an attacker who
never had a key; the digests stand against one who has them all, as any past reader has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import pytest

from broker import jose, limits
from broker.envelope import digest, extents, manifest, reader, stream
from broker.envelope.extents import HEADER_SIZE, SEGMENT_PLAINTEXT
from broker.envelope.manifest import Manifest, ManifestFile
from broker.errors import IntegrityFailure

MIB = limits.MIB
EXTENT = MIB
"""Two segments each: one of 1,048,520 bytes and one of 56."""
PUBLISHER = jose.PrivateKey.generate()
SIZES = {"a.bin": 3 * MIB, "b.bin": 3 * MIB, "small.json": 100}


@dataclass
class Published:
    """A version and the store that holds it; ``objects`` and ``lists`` are the attacker's to rewrite."""

    version_id: bytes
    version_key: bytes
    manifest: bytes
    signature: str
    objects: dict[str, bytes] = field(default_factory=dict)
    lists: dict[str, bytes] = field(default_factory=dict)

    @property
    def parsed(self) -> Manifest:
        manifest.verify_manifest(self.manifest, self.signature, PUBLISHER.jwk)
        return manifest.parse_manifest(self.manifest)

    def key(self, path: str, index: int) -> bytes:
        return extents.extent_key(self.version_key, self.version_id, path, index)

    def bound(self, path: str, index: int) -> bytes:
        count = extents.extent_count(SIZES[path], EXTENT)
        return extents.associated_data(
            artifact="acme/llama", version_id=self.version_id, path=path, extent=index, extents=count
        )

    def list_key(self, path: str) -> tuple[bytes, bytes, int]:
        count = extents.file_segment_count(SIZES[path], EXTENT)
        bound = extents.segments_associated_data(
            artifact="acme/llama", version_id=self.version_id, path=path, segments=count
        )
        return extents.segments_key(self.version_key, self.version_id, path), bound, count


def content(version: str, path: str) -> bytes:
    return hashlib.shake_128(f"{version} {path}".encode()).digest(SIZES[path])


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def segments_of(extent: bytes) -> list[bytes]:
    places = [
        extents.segment_plaintext_range(len(extent), i) for i in range(extents.segment_count(len(extent)))
    ]
    return [extent[start : start + length] for start, length in places]


def digests_of(extent: bytes) -> list[bytes]:
    return [digest.segment_digest(segment) for segment in segments_of(extent)]


def encrypt(version: Published, path: str, index: int, plaintext: bytes) -> bytes:
    key, bound = version.key(path, index), version.bound(path, index)
    salt = hashlib.sha256(bound + plaintext).digest()
    return stream.encrypt_extent(key, bound, plaintext, salt=salt, nonce_prefix=salt[:7])


def encrypt_list(version: Published, path: str, digests: list[bytes]) -> bytes:
    key, bound, _ = version.list_key(path)
    data = digest.segment_list_bytes([digests])
    return stream.encrypt_extent(key, bound, data, salt=bytes(32), nonce_prefix=bytes(7))


@cache
def original(name: str) -> Published:
    files = []
    for path in sorted(SIZES):
        pieces = cut(content(name, path), EXTENT)
        listed = digest.segment_list_bytes(digests_of(piece) for piece in pieces)
        files.append(
            ManifestFile(
                path=path,
                size=SIZES[path],
                sha256=hashlib.sha256(content(name, path)).digest(),
                extents=tuple(digest.extent_digest(digests_of(piece)) for piece in pieces),
                segments=hashlib.sha256(listed).digest(),
            )
        )
    version_id, version_key = (hashlib.shake_128(f"{what} {name}".encode()).digest(n) for what, n in IDS)
    data = manifest.manifest_bytes(
        Manifest(
            artifact="acme/llama",
            version=name,
            version_id=version_id,
            kind="checkpoint",
            labels={"tier": "standard"},
            extent_size=EXTENT,
            files=tuple(files),
        )
    )
    made = Published(version_id, version_key, data, manifest.sign_manifest(data, PUBLISHER))
    for path in SIZES:
        pieces = cut(content(name, path), EXTENT)
        made.objects[path] = b"".join(encrypt(made, path, i, piece) for i, piece in enumerate(pieces))
        if extents.has_segments_object(SIZES[path], EXTENT):
            made.lists[path] = encrypt_list(
                made, path, [found for piece in pieces for found in digests_of(piece)]
            )
    return made


IDS = (("id", 16), ("key", 32))


def publish(name: str = "v1") -> Published:
    made = original(name)
    return Published(
        made.version_id,
        made.version_key,
        made.manifest,
        made.signature,
        dict(made.objects),
        dict(made.lists),
    )


# -- the readers ----------------------------------------------------------------------------------------


def places(version: Published, path: str) -> Iterator[tuple[int, bytes, int, bytes]]:
    """For each extent: its index, ciphertext as the store gives it, plaintext size, signed digest."""
    file = next(file for file in version.parsed.files if file.path == path)
    for index, expected in enumerate(file.extents):
        start, length = extents.extent_range(file.size, EXTENT, index)
        size = extents.extent_plaintext_size(file.size, EXTENT, index)
        yield index, version.objects[path][start : start + length], size, expected


def read_whole(version: Published, path: str) -> bytes:
    found = b""
    for index, sealed, size, expected in places(version, path):
        key, bound = version.key(path, index), version.bound(path, index)
        found += reader.open_extent(key, bound, sealed, plaintext_size=size, extent_digest=expected)
    return found


def read_as_it_arrives(version: Published, path: str) -> bytes:
    """Segment after segment into one buffer; an extent counts when its reader has finished."""
    found, out = b"", bytearray(SEGMENT_PLAINTEXT)
    for index, sealed, size, expected in places(version, path):
        key, bound = version.key(path, index), version.bound(path, index)
        extent = reader.ExtentReader(
            key, bound, sealed[:HEADER_SIZE], plaintext_size=size, extent_digest=expected
        )
        opened = b""
        for segment in range(extent.segments):
            at, room = extents.segment_ciphertext_range(size, segment)
            opened += out[: extent.read_segment(sealed[at : at + room], out)]
        extent.finish()
        found += opened
    return found


def read_ranges(version: Published, path: str) -> bytes:
    """Every segment alone, last first, as a range reader meets them."""
    key, bound, count = version.list_key(path)
    opened = stream.decrypt_extent(key, bound, version.lists[path], plaintext_size=32 * count)
    digests = digest.parse_segment_list(opened, count)
    found: dict[tuple[int, int], bytes] = {}
    for index, sealed, size, expected in places(version, path):
        first, here = extents.segments_slice(SIZES[path], EXTENT, index)
        ranged = reader.RangeReader(
            version.key(path, index),
            version.bound(path, index),
            sealed[:HEADER_SIZE],
            plaintext_size=size,
            extent_digest=expected,
            segment_digests=digests[first : first + here],
        )
        for segment in reversed(range(ranged.segments)):
            at, room = extents.segment_ciphertext_range(size, segment)
            out = bytearray(SEGMENT_PLAINTEXT)
            try:
                length = ranged.read_segment(segment, sealed[at : at + room], out)
            except IntegrityFailure:
                assert not any(out), "plaintext that was refused is left in the reader's buffer"
                raise
            found[index, segment] = bytes(out[:length])
    return b"".join(found[place] for place in sorted(found))


def read_by_cipher_alone(version: Published, path: str) -> bytes:
    found = b""
    for index, sealed, size, _ in places(version, path):
        key, bound = version.key(path, index), version.bound(path, index)
        found += stream.decrypt_extent(key, bound, sealed, plaintext_size=size)
    return found


VERIFIED = [read_whole, read_as_it_arrives, read_ranges]
READERS = [*VERIFIED, read_by_cipher_alone]
with_each_reader = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
Reader = Callable[[Published, str], bytes]


@with_each_reader
def test_I09_what_was_published_is_read(read: Reader) -> None:
    version = publish()
    for path in ("a.bin", "b.bin"):
        assert read(version, path) == content("v1", path)


# -- an attacker with the store --------------------------------------------------------------------------


def splice(version: Published, path: str, moves: list[tuple[int, int, int]]) -> None:
    """Copy ``length`` bytes of the original object from ``source`` over ``target``, for each move."""
    changed, kept = bytearray(version.objects[path]), version.objects[path]
    for target, source, length in moves:
        changed[target : target + length] = kept[source : source + length]
    version.objects[path] = bytes(changed)


SEALED = extents.ciphertext_size(EXTENT)
FIRST, FIRST_ROOM = extents.segment_ciphertext_range(EXTENT, 0)
SECOND, SECOND_ROOM = extents.segment_ciphertext_range(EXTENT, 1)


@with_each_reader
@pytest.mark.parametrize(
    "at", [0, 1, 32, 33, 39, 40, 5000, SECOND - 1, SECOND, SEALED - 1, SEALED, 3 * SEALED - 1]
)
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_I09_a_flipped_bit(read: Reader, at: int, bit: int) -> None:
    version = publish()
    changed = bytearray(version.objects["a.bin"])
    changed[at] ^= bit
    version.objects["a.bin"] = bytes(changed)
    with pytest.raises(IntegrityFailure):
        read(version, "a.bin")


@with_each_reader
@pytest.mark.parametrize(
    "size",
    [0, 1, HEADER_SIZE, SECOND, SEALED - 1, SEALED, 2 * SEALED, 3 * SEALED - SECOND_ROOM, 3 * SEALED - 1],
)
def test_I09_a_truncated_object(read: Reader, size: int) -> None:
    version = publish()
    version.objects["a.bin"] = version.objects["a.bin"][:size]
    with pytest.raises(IntegrityFailure):
        read(version, "a.bin")


@pytest.mark.parametrize("more", [b"\x00", bytes(16), bytes(MIB)])
def test_I09_an_extended_extent(more: bytes) -> None:
    version = publish()
    index, sealed, size, expected = next(places(version, "a.bin"))
    key, bound = version.key("a.bin", index), version.bound("a.bin", index)
    with pytest.raises(IntegrityFailure):
        reader.open_extent(key, bound, sealed + more, plaintext_size=size, extent_digest=expected)


@with_each_reader
@pytest.mark.parametrize(
    "moves",
    [
        # The second segments of extents 0 and 1 change places.
        [(SECOND, SEALED + SECOND, SECOND_ROOM), (SEALED + SECOND, SECOND, SECOND_ROOM)],
        # Extents 0 and 1 change places; extents 1 and 2 do.
        [(0, SEALED, SEALED), (SEALED, 0, SEALED)],
        [(SEALED, 2 * SEALED, SEALED), (2 * SEALED, SEALED, SEALED)],
        # Extent 0 twice.
        [(SEALED, 0, SEALED)],
        # A header from another extent.
        [(0, SEALED, HEADER_SIZE)],
    ],
)
def test_I09_segments_or_extents_in_another_order(read: Reader, moves: list[tuple[int, int, int]]) -> None:
    version = publish()
    splice(version, "a.bin", moves)
    with pytest.raises(IntegrityFailure):
        read(version, "a.bin")


@with_each_reader
def test_I09_files_swapped(read: Reader) -> None:
    version = publish()
    version.objects["a.bin"], version.objects["b.bin"] = version.objects["b.bin"], version.objects["a.bin"]
    with pytest.raises(IntegrityFailure):
        read(version, "a.bin")


@with_each_reader
def test_I09_the_same_file_of_another_version(read: Reader) -> None:
    version, older = publish("v2"), publish("v1")
    version.objects["a.bin"] = older.objects["a.bin"]
    with pytest.raises(IntegrityFailure):
        read(version, "a.bin")


@pytest.mark.parametrize("where", ["extent", "file", "version"])
def test_I09_the_place_is_bound_even_if_keys_were_the_same(where: str) -> None:
    # The associated data alone, as if every extent had one key: a swap is refused all the same.
    one, other = publish("v1"), publish("v2")
    key, plaintext = bytes(32), b"x" * 100
    bound = {
        "extent": one.bound("a.bin", 1),
        "file": one.bound("b.bin", 0),
        "version": other.bound("a.bin", 0),
    }[where]
    sealed = stream.encrypt_extent(key, bound, plaintext, salt=bytes(32), nonce_prefix=bytes(7))
    with pytest.raises(IntegrityFailure):
        stream.decrypt_extent(key, one.bound("a.bin", 0), sealed, plaintext_size=100)


@pytest.mark.parametrize("where", ["extent", "file", "version"])
def test_I09_keys_differ_even_if_places_were_the_same(where: str) -> None:
    one, other = publish("v1"), publish("v2")
    key = {"extent": one.key("a.bin", 1), "file": one.key("b.bin", 0), "version": other.key("a.bin", 0)}[
        where
    ]
    sealed = stream.encrypt_extent(key, bytes(32), b"x" * 100, salt=bytes(32), nonce_prefix=bytes(7))
    with pytest.raises(IntegrityFailure):
        stream.decrypt_extent(one.key("a.bin", 0), bytes(32), sealed, plaintext_size=100)


def test_I09_segments_of_one_extent_in_another_order() -> None:
    # Three segments, the middle two of equal size: only the counter in the nonce tells them apart.
    size = extents.FIRST_PLAINTEXT + 2 * SEGMENT_PLAINTEXT + 1
    plaintext = hashlib.shake_128(b"order").digest(size)
    sealed = stream.encrypt_extent(bytes(32), bytes(32), plaintext, salt=bytes(32), nonce_prefix=bytes(7))
    (one, room), (two, _) = (extents.segment_ciphertext_range(size, index) for index in (1, 2))
    swapped = sealed[:one] + sealed[two : two + room] + sealed[one : one + room] + sealed[two + room :]
    assert len(swapped) == len(sealed)
    with pytest.raises(IntegrityFailure):
        stream.decrypt_extent(bytes(32), bytes(32), swapped, plaintext_size=size)


def test_I09_a_shorter_extent_made_of_the_first_segments() -> None:
    # As if the attacker could also make the reader expect the shorter size: the last flag tells.
    sealed = publish().objects["a.bin"][:SECOND]
    version = publish()
    with pytest.raises(IntegrityFailure):
        stream.decrypt_extent(
            version.key("a.bin", 0), version.bound("a.bin", 0), sealed, plaintext_size=extents.FIRST_PLAINTEXT
        )


@pytest.mark.parametrize("at", [0, 20, 40, 100, -1])
def test_I09_a_changed_segment_list(at: int) -> None:
    version = publish()
    changed = bytearray(version.lists["a.bin"])
    changed[at] ^= 1
    version.lists["a.bin"] = bytes(changed)
    with pytest.raises(IntegrityFailure):
        read_ranges(version, "a.bin")


def test_I09_the_segment_list_of_another_file() -> None:
    version = publish()
    version.lists["a.bin"] = version.lists["b.bin"]
    with pytest.raises(IntegrityFailure):
        read_ranges(version, "a.bin")


# -- an attacker with the store and every key ---------------------------------------------------------------


def forge(version: Published, path: str, pieces: list[bytes]) -> None:
    """Other content, encrypted as well as the publisher could have done it."""
    version.objects[path] = b"".join(encrypt(version, path, i, piece) for i, piece in enumerate(pieces))


with_each_verified_reader = pytest.mark.parametrize("read", VERIFIED, ids=lambda read: read.__name__)


def forgeries() -> dict[str, list[bytes]]:
    good = cut(content("v1", "a.bin"), EXTENT)
    last = bytearray(good[2])
    last[-1] ^= 1
    return {
        "one bit": [good[0], good[1], bytes(last)],
        "extents in another order": [good[1], good[0], good[2]],
        "another file": cut(content("v1", "b.bin"), EXTENT),
        "another version": cut(content("v2", "a.bin"), EXTENT),
        "zeros": [bytes(EXTENT)] * 3,
    }


@with_each_verified_reader
@pytest.mark.parametrize("name", list(forgeries()))
def test_I09_a_forger_who_knows_every_key(read: Reader, name: str) -> None:
    version = publish()
    forge(version, "a.bin", forgeries()[name])
    with pytest.raises(IntegrityFailure):
        read(version, "a.bin")


@pytest.mark.parametrize("name", list(forgeries()))
def test_I09_a_forger_who_also_rewrites_the_segment_list(name: str) -> None:
    version = publish()
    pieces = forgeries()[name]
    forge(version, "a.bin", pieces)
    version.lists["a.bin"] = encrypt_list(
        version, "a.bin", [found for piece in pieces for found in digests_of(piece)]
    )
    with pytest.raises(IntegrityFailure):
        read_ranges(version, "a.bin")


def test_I09_a_forger_of_a_file_without_a_segment_list() -> None:
    version = publish()
    forge(version, "small.json", [b"{}" * 50])
    with pytest.raises(IntegrityFailure):
        read_whole(version, "small.json")
    assert read_whole(publish(), "small.json") == content("v1", "small.json")


def test_I09_one_honest_segment_cannot_vouch_for_another() -> None:
    # The right digests in another order are refused as a list, before any segment is looked at.
    version = publish()
    index, sealed, size, expected = next(places(version, "a.bin"))
    digests = digests_of(content("v1", "a.bin")[:EXTENT])

    def open_with(listed: list[bytes]) -> reader.RangeReader:
        return reader.RangeReader(
            version.key("a.bin", index),
            version.bound("a.bin", index),
            sealed[:HEADER_SIZE],
            plaintext_size=size,
            extent_digest=expected,
            segment_digests=listed,
        )

    assert open_with(digests).segments == 2
    with pytest.raises(IntegrityFailure):
        open_with(digests[::-1])


# -- an attacker with the catalogue -------------------------------------------------------------------------


@with_each_verified_reader
def test_I09_a_changed_manifest(read: Reader) -> None:
    version = publish()
    forged = cut(content("v2", "a.bin"), EXTENT)
    forge(version, "a.bin", forged)
    expected = [digest.extent_digest(digests_of(piece)) for piece in cut(content("v1", "a.bin"), EXTENT)]
    text = version.manifest
    for old, piece in zip(expected, forged, strict=True):
        new = digest.extent_digest(digests_of(piece))
        assert old.hex().encode() in text
        text = text.replace(old.hex().encode(), new.hex().encode())
    version.manifest = text
    assert manifest.parse_manifest(text)
    with pytest.raises(IntegrityFailure):
        read(version, "a.bin")


def test_I09_a_manifest_signed_by_somebody_else() -> None:
    version = publish()
    version.signature = manifest.sign_manifest(version.manifest, jose.PrivateKey.generate())
    with pytest.raises(IntegrityFailure):
        read_whole(version, "a.bin")


@pytest.mark.parametrize("step", range(0, 1000, 97))
def test_I09_a_flipped_bit_of_the_manifest(step: int) -> None:
    version = publish()
    changed = bytearray(version.manifest)
    changed[step % len(changed)] ^= 1
    version.manifest = bytes(changed)
    with pytest.raises(IntegrityFailure):
        read_whole(version, "a.bin")
