"""Reading in order, recognised and served: what comes next is fetched before it is asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from broker import limits
from broker.client.flow import Flow
from broker.client.pieces import Layout, Segment
from broker.client.source import Opened

FIRST: Final = 4 * limits.MIB
"""Bytes that are read ahead at first; each time that half of them is used it becomes twice as much."""
_ENDS: Final = 8


class Runs:
    """Where the last reads of one file ended, to see which reads go on from there."""

    def __init__(self) -> None:
        self._ends: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, start: int, stop: int) -> bool:
        """Whether a read from ``start`` to ``stop`` begins where another ended; it is remembered."""
        with self._lock:
            found = start in self._ends
            self._ends.pop(start, None)
            self._ends[stop] = None
            self._ends.move_to_end(stop)
            if len(self._ends) > _ENDS:
                self._ends.popitem(last=False)
            return found


class Ahead:
    """One place at which a file is read in order. One thread at a time.

    Args:
        layout: Of the file.
        flow: What reads ahead; it belongs to this object.
        start: Position of the segment to begin with.
        most: Bytes to read ahead at most.
    """

    def __init__(self, layout: Layout, flow: Flow, *, start: int, most: int) -> None:
        self._layout, self._flow, self._most = layout, flow, most
        self._ahead = min(FIRST, most)
        self._at = self._planned = start

    @property
    def place(self) -> Segment | None:
        """The segment that comes next; None at the end of the file."""
        return self._layout.locate(self._at)[0] if self._at < self._layout.size else None

    def next(self, stop: int) -> Opened | None:
        """The next segment; ``stop`` is how far the reader is known to go. None at the end of the file.

        Raises:
            BrokerError: As :meth:`broker.client.flow.Flow.next`.
        """
        if self._planned < stop or self._planned - self._at <= self._ahead // 2:
            self._extend(max(self._at + self._ahead, stop))
            self._ahead = min(2 * self._ahead, self._most)
        found = self._flow.next()
        if found is None:
            return None
        self._at += found.size
        return found

    def close(self) -> None:
        """Nobody reads on."""
        self._flow.close()

    def _extend(self, to: int) -> None:
        step, size = self._layout.extent_size, self._layout.size
        if self._ahead >= step:
            # Extents as a whole need fewer leases, each of which is an entry in the ledger.
            to = -(-to // step) * step
        to = min(to, size)
        if to > self._planned:
            self._flow.extend(self._layout.pieces(self._planned, to))
            place, begin = self._layout.locate(to - 1)
            self._planned = begin + self._layout.length(*place)
