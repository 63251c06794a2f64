"""Nodes of a log's tree that were read once: they never change, so a proof finds them in memory.

What is kept here may be what somebody changed in the database meanwhile, or before. That is why nothing
that comes of it leaves without being verified against the root that the tail commits to (I10).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from broker.errors import IntegrityFailure
from broker.ledger.merkle import HASH_SIZE, STORED_STEP, Read, node_hash

_WIDTH: Final = 1 << STORED_STEP
_Rows = tuple[tuple[bytes, ...], ...]
"""The complete nodes of a tile: eight levels, the stored one first."""


class NodeCache:
    """Complete nodes under runs of 256 stored hashes. Safe to share between threads.

    Args:
        most: Runs that are kept, about 35 kB each; the one that was used longest ago goes first.
    """

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._tiles: OrderedDict[tuple[int, int], _Rows] = OrderedDict()
        self._lock = threading.Lock()

    def subtree(self, level: int, index: int, *, size: int, read: Read) -> bytes:
        """The hash (32 bytes) of a complete subtree of a tree of ``size`` leaves.

        Raises:
            IntegrityFailure: ``read`` returned too few hashes, or one that is not 32 bytes.
        """
        base = level - level % STORED_STEP
        above = level - base
        tile, offset = divmod(index << above, _WIDTH)
        width = min(_WIDTH, (size >> base) - tile * _WIDTH)
        return self._rows(base, tile, width, read)[above][offset >> above]

    def clear(self) -> None:
        """Forget everything: what a proof is made of comes from the database again."""
        with self._lock:
            self._tiles.clear()

    def _rows(self, level: int, tile: int, width: int, read: Read) -> _Rows:
        place = (level, tile)
        with self._lock:
            known = self._tiles.get(place, ((),) * STORED_STEP)
            if len(known[0]) >= width:
                self._tiles.move_to_end(place)
                return known
        start = tile * _WIDTH
        # The last run of a growing log is read on from where it ended.
        found = read(level, start + len(known[0]), start + width)
        if len(found) != width - len(known[0]) or any(len(each) != HASH_SIZE for each in found):
            raise IntegrityFailure(f"stored hashes of level {level} are missing or are no hashes")
        grown = _extend(known, found)
        with self._lock:
            # Another thread may have read further meanwhile: the longer one is kept.
            if len(self._tiles.get(place, ((),))[0]) < width:
                self._tiles[place] = grown
                self._tiles.move_to_end(place)
                while len(self._tiles) > self._most:
                    self._tiles.popitem(last=False)
        return grown


def _extend(known: _Rows, found: Sequence[bytes]) -> _Rows:
    rows = [(*known[0], *found)]
    for before in known[1:]:
        below = rows[-1]
        pairs = range(2 * len(before), len(below) - 1, 2)
        rows.append((*before, *(node_hash(below[at], below[at + 1]) for at in pairs)))
    return tuple(rows)
