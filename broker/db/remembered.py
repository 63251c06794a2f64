"""Rows that read as they did before: what they came to then is what they come to now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection

from broker.db.driver import read_rows
from broker.db.macs import Macs
from broker.db.rows import codec
from broker.model import BundleRow, ManifestRow

R = TypeVar("R")

_MOST: Final = 4096
_TOO_LARGE: Final = (BundleRow, ManifestRow)
"""Megabytes each, and whoever asks for them keeps what he made of them."""


class Remembered:
    """What stored values came to. Safe to share between threads.

    Every read still goes to the database. What is saved is decoding, and a MAC over the very values whose
    MAC held before; values that differ in anything are decoded and checked anew (I19).
    """

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Sequence[Any], Any]] = {}

    def of(self, place: Any, stored: Sequence[Any], make: Callable[[], R]) -> R:
        """What ``make`` gives for what is stored in that place. What it raises, it raises each time."""
        known = self._kept.get(place)
        if known is not None and _same(known[0], stored):
            return cast(R, known[1])
        made = make()
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[place] = (stored, made)
        return made


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    # 1 == True == 1.0, but another type is another value.
    return left == right and list(map(type, left)) == list(map(type, right))


def find_row(
    connection: Connection, row: type[R], key: Sequence[object], *, macs: Macs, remembered: Remembered
) -> R | None:
    """The row of that class under that key, which :meth:`RowCodec.check_key` takes.

    Raises:
        IntegrityFailure: It does not carry the broker's MAC.
    """
    rows = codec(row)
    wanted = {f"key_{name}": part for name, part in zip(rows.keys, key, strict=True)}
    found = read_rows(connection, rows.by_key, wanted)
    if not found:
        return None
    stored = tuple(found[0])

    def decode() -> R:
        return rows.decode(dict(zip(rows.columns, stored, strict=True)), macs)

    return decode() if row in _TOO_LARGE else remembered.of((row, *key), stored, decode)
