"""Connections spread over the worker processes: who holds more than another lets that one take the next.

All workers wait on one listening socket, and the kernel wakes them in an order of its own: connections that
stay open may all end at one of them while another core has nothing to do.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from typing import Final

ATTEMPTS: Final = 5
"""How often a worker leaves a new connection to the others before it takes it all the same."""
PAUSE_SECONDS: Final = 0.001
_AWAY: Final = -1
_COUNT: Final = struct.Struct("i")


class Balance:
    """Open connections of each worker, in memory that processes forked from here share.

    Nothing rests on it but who is faster: a number that a killed worker left behind costs a new connection
    at most ``ATTEMPTS`` pauses, until the worker in its place sets it anew.

    Args:
        workers: Number of places, 1 or more.
    """

    def __init__(self, workers: int) -> None:
        self._places: Final = range(workers)
        self._shared: Final = mmap.mmap(-1, workers * _COUNT.size)
        for place in self._places:
            self.leave(place)

    def free_place(self, taken: Collection[int]) -> int:
        """A place that nobody has; the last one when all are taken."""
        return next((place for place in self._places if place not in taken), self._places[-1])

    def set(self, place: int, connections: int) -> None:
        """The worker in that place accepts connections, and has so many open."""
        _COUNT.pack_into(self._shared, place * _COUNT.size, connections)

    def leave(self, place: int) -> None:
        """The worker in that place accepts no connections."""
        self.set(place, _AWAY)

    def has_more(self, place: int, connections: int) -> bool:
        """Whether another worker that accepts connections has fewer than so many."""
        counts = (_COUNT.unpack_from(self._shared, at * _COUNT.size)[0] for at in self._places if at != place)
        return any(_AWAY < count < connections for count in counts)
