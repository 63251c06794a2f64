"""How far a transfer is: numbers for whoever draws the bars."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a transfer, in plaintext bytes.

    Attributes:
        path: The file that moved on.
        done: Bytes of that file so far; it steps back when a piece has to be fetched again.
        size: Its size.
        total_done: Bytes of all files so far.
        total: Bytes of all files.
    """

    path: str
    done: int
    size: int
    total_done: int
    total: int


OnProgress = Callable[[Progress], None]
"""Called from worker threads, one at a time; it should return at once."""


class Meter:
    """Adds up what the workers do, and tells it one call at a time."""

    def __init__(self, sizes: dict[str, int], report: OnProgress | None) -> None:
        self._sizes = sizes
        self._report = report
        self._done = dict.fromkeys(sizes, 0)
        self._total = sum(sizes.values())
        self._total_done = 0
        self._lock = threading.Lock()

    def advance(self, path: str, count: int) -> None:
        """``count`` more bytes of a file are done; negative when they have to be done again."""
        if self._report is None or count == 0:
            return
        with self._lock:
            self._done[path] += count
            self._total_done += count
            self._report(
                Progress(
                    path=path,
                    done=self._done[path],
                    size=self._sizes[path],
                    total_done=self._total_done,
                    total=self._total,
                )
            )
