"""Verified plaintext in memory: buffers that are used again, and the segments that are kept.

One number bounds both what is kept and what is read ahead. Reading ahead reserves its part before it
fetches; what is left, and never less than a few segments, is for keeping.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Final

from broker import limits
from broker.client.pieces import Segment
from broker.client.source import Opened

FEWEST_KEPT: Final = 8
"""Segments that are kept even while everything else is read ahead."""
_FREE: Final = 16


class Buffers:
    """Buffers of a segment's size. One is used again only when nobody sees it any more."""

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque(maxlen=_FREE)

    def take(self) -> bytearray:
        """A buffer of a little more than 1 MiB; what is in it is not defined."""
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(limits.SEGMENT_SIZE + 1)

    def give_back(self, buffer: bytearray) -> None:
        """Use it again, unless a view of it is still about (a slice, an array): then it is the viewer's."""
        try:
            # No bytearray changes its size while somebody sees it. There and back moves nothing.
            buffer.append(buffer.pop())
        except BufferError:
            return
        self._free.append(buffer)


class Kept:
    """The segments of one reader that were used last, and the room that reading ahead takes.

    Args:
        memory: Bytes of both together.
    """

    def __init__(self, memory: int) -> None:
        self.most_ahead = max(0, memory - FEWEST_KEPT * limits.SEGMENT_SIZE)
        self._memory = max(memory, FEWEST_KEPT * limits.SEGMENT_SIZE)
        self._ahead = 0
        self._size = 0
        self._segments: OrderedDict[tuple[int, Segment], Opened] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, file: int, place: Segment, *, now: int) -> Opened | None:
        """A segment that is kept, if the lease that it came under has not ended by ``now``.

        What outlives its lease is forgotten: whoever reads it again asks again (I15).
        """
        with self._lock:
            found = self._segments.get((file, place))
            if found is None:
                return None
            if now >= found.until:
                self._drop((file, place))
                return None
            self._segments.move_to_end((file, place))
            return found

    def add(self, file: int, place: Segment, opened: Opened) -> None:
        """Keep a segment; those that were used longest ago make room."""
        if opened.size < len(opened.buffer) // 2:
            opened = opened._replace(buffer=opened.buffer[: opened.size])
        with self._lock:
            if (file, place) in self._segments:
                self._drop((file, place))
            self._segments[file, place] = opened
            self._size += len(opened.buffer)
            self._trim()

    def reserve(self, size: int) -> bool:
        """Room for ``size`` bytes that are read ahead; False when there is none now."""
        with self._lock:
            if self._ahead + size > self.most_ahead:
                return False
            self._ahead += size
            self._trim()
            return True

    def release(self, size: int) -> None:
        """Give reserved room back."""
        with self._lock:
            self._ahead -= size

    def clear(self) -> None:
        """Forget every segment."""
        with self._lock:
            self._segments.clear()
            self._size = 0

    def _trim(self) -> None:
        while self._segments and self._size > self._memory - self._ahead:
            self._drop(next(iter(self._segments)))

    def _drop(self, key: tuple[int, Segment]) -> None:
        self._size -= len(self._segments.pop(key).buffer)
