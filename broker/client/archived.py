"""The archive of a log that was taken home: its files against the leaf hashes of the signed tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from broker.client.parts import FORMAT, list_parts, read_part
from broker.errors import IntegrityFailure
from broker.ledger import columns
from broker.ledger.columns import ENTRY, INDEX, LEAF_HASH, Row

ARCHIVE: Final = "archive"
"""Folder of the archive beside the log's tiles."""


class ArchiveCheck:
    """Compares the files of an archive with the leaf hashes of a log, as these come.

    The archive is a beginning of the log without gaps: ranges that are closed later are added later.

    Args:
        folder: The log's folder; there may be no archive in it.
        emit: Takes (start, stop, rows in the order of a file) of each range that holds.

    Raises:
        IntegrityFailure: What is there is no archive, or has gaps.
    """

    def __init__(self, folder: Path, emit: Callable[[int, int, list[Row]], None] | None = None) -> None:
        place = folder / ARCHIVE
        self._left = list_parts(place) if place.is_dir() else []
        self._emit = emit
        self._hashes: list[bytes] = []
        self.size = 0
        for start, stop, path in self._left:
            if start != self.size:
                raise IntegrityFailure(f"{path} does not begin where the archive before it ends")
            self.size = stop

    def take(self, start: int, hashes: Sequence[bytes]) -> None:
        """The leaf hashes from ``start`` on.

        Raises:
            IntegrityFailure: A file is not what the entries behind these hashes give; the message names it.
        """
        if start >= self.size:
            return
        self._hashes += hashes
        while self._left and len(self._hashes) >= self._left[0][1] - self._left[0][0]:
            self._check(*self._left.pop(0))

    def finish(self) -> None:
        """Those were all hashes of the log.

        Raises:
            IntegrityFailure: The archive goes on beyond it.
        """
        if self._left:
            raise IntegrityFailure(f"{self._left[0][2]} has rows that the log does not have")

    def _check(self, start: int, stop: int, path: Path) -> None:
        hashes, self._hashes = self._hashes[: stop - start], self._hashes[stop - start :]
        try:
            rows = FORMAT.decode(read_part(path), most=stop - start)
            if sorted(row[INDEX] for row in rows) != list(range(start, stop)):
                raise IntegrityFailure("entries are missing, or there twice")
            made = [columns.archive_row(row[INDEX], row[ENTRY].encode()) for row in rows]
            for row in made:
                if row[LEAF_HASH] != hashes[row[INDEX] - start]:
                    raise IntegrityFailure(f"entry {row[INDEX]} is not the one that the log has")
            columns.check_rows(rows, made)
        except IntegrityFailure as exc:
            raise IntegrityFailure(f"{path} is not what the log gives", why=exc.what) from exc
        if self._emit is not None:
            self._emit(start, stop, rows)
