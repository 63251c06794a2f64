"""The log as tiles: fixed, immutable pieces of the tree, and bundles of the entries under it.

A tile of level L holds up to 256 hashes of the tree's level 8 L; the last one of a level is partial
until the tree has filled it. An entry bundle holds the entries whose leaf hashes are in the level 0
tile of the same index. Whoever holds the tiles can make every proof and verify the whole log without
the broker. Nothing here stores or fetches: hashes come from a ``read`` function, bytes from a
``fetch`` function.

Source: C2SP tlog-tiles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from broker import limits
from broker.errors import IntegrityFailure, NotFound
from broker.ledger import merkle

TILE_HEIGHT: Final = merkle.STORED_STEP
TILE_WIDTH: Final = 1 << TILE_HEIGHT
ENTRIES: Final = -1
"""The level of entry bundles: one bundle for each tile of level 0."""
MAX_LEVEL: Final = limits.MAX_TREE_SIZE.bit_length() // TILE_HEIGHT
MAX_BUNDLE: Final = TILE_WIDTH * (2 + limits.MAX_ENTRY)
"""Bytes of the largest entry bundle."""
MAX_TILE: Final = TILE_WIDTH * merkle.HASH_SIZE
"""Bytes of a full tile: 8 KiB."""

_LEVEL_RE: Final = re.compile(r"entries|0|[1-9][0-9]?")
_PLACE_RE: Final = re.compile(r"((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The name of one tile or entry bundle.

    Attributes:
        level: Level of the tile, from 0; :data:`ENTRIES` for an entry bundle.
        index: Index of the tile inside its level, from 0.
        width: Hashes or entries that it holds: 1 to 255 in a partial one, 256 in a full one.
    """

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def start(self) -> int:
        """Index of its first hash inside the tree's level, or of its first entry."""
        return self.index * TILE_WIDTH

    @property
    def stop(self) -> int:
        """One past the index of its last hash or entry."""
        return self.start + self.width

    @property
    def tree_level(self) -> int:
        """Level of the tree whose nodes it holds: 0 for leaves and entries."""
        return max(self.level, 0) * TILE_HEIGHT

    def fits(self, size: int) -> bool:
        """Whether a tree of ``size`` leaves has every node or entry of this tile."""
        return self.stop <= size >> self.tree_level


def tile_path(tile: Tile) -> str:
    """The tile's path below the log's base, such as ``tile/0/x001/234.p/5`` or ``tile/entries/000``.

    Source: C2SP tlog-tiles, "Merkle Tree" and "Log Entries".
    """
    digits = str(tile.index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    level = "entries" if tile.level == ENTRIES else str(tile.level)
    place = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return f"tile/{level}/{place}" + (f".p/{tile.width}" if tile.width < TILE_WIDTH else "")


def parse_tile(level: str, place: str) -> Tile:
    """The tile that the two parts of a path name, in their only spelling.

    Args:
        level: ``entries``, or a number from 0.
        place: Everything behind the level: the index in groups of three digits, and the width of a
            partial tile.

    Raises:
        NotFound: No tile has that name.
    """
    found = _PLACE_RE.fullmatch(place)
    if _LEVEL_RE.fullmatch(level) is None or found is None:
        raise NotFound("no tile has that name")
    tile = Tile(
        level=ENTRIES if level == "entries" else int(level),
        index=int(found[1].replace("/", "").replace("x", "")),
        width=int(found[2] or TILE_WIDTH),
    )
    # One spelling each: no leading groups of zeros, and a full tile has no ".p".
    if tile.level > MAX_LEVEL or tile_path(tile) != f"tile/{level}/{place}":
        raise NotFound("no tile has that name")
    return tile


def tiles_for(old_size: int, new_size: int) -> Iterator[Tile]:
    """What a tree of ``new_size`` leaves has and one of ``old_size`` had not: tiles and bundles.

    Bundles come before the tiles of level 0, lower levels before higher ones, full ones before the
    partial one at the right edge. All of a tree: ``old_size`` 0.

    Args:
        old_size: Leaves of the tree whose tiles are there already.
        new_size: Leaves of the tree whose tiles are wanted; a smaller one has nothing new.
    """
    for level in range(ENTRIES, MAX_LEVEL + 1):
        height = max(level, 0) * TILE_HEIGHT
        old, new = old_size >> height, new_size >> height
        if new <= old:
            continue
        for index in range(old // TILE_WIDTH, -(-new // TILE_WIDTH)):
            yield Tile(level=level, index=index, width=min(TILE_WIDTH, new - index * TILE_WIDTH))


def tile_bytes(read: merkle.Read, tile: Tile) -> bytes:
    """The bytes of a hash tile: its hashes (32 bytes each), one after the other.

    Raises:
        IntegrityFailure: ``read`` gave too few hashes, or one that is not 32 bytes.
    """
    hashes = read(tile.tree_level, tile.start, tile.stop)
    if len(hashes) != tile.width or any(len(each) != merkle.HASH_SIZE for each in hashes):
        raise IntegrityFailure("stored hashes do not fill a tile")
    return b"".join(hashes)


def parse_tile_bytes(data: bytes, tile: Tile) -> list[bytes]:
    """The hashes of a tile.

    Raises:
        IntegrityFailure: It has another length than its width asks for.
    """
    if len(data) != tile.width * merkle.HASH_SIZE:
        raise IntegrityFailure(f"{tile_path(tile)} has {len(data)} bytes, not 32 for each of {tile.width}")
    return [data[at : at + merkle.HASH_SIZE] for at in range(0, len(data), merkle.HASH_SIZE)]


def bundle_bytes(entries: Sequence[bytes]) -> bytes:
    """An entry bundle: for each entry its length (u16, big-endian) and its bytes.

    Raises:
        IntegrityFailure: An entry is longer than 65,535 bytes, or there are none or more than 256.

    Source: C2SP tlog-tiles, "Log Entries".
    """
    if not 1 <= len(entries) <= TILE_WIDTH or any(len(entry) > 0xFFFF for entry in entries):
        raise IntegrityFailure("these entries do not fit a bundle")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def parse_bundle(data: bytes, tile: Tile) -> list[bytes]:
    """The entries of a bundle.

    Raises:
        IntegrityFailure: It does not hold exactly as many entries as its width asks for.
    """
    entries, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        entries.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    # A length that is cut, or that points beyond the end, leaves ``at`` past the end.
    if at != len(data) or len(entries) != tile.width:
        raise IntegrityFailure(f"{tile_path(tile)} does not hold {tile.width} whole entries")
    return entries


class TileBuilder:
    """Makes every tile of a tree from its entries, or from its leaf hashes, as they come.

    Memory: at most one unfinished tile of each level and one unfinished bundle.

    Args:
        emit: Takes each tile with its bytes, as soon as it is full; partial ones at the end.
    """

    def __init__(self, emit: Callable[[Tile, bytes], None]) -> None:
        self._emit = emit
        self._frontier = merkle.Frontier()
        self._waiting: dict[int, list[bytes]] = {}
        self._emitted: dict[int, int] = {}

    def add(self, entries: Sequence[bytes]) -> None:
        """The next entries of the log, in their order."""
        self._put(ENTRIES, entries)
        self.add_hashes([merkle.leaf_hash(entry) for entry in entries])

    def add_hashes(self, leaf_hashes: Sequence[bytes]) -> None:
        """The next leaf hashes, where there are no entries."""
        self._frontier, completed = self._frontier.extend(leaf_hashes)
        self._put(0, leaf_hashes)
        for level, _, value in completed:
            self._put(level // TILE_HEIGHT, [value])

    def finish(self) -> merkle.Frontier:
        """Emit the partial tiles; the tree that all of it makes."""
        for level, waiting in sorted(self._waiting.items()):
            if waiting:
                self._send(level, waiting)
        return self._frontier

    def _put(self, level: int, values: Sequence[bytes]) -> None:
        waiting = self._waiting.setdefault(level, [])
        waiting += values
        while len(waiting) >= TILE_WIDTH:
            self._send(level, waiting[:TILE_WIDTH])
            del waiting[:TILE_WIDTH]

    def _send(self, level: int, values: Sequence[bytes]) -> None:
        tile = Tile(level=level, index=self._emitted.get(level, 0), width=len(values))
        self._emitted[level] = tile.index + 1
        self._emit(tile, bundle_bytes(values) if level == ENTRIES else b"".join(values))


def read_tiles(fetch: Callable[[Tile], bytes], size: int) -> merkle.Read:
    """Stored hashes, as proofs are made from them, out of the tiles of a tree of ``size`` leaves.

    Args:
        fetch: The bytes of a tile; asked for tiles of that tree only.
        size: Leaves of the tree.

    Returns:
        A function that raises IntegrityFailure when a tile is not what its name says.
    """

    def read(level: int, start: int, stop: int) -> list[bytes]:
        if level % TILE_HEIGHT or not 0 <= start <= stop <= size >> level:
            raise IntegrityFailure(f"no tiles hold hashes [{start}, {stop}) of level {level}")
        hashes: list[bytes] = []
        first = start // TILE_WIDTH
        for index in range(first, -(-stop // TILE_WIDTH)):
            width = min(TILE_WIDTH, (size >> level) - index * TILE_WIDTH)
            tile = Tile(level=level // TILE_HEIGHT, index=index, width=width)
            hashes += parse_tile_bytes(fetch(tile), tile)
        return hashes[start - first * TILE_WIDTH : stop - first * TILE_WIDTH]

    return read
