"""Tiles: names in one spelling, the tree's hashes in them, bundles, and proofs made from them alone."""

from __future__ import annotations

import pymerkle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import limits
from broker.errors import IntegrityFailure, NotFound
from broker.ledger import merkle, tiles
from broker.ledger.tiles import ENTRIES, Tile, TileBuilder, parse_tile, tile_path, tiles_for


def entries_of(size: int) -> list[bytes]:
    return [b"entry %d" % index for index in range(size)]


def built(entries: list[bytes]) -> tuple[dict[Tile, bytes], merkle.Frontier]:
    made: dict[Tile, bytes] = {}
    builder = TileBuilder(made.__setitem__)
    for at in range(0, len(entries), 100):
        builder.add(entries[at : at + 100])
    return made, builder.finish()


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(level=0, index=0), "tile/0/000"),
        (Tile(level=0, index=0, width=5), "tile/0/000.p/5"),
        (Tile(level=1, index=999), "tile/1/999"),
        (Tile(level=0, index=1000), "tile/0/x001/000"),
        (Tile(level=0, index=1234067), "tile/0/x001/x234/067"),
        (Tile(level=0, index=1234067, width=255), "tile/0/x001/x234/067.p/255"),
        (Tile(level=ENTRIES, index=1234, width=1), "tile/entries/x001/234.p/1"),
    ],
)
def test_a_name_is_that_of_the_specification_and_is_read_back(tile: Tile, path: str) -> None:
    assert tile_path(tile) == path
    _, level, place = path.split("/", 2)
    assert parse_tile(level, place) == tile


@pytest.mark.parametrize(
    "path",
    [
        "0/0",
        "0/00",
        "0/0000",
        "0/x000/000",
        "0/x000/001",
        "0/001/001",
        "0/x001/x000",
        "0/000.p/0",
        "0/000.p/05",
        "0/000.p/256",
        "0/000.p/300",
        "0/000.p",
        "0/000.p/",
        "0/000/",
        "0/-01",
        "0/000\n",
        "0/٠٠٠",
        "00/000",
        "-1/000",
        "7/000",
        "99/000",
        "entries/x1/000",
        "Entries/000",
        "0/x001/x001/x001/x001/x001/x001/000",
    ],
)
def test_another_spelling_names_nothing(path: str) -> None:
    level, _, place = path.partition("/")
    with pytest.raises(NotFound):
        parse_tile(level, place)


@given(st.integers(ENTRIES, tiles.MAX_LEVEL), st.integers(0, 2**45), st.integers(1, 256))
def test_every_name_is_read_back(level: int, index: int, width: int) -> None:
    tile = Tile(level=level, index=index, width=width)
    _, text, place = tile_path(tile).split("/", 2)
    assert parse_tile(text, place) == tile


@given(st.text(alphabet="0123x/.p", max_size=20))
def test_what_is_read_is_spelled_so(place: str) -> None:
    try:
        tile = parse_tile("3", place)
    except NotFound:
        return
    assert tile_path(tile) == f"tile/3/{place}"


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 65_536 + 300])
def test_tiles_hold_what_another_implementation_computes(size: int) -> None:
    entries = entries_of(size)
    made, frontier = built(entries)
    plain = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in entries[:1000]:
        plain.append_entry(entry)
    if 0 < size <= 1000:
        assert frontier.root() == plain.get_state()
        for index in {0, size // 2, size - 1}:
            tile = next(t for t in made if t.level == 0 and t.start <= index < t.stop)
            at = 32 * (index - tile.start)
            assert made[tile][at : at + 32] == plain.get_leaf(index + 1)
    assert set(made) == set(tiles_for(0, size))
    read = tiles.read_tiles(made.__getitem__, size)
    assert merkle.frontier_at(size, read).root() == frontier.root()
    for index in {0, size // 3, size - 1} if size else ():
        proof = merkle.inclusion_proof(index, size, read)
        merkle.verify_inclusion(merkle.leaf_hash(entries[index]), index, size, proof, frontier.root())


@given(st.integers(0, 700), st.integers(0, 700))
def test_a_log_that_grew_needs_only_its_new_tiles(old: int, new: int) -> None:
    old, new = min(old, new), max(old, new)
    have = set(tiles_for(0, old)) | set(tiles_for(old, new))
    assert set(tiles_for(0, new)) <= have
    if old == new:
        assert not list(tiles_for(old, new))
    # A full tile never comes twice: a static server can keep it for ever.
    full = {tile for tile in tiles_for(0, old) if tile.width == tiles.TILE_WIDTH}
    assert not full & set(tiles_for(old, new))


def test_a_tile_fits_a_tree_that_has_all_of_it() -> None:
    assert Tile(level=0, index=0, width=5).fits(5)
    assert not Tile(level=0, index=0, width=6).fits(5)
    assert Tile(level=1, index=0, width=1).fits(256)
    assert not Tile(level=1, index=0, width=1).fits(255)
    assert Tile(level=ENTRIES, index=1, width=1).fits(257)
    assert not Tile(level=ENTRIES, index=1, width=1).fits(256)


def test_a_bundle_is_lengths_and_entries() -> None:
    assert tiles.bundle_bytes([b"ab", b""]) == b"\x00\x02ab\x00\x00"
    assert tiles.parse_bundle(b"\x00\x02ab\x00\x00", Tile(level=ENTRIES, index=0, width=2)) == [b"ab", b""]
    largest = bytes(limits.MAX_ENTRY)
    tile = Tile(level=ENTRIES, index=0, width=1)
    assert tiles.parse_bundle(tiles.bundle_bytes([largest]), tile) == [largest]
    for wrong in ([], [b""] * 257, [largest + b"x"]):
        with pytest.raises(IntegrityFailure):
            tiles.bundle_bytes(wrong)


@given(st.binary(max_size=40), st.integers(1, 4))
def test_a_bundle_of_any_bytes_is_itself_or_refused(data: bytes, width: int) -> None:
    tile = Tile(level=ENTRIES, index=0, width=width)
    try:
        entries = tiles.parse_bundle(data, tile)
    except IntegrityFailure:
        return
    assert len(entries) == width
    assert tiles.bundle_bytes(entries) == data


@pytest.mark.parametrize("found", [[], [bytes(32)], [bytes(32)] * 3, [bytes(32), bytes(31)]])
def test_hashes_that_do_not_fill_a_tile_are_refused(found: list[bytes]) -> None:
    tile = Tile(level=0, index=0, width=2)
    with pytest.raises(IntegrityFailure):
        tiles.tile_bytes(lambda level, start, stop: found, tile)
    with pytest.raises(IntegrityFailure):
        tiles.parse_tile_bytes(b"".join(found), tile)


def test_only_hashes_of_the_tree_are_read() -> None:
    read = tiles.read_tiles(lambda tile: bytes(32 * tile.width), 300)
    assert len(read(0, 250, 300)) == 50
    for level, start, stop in ((0, 0, 301), (8, 0, 2), (4, 0, 1), (0, 5, 4), (0, -1, 1)):
        with pytest.raises(IntegrityFailure):
            read(level, start, stop)
