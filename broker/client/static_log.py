"""The whole log in a folder: tiles, entry bundles and the checkpoint that signs them.

The layout is that of C2SP tlog-tiles, so any static web server can serve the folder as a log, and any
tool that reads tiles can verify it. Source: C2SP tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from broker import limits
from broker.client.verifying import tile_roots
from broker.errors import DiskFull, IntegrityFailure, UsageError
from broker.ledger import merkle, note, tiles
from broker.ledger.note import TreeHead
from broker.ledger.tiles import ENTRIES, TILE_WIDTH, Tile, TileBuilder

CHECKPOINT: Final = "checkpoint"

OnEntries = Callable[[int, Sequence[bytes]], None]
"""Takes (index of the first, entries) of the next stretch of the log."""
OnHashes = Callable[[int, Sequence[bytes]], None]
"""Takes (index of the first, leaf hashes) of the next stretch of the log."""


def open_folder(folder: Path) -> None:
    """Make ``folder`` for an export; one that is there must be empty.

    Raises:
        UsageError: It holds something already, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(
                f"the folder {folder} is not empty",
                why="what is in it could be taken for a part of the export",
                next="choose a folder that is empty or does not exist",
            )
    except OSError as exc:
        raise UsageError(f"cannot write {folder}", why=exc.strerror) from exc


def write_new(path: Path, data: bytes) -> None:
    """A new file of an export.

    Raises:
        DiskFull: It cannot be written whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
    except OSError as exc:
        raise DiskFull(f"cannot write {path}", why=exc.strerror) from exc


class LogWriter:
    """Writes a log into an empty folder as its entries come.

    Crash here: without its checkpoint, which :meth:`finish` writes last, a folder is no log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._builder = TileBuilder(self._write)
        self.size = 0

    def add(self, entries: Sequence[bytes]) -> None:
        """The next entries, in their order."""
        self._builder.add(entries)
        self.size += len(entries)

    def finish(self, head_note: str, head: TreeHead) -> None:
        """Write what is left, and the checkpoint if it signs exactly these entries.

        Raises:
            IntegrityFailure: It does not: no checkpoint is written.
        """
        frontier = self._builder.finish()
        if (frontier.size, frontier.root()) != (head.size, head.root):
            raise IntegrityFailure(
                "the entries that were read are not those that the checkpoint signs",
                why=f"{frontier.size} entries were read, {head.size} are signed",
                next="broker ledger verify",
            )
        write_new(self._folder / CHECKPOINT, head_note.encode())

    def _write(self, tile: Tile, data: bytes) -> None:
        write_new(self._folder / tiles.tile_path(tile), data)


@dataclass(frozen=True, kw_only=True)
class StaticLog:
    """A folder that was verified.

    Attributes:
        head: The tree head that signs all of it.
        note: The checkpoint's text.
        entries: Whether the entries are in it too, or their hashes only.
    """

    head: TreeHead
    note: str
    entries: bool


def verify_static_log(
    folder: Path, vkey: str, *, on_entries: OnEntries | None = None, on_hashes: OnHashes | None = None
) -> StaticLog:
    """Verify a log in a folder, offline, in bounded memory: every file, against the signed root.

    Args:
        folder: The folder that holds ``checkpoint`` and ``tile/``.
        vkey: The log's verifier key.
        on_entries: Gets the entries as they are read. What it is told is proven only when this function
            returns.
        on_hashes: Gets the leaf hashes in the same way, also where there are no entries.

    Raises:
        IntegrityFailure: A file is missing, has other bytes than the entries give, or the root is not
            the signed one; the message names the first.
        UsageError: There is no log in the folder.
    """
    text = read_checkpoint(folder)
    head = note.open_head(text, vkey)
    has_entries = (folder / "tile" / "entries").is_dir()
    if on_entries is not None and not has_entries:
        raise IntegrityFailure(f"the log in {folder} has no entries, only their hashes")
    if on_entries is None and on_hashes is None:
        root = _verified_root(folder, head.size, has_entries=has_entries)
    else:
        root = _read_through(folder, head.size, on_entries, on_hashes, has_entries=has_entries)
    if root != head.root:
        raise IntegrityFailure(f"the log in {folder} does not give the root that its checkpoint signs")
    return StaticLog(head=head, note=text, entries=has_entries)


def _verified_root(folder: Path, size: int, *, has_entries: bool) -> bytes:
    """The root that the files give, every one of them compared; on every core where the log is long."""
    compare = _comparer(folder)
    # The tree above the full tiles is that of their roots, eight levels higher.
    above = TileBuilder(lambda tile, data: compare(replace(tile, level=tile.level + 1), data))
    full, rest = divmod(size, TILE_WIDTH)
    for root in tile_roots(folder, full, read_tile, has_entries=has_entries):
        above.add_hashes([root])
    peaks = above.finish().peaks
    if not rest:
        return merkle.Frontier(size=size, peaks=peaks).root()
    last = Tile(level=0, index=full, width=rest)
    data = read_tile(folder, last)
    if has_entries:
        bundle = replace(last, level=ENTRIES)
        entries = tiles.parse_bundle(read_tile(folder, bundle), bundle)
        if b"".join(map(merkle.leaf_hash, entries)) != data:
            raise IntegrityFailure(f"{folder / tiles.tile_path(last)} is not what the entries give")
    tail, _ = merkle.Frontier().extend(tiles.parse_tile_bytes(data, last))
    return merkle.Frontier(size=size, peaks=(*peaks, *tail.peaks)).root()


def _read_through(
    folder: Path,
    size: int,
    on_entries: OnEntries | None,
    on_hashes: OnHashes | None,
    *,
    has_entries: bool,
) -> bytes:
    """The same, with what was read told on the way."""
    builder = TileBuilder(_comparer(folder))
    lowest = ENTRIES if has_entries else 0
    for tile in tiles.tiles_for(0, size):
        if tile.level != lowest:
            continue
        data = read_tile(folder, tile)
        if has_entries:
            entries = tiles.parse_bundle(data, tile)
            builder.add(entries)
            if on_entries is not None:
                on_entries(tile.start, entries)
        else:
            builder.add_hashes(tiles.parse_tile_bytes(data, tile))
        if on_hashes is not None:
            # The builder compares this very file with the entries, where there are some.
            level0 = Tile(level=0, index=tile.index, width=tile.width)
            on_hashes(tile.start, tiles.parse_tile_bytes(read_tile(folder, level0), level0))
    return builder.finish().root()


def _comparer(folder: Path) -> Callable[[Tile, bytes], None]:
    def compare(tile: Tile, data: bytes) -> None:
        if read_tile(folder, tile) != data:
            raise IntegrityFailure(f"{folder / tiles.tile_path(tile)} is not what the entries give")

    return compare


def read_checkpoint(folder: Path) -> str:
    """The text of a log's checkpoint, at most 64 KiB and a byte; nothing is verified.

    Raises:
        UsageError: There is no log in the folder.
    """
    try:
        with open(folder / CHECKPOINT, "rb") as file:
            return file.read(limits.MAX_NOTE + 1).decode("utf-8", "replace")
    except OSError as exc:
        raise UsageError(
            f"there is no log in {folder}",
            why=f"its file {CHECKPOINT} cannot be read: {exc.strerror}",
            next="give the folder of an export that came to its end",
        ) from exc


def read_tile(folder: Path, tile: Tile) -> bytes:
    """The bytes of a file of the log; nothing of them is verified yet.

    Raises:
        IntegrityFailure: It cannot be read.
    """
    path = folder / tiles.tile_path(tile)
    try:
        with open(path, "rb") as file:
            # One byte more than the largest: a file that is too long is not taken for a whole one.
            return file.read(tiles.MAX_BUNDLE + 1)
    except OSError as exc:
        raise IntegrityFailure(f"{path} cannot be read", why=exc.strerror) from exc
