"""The published log's archive: closed ranges of entries as files for engines that read Parquet.

A range is archived once the checkpoint that is published covers all of it, and is then never touched again.
What is written follows from entries that were hashed into that checkpoint's root (I10).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker import limits
from broker.errors import Conflict, IntegrityFailure, RollbackDetected
from broker.ledger import columns, merkle, note
from broker.ledger.columns import WIDTH, Row
from broker.ledger.merkle import Frontier
from broker.ledger.note import TreeHead
from broker.ports import ArchiveFormat, LogSite, View
from broker.services.house import House
from broker.services.log_names import own_verifiers

FOLDER: Final = "archive"
MAX_PART: Final = 1024 * limits.MIB
"""Bytes of a file that is compared with what must be there."""


class LogArchiver:
    """Archives what is closed. Any number of replicas may do so at once; for one thread each.

    Args:
        house: Whose log.
        site: Where to, beside the tiles that a ``LogPublisher`` puts there.
        format: Writes and reads files of rows.
        width: Entries of a range: 256 or 65,536, for whose subtrees the log keeps the hashes. One log, one
            width.
    """

    def __init__(self, house: House, site: LogSite, format: ArchiveFormat, *, width: int = WIDTH) -> None:
        self._house = house
        self._site = site
        self._format = format
        self._width = width
        self._next: int | None = None

    def archive(self, *, until: Callable[[], bool] = lambda: False) -> int:
        """Archive every closed range below the published checkpoint; returns how far the archive goes.

        Args:
            until: Asked after each range; where it says yes the rest is left for later.

        Raises:
            RollbackDetected: A file with other rows is in the place of one of this log's.
            IntegrityFailure: The stored log is not the one that the checkpoint signs; or what is in the place
                of a file is none.
            StoreUnavailable, LedgerUnavailable: The site or the database does not answer. The archive ends
                with the last range before that, whole.
        """
        self._house.guard.check()
        # What is published first, the log after it: see LogPublisher.publish.
        found = self._site.checkpoint()
        if found is None:
            return 0
        with self._house.ledger.view() as view:
            head = note.open_head(found[0], own_verifiers(self._house, view))
        at = self._next if self._next is not None else self._find_end(head.size)
        while at + self._width <= head.size:
            self._put(at, head)
            # Crash here: the file is there, whole, and the next process finds it.
            self._next = at = at + self._width
            if until():
                break
        return at

    def _find_end(self, size: int) -> int:
        """How far the archive goes already: ranges are written in their order, so it has no gaps."""
        low, high = 0, size // self._width
        while low < high:
            middle = (low + high) // 2
            if self._site.has(self._path(middle * self._width)):
                low = middle + 1
            else:
                high = middle
        return low * self._width

    def _path(self, start: int) -> str:
        return f"{FOLDER}/{columns.range_path(start, start + self._width)}"

    def _put(self, start: int, head: TreeHead) -> None:
        rows = self._rows(start, head)
        path = self._path(start)
        try:
            self._site.create(path, self._format.encode(rows))
        except Conflict as exc:
            # Another version of the writer spells the same rows in other bytes.
            held = self._format.decode(self._site.find(path, most=MAX_PART) or b"", most=self._width)
            try:
                columns.check_rows(held, rows)
            except IntegrityFailure as wrong:
                raise self._shut(path, wrong) from exc

    def _rows(self, start: int, head: TreeHead) -> list[Row]:
        """The rows of one range, whose entries are in the signed tree."""
        with self._house.ledger.view() as view:
            entries = [data for _, data, _ in view.entries(start, start + self._width)]
            expected = self._signed_subtree(view, start, head)
        rows = [columns.archive_row(index, data) for index, data in enumerate(entries, start)]
        made, _ = Frontier().extend(row[columns.LEAF_HASH] for row in rows)
        if made.size != self._width or made.root() != expected:
            raise IntegrityFailure(
                f"the entries from {start} on are not those that were signed", next="broker ledger verify"
            )
        return columns.sorted_rows(rows)

    def _signed_subtree(self, view: View, start: int, head: TreeHead) -> bytes:
        """The hash of the subtree of one range, which is in the tree that ``head`` signs."""
        level = self._width.bit_length() - 1
        subtrees = view.hashes(level, 0, head.size >> level)
        # Subtrees stand to the tree above them as leaves to theirs.
        above, _ = Frontier().extend(subtrees)
        whole = merkle.frontier_at(head.size, view.hashes)
        if whole.root() != head.root or whole.peaks[: len(above.peaks)] != above.peaks:
            raise IntegrityFailure(
                "the stored tree is not the one that was signed", next="broker ledger verify"
            )
        return subtrees[start >> level]

    def _shut(self, path: str, wrong: IntegrityFailure) -> RollbackDetected:
        found = RollbackDetected(
            "the ledger is not the one that was archived",
            why=f"{path}: {wrong.what}",
            next="stop the broker and restore the newest database; see docs/operations/rollback.md",
        )
        self._house.guard.shut(found)
        return found
