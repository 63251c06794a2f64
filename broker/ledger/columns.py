"""The log as a table: the columns of one row, and the pieces that the table is kept in.

A row is made of nothing but an entry's index and its exact bytes, so whoever has the log can make the table
again, and whoever has a row can hash it. Files: see ``broker.archive``; layout: ``docs/formats/archive.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from broker import limits
from broker.errors import IntegrityFailure
from broker.ledger import merkle
from broker.ledger.entry import index_row, parse_entry
from broker.model import IndexRow

WIDTH: Final = 65_536
"""Entries of a closed range: a power of two, so that it is one complete subtree of the log."""
PART: Final = "part.parquet"
SORTED_BY: Final = ("principal", "index")
_RANGE_RE: Final = re.compile(r"range=([0-9]{10,16})-([0-9]{10,16})")

Row = tuple[Any, ...]
"""Values in the order of :data:`COLUMNS`."""


class Column(NamedTuple):
    """One column.

    Attributes:
        name: As SQL has it.
        kind: ``count`` (integer), ``time`` (milliseconds since 1970, UTC), ``text``, ``texts`` (a list) or
            ``hash`` (32 bytes).
        required: Whether every row has it.
    """

    name: str
    kind: str
    required: bool = False


COLUMNS: Final = (
    Column("index", "count", required=True),
    Column("time", "time", required=True),
    Column("type", "text", required=True),
    Column("principal", "text"),
    Column("action", "text"),
    Column("artifact", "text"),
    Column("version", "text"),
    Column("decision", "text"),
    Column("policies", "texts", required=True),
    Column("bytes", "count"),
    Column("grant", "text"),
    Column("purpose", "text"),
    Column("key", "text"),
    Column("leaf_hash", "hash", required=True),
    Column("entry", "text", required=True),
)
"""All columns, in their order. A later version may add some behind these, and changes none."""

INDEX: Final = 0
PRINCIPAL: Final = 3
LEAF_HASH: Final = 13
ENTRY: Final = 14


def archive_row(index: int, data: bytes) -> Row:
    """The row of one entry. ``entry`` is its exact bytes, which are UTF-8.

    Args:
        index: Where it stands in the log.
        data: Its exact bytes.

    Raises:
        IntegrityFailure: They are no entry.
    """
    return row_of(index, data, index_row(parse_entry(data)))


def row_of(index: int, data: bytes, row: IndexRow) -> Row:
    """The row of an entry whose search columns are known already, from these very bytes."""
    return (
        index,
        row.time,
        row.type,
        row.principal,
        row.action,
        row.artifact,
        row.version,
        row.decision,
        list(row.policies),
        row.bytes,
        row.grant,
        row.purpose,
        row.jkt,
        merkle.leaf_hash(data),
        data.decode(),
    )


def sorted_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows as a file has them: by principal (none first), then by index: one's history lies together."""
    return sorted(rows, key=lambda row: (row[PRINCIPAL] or "", row[INDEX]))


def range_path(start: int, stop: int) -> str:
    """The file of the rows of entries [start, stop), such as ``range=0000000000-0000065535/part.parquet``.

    Hive style: engines take ``range`` for one more column, by which they pass over files.
    """
    return f"range={start:010d}-{stop - 1:010d}/{PART}"


def parse_range(name: str) -> tuple[int, int]:
    """(start, stop) that a folder's name says.

    Raises:
        IntegrityFailure: It says none, or not in its one spelling.
    """
    found = _RANGE_RE.fullmatch(name)
    if found is not None:
        start, stop = int(found[1]), int(found[2]) + 1
        if start < stop <= limits.MAX_TREE_SIZE and range_path(start, stop) == f"{name}/{PART}":
            return start, stop
    raise IntegrityFailure("a folder of the archive does not name a range of entries")


def check_rows(found: Iterable[Row], expected: Iterable[Row]) -> None:
    """The rows of a file are exactly these, in the order of a file.

    Raises:
        IntegrityFailure: One is missing, too many, elsewhere or another; the message names its index.
    """
    wanted = sorted_rows(expected)
    held = list(found)
    for is_row, must_be in zip(held, wanted, strict=False):
        if is_row != must_be:
            raise IntegrityFailure(
                f"the row where that of entry {must_be[INDEX]} must be is not what it says"
            )
    if len(held) != len(wanted):
        raise IntegrityFailure(f"{len(held)} rows are in the place of {len(wanted)}")


class RangeBuilder:
    """Sorts rows into aligned ranges as they come, and gives each range on when it is whole.

    Memory: the rows of one range.

    Args:
        emit: Takes (start, stop, rows in the order of a file); only ranges that have rows.
        width: Entries of a range.
    """

    def __init__(self, emit: Callable[[int, int, list[Row]], None], *, width: int = WIDTH) -> None:
        self._emit = emit
        self._width = width
        self._start = 0
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """The next row, by index."""
        index = row[INDEX]
        if index >= self._start + self._width:
            self._send(self._start + self._width)
            self._start = index - index % self._width
        self._rows.append(row)

    def finish(self, size: int) -> None:
        """Give the last range on, which ends with the log of ``size`` entries at the latest."""
        self._send(min(self._start + self._width, size))

    def _send(self, stop: int) -> None:
        if self._rows:
            self._emit(self._start, stop, sorted_rows(self._rows))
        self._rows = []
