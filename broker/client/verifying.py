"""The tiles of a long log in a folder, verified by a process for each core.

A full tile of leaves is checked by itself: its entries give its hashes, and these its root. So processes
take a stretch each, and hand back 32 bytes for each tile; what lies above them is checked here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Final

from broker.errors import BrokerError, IntegrityFailure
from broker.ledger import merkle, tiles
from broker.ledger.tiles import ENTRIES, TILE_WIDTH, Tile

MANY: Final = 1 << 18
"""Entries from which on other processes are worth their start (about 0.2 s)."""
_ROOT: Final = str(Path(__file__).resolve().parent.parent.parent)
_BAD: Final = 6
_MOST_WORDS: Final = 2000

ReadTile = Callable[[Path, Tile], bytes]


def tile_root(folder: Path, tile: int, read: ReadTile, *, has_entries: bool) -> bytes:
    """The root (32 bytes) of a full tile of leaves, once its entries, if there are some, give its hashes.

    Raises:
        IntegrityFailure: A file cannot be read, is not of the form, or has other bytes.
    """
    at = Tile(level=0, index=tile, width=TILE_WIDTH)
    data = read(folder, at)
    hashes = tiles.parse_tile_bytes(data, at)
    if has_entries:
        bundle = Tile(level=ENTRIES, index=tile, width=TILE_WIDTH)
        entries = tiles.parse_bundle(read(folder, bundle), bundle)
        if b"".join(map(merkle.leaf_hash, entries)) != data:
            raise IntegrityFailure(f"{folder / tiles.tile_path(at)} is not what the entries give")
    return merkle.root_of(hashes)


def tile_roots(folder: Path, count: int, read: ReadTile, *, has_entries: bool) -> Iterator[bytes]:
    """The roots of the first ``count`` full tiles, in their order.

    Raises:
        IntegrityFailure: As :func:`tile_root`, for the first tile that is bad.
    """
    cores = len(os.sched_getaffinity(0))
    if cores > 1 and count * TILE_WIDTH >= MANY:
        yield from _by_many(folder, count, read, cores=cores, has_entries=has_entries)
        return
    for tile in range(count):
        yield tile_root(folder, tile, read, has_entries=has_entries)


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    start: int
    stop: int
    process: subprocess.Popen[bytes]
    found: IO[bytes]
    said: IO[bytes]

    def roots(self) -> list[bytes] | None:
        """What it found; None when it died, which says nothing of the log.

        Raises:
            IntegrityFailure: A tile is bad.
        """
        status = self.process.wait()
        self.found.seek(0)
        self.said.seek(0)
        data = self.found.read()
        if status == _BAD:
            raise IntegrityFailure(self.said.read(_MOST_WORDS).decode("utf-8", "replace"))
        size = merkle.HASH_SIZE
        if status != 0 or len(data) != (self.stop - self.start) * size:
            return None
        return [data[at : at + size] for at in range(0, len(data), size)]


def _by_many(folder: Path, count: int, read: ReadTile, *, cores: int, has_entries: bool) -> Iterator[bytes]:
    bounds = [count * core // cores for core in range(cores + 1)]
    with ExitStack() as stack:
        work = [
            _start(stack, folder, start, stop, has_entries=has_entries) for start, stop in pairwise(bounds)
        ]
        for stretch in work:
            roots = stretch.roots()
            if roots is not None:
                yield from roots
                continue
            for tile in range(stretch.start, stretch.stop):
                yield tile_root(folder, tile, read, has_entries=has_entries)


def _start(stack: ExitStack, folder: Path, start: int, stop: int, *, has_entries: bool) -> _Stretch:
    found = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    said = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    words = [str(folder.resolve()), str(start), str(stop), str(int(has_entries))]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
        [sys.executable, "-P", "-s", "-m", __name__, *words],
        stdin=subprocess.DEVNULL,
        stdout=found,
        stderr=said,
        env={"PYTHONPATH": _ROOT},
    )
    stack.callback(_end, process)
    return _Stretch(start=start, stop=stop, process=process, found=found, said=said)


def _end(process: subprocess.Popen[bytes]) -> None:
    # Also when the wait was interrupted, or another stretch is bad.
    process.kill()
    process.wait()


def _main(folder: str, start: str, stop: str, has_entries: str) -> int:
    from broker.client.static_log import read_tile

    try:
        for tile in range(int(start), int(stop)):
            root = tile_root(Path(folder), tile, read_tile, has_entries=has_entries == "1")
            sys.stdout.buffer.write(root)
    except BrokerError as exc:
        sys.stderr.write(exc.what)
        return _BAD
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
