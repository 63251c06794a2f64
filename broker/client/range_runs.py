"""Many ranges of many files, put together into fewer and longer reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from broker import limits
from broker.names import Ref

LONGEST: Final = 16 * limits.MIB
"""Bytes that ranges put together span at most; one range alone may be longer."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A range that was asked for.

    Attributes:
        ref: The file, in a version that is named by its digest.
        start: First byte.
        stop: The byte after its last.
        place: Of its bytes in the answer.
    """

    ref: Ref
    start: int
    stop: int
    place: int


def bounds_of(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """``(start, stop)`` of a slice of a file: negative numbers count from its end, None is its end."""
    low, high, _ = slice(start, end).indices(size)
    return low, max(low, high)


def runs_of(wanted: Iterable[Wanted], gap: int) -> list[list[Wanted]]:
    """Ranges that are read as one: of one file, ascending, at most ``gap`` bytes apart."""
    runs: list[list[Wanted]] = []
    stop = 0
    for item in sorted(wanted, key=lambda each: (str(each.ref), each.start, each.stop)):
        first = runs[-1][0] if runs else None
        joins = first is not None and first.ref == item.ref and item.start - stop <= gap
        if first is not None and joins and max(stop, item.stop) - first.start <= LONGEST:
            runs[-1].append(item)
            stop = max(stop, item.stop)
        else:
            runs.append([item])
            stop = item.stop
    return runs
