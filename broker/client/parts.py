"""Parquet files of verified rows, in folders of ranges: written, or compared with what they must be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from broker.archive.parts import MAX_PART, ParquetParts
from broker.canonical import Json
from broker.client.static_log import write_new
from broker.errors import IntegrityFailure
from broker.ledger import columns
from broker.ledger.columns import COLUMNS, PART, SORTED_BY, RangeBuilder, Row
from broker.model import IndexRow

FORMAT: Final = ParquetParts(COLUMNS, sorted_by=SORTED_BY)
ROWS: Final = "rows"
"""Folder of the rows of an export."""


def read_part(path: Path) -> bytes:
    """The bytes of a file of rows.

    Raises:
        IntegrityFailure: There is none, or it is larger than any.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PART + 1)
    except OSError as exc:
        raise IntegrityFailure(f"{path} cannot be read", why=exc.strerror) from exc
    if len(data) > MAX_PART:
        raise IntegrityFailure(f"{path} is larger than any file of rows")
    return data


def list_parts(folder: Path) -> list[tuple[int, int, Path]]:
    """(start, stop, file) of each range in a folder, ascending.

    Raises:
        IntegrityFailure: Something else is in it.
    """
    found = []
    for place in folder.iterdir():
        start, stop = columns.parse_range(place.name)
        if not place.is_dir() or [each.name for each in place.iterdir()] != [PART]:
            raise IntegrityFailure(f"{place} holds something else than {PART}")
        found.append((start, stop, place / PART))
    return sorted(found)


def check_part(path: Path, start: int, stop: int, expected: list[Row]) -> bytes:
    """The file holds exactly these rows of [start, stop), and statistics that are true; its bytes.

    Raises:
        IntegrityFailure: It does not; the message names it.
    """
    data = read_part(path)
    try:
        columns.check_rows(FORMAT.decode(data, most=stop - start), expected)
    except IntegrityFailure as exc:
        raise IntegrityFailure(f"{path} is not what the log gives", why=exc.what) from exc
    return data


class ParquetRows:
    """The rows of an export as Parquet files by range, written or compared with those that are there.

    Args:
        folder: The export's folder; the files are in ``rows`` below it.
        write: Whether to write them.
    """

    def __init__(self, folder: Path, *, write: bool) -> None:
        self._folder, self._write = folder / ROWS, write
        self._sha256 = hashlib.sha256()
        self._builder = RangeBuilder(self._take)
        self._seen: set[Path] = set()
        self.count = 0

    def put(self, index: int, data: bytes, entry: Json, found: IndexRow) -> None:  # noqa: ARG002 - as of others
        """The next row."""
        self.count += 1
        self._builder.add(columns.row_of(index, data, found))

    def end(self, size: int) -> None:
        """That was the last row of a log of ``size`` entries; nothing else is there.

        Raises:
            IntegrityFailure: Another file is there.
        """
        self._builder.finish(size)
        if self._write or not self._folder.exists():
            return
        for _, _, path in list_parts(self._folder):
            if path not in self._seen:
                raise IntegrityFailure(f"{path} has rows that the query does not give")

    @property
    def digest(self) -> str:
        """``sha256:`` digest over the lines ``<hex digest of a file>  <its path>``, by range."""
        return f"sha256:{self._sha256.hexdigest()}"

    def _take(self, start: int, stop: int, rows: list[Row]) -> None:
        name = columns.range_path(start, stop)
        path = self._folder / name
        if self._write:
            data = FORMAT.encode(rows)
            write_new(path, data)
        else:
            data = check_part(path, start, stop, rows)
            self._seen.add(path)
        self._sha256.update(f"{hashlib.sha256(data).hexdigest()}  {ROWS}/{name}\n".encode())
