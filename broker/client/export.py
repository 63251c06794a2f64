"""Exports: the log taken home, whole, with what a question gives over it, and a certificate.

An export holds the whole log up to one signed tree head. So a third party can tell, offline, not only
that each row is genuine but that none was left out. See ``docs/formats/export.md``.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from broker.canonical import Json, canonical_bytes
from broker.client.archived import ArchiveCheck
from broker.client.parts import ROWS, ParquetRows
from broker.client.static_log import LogWriter, open_folder, read_checkpoint, verify_static_log, write_new
from broker.errors import DiskFull, IntegrityFailure, UsageError
from broker.ledger import certificate, note, ocsf
from broker.ledger.certificate import Certificate, Sample, Sampler
from broker.ledger.entry import index_row, parse_entry
from broker.ledger.note import TreeHead
from broker.ledger.query import matches, search_row
from broker.model import IndexRow, Query

CERTIFICATE: Final = "certificate.json"
RECEIPT: Final = "export.tlog-proof"
COLUMNS: Final = tuple(search_row(0, IndexRow(time=0, type="")))
"""Columns of the CSV: the members of a search row, in their order."""
_FORMULA: Final = ("=", "+", "-", "@")

Progress = Callable[[int, int], None]
"""Told (entries read, entries in all)."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """An export that holds: what it says follows from the log that the checkpoint signs.

    Attributes:
        head: The tree head.
        certificate: What the rows are; None for an export of tiles alone.
    """

    head: TreeHead
    certificate: Certificate | None


def rows_name(format: str) -> str:
    """Name of the file of rows; for Parquet, of the folder of its files."""
    if format == "ocsf":
        return "rows.ocsf.jsonl"
    return ROWS if format == "parquet" else f"rows.{format}"


def write_log(
    folder: Path,
    pages: Iterator[Sequence[bytes]],
    head_note: str,
    head: TreeHead,
    *,
    on_progress: Progress | None = None,
) -> None:
    """Write the log's tiles and entries into an empty folder, verified against the head.

    Args:
        folder: Empty, or not there yet.
        pages: The log's entries from 0 on, in pieces of any length.
        head_note: The signed tree head.
        head: The same, opened.
        on_progress: Told after each piece.

    Raises:
        IntegrityFailure: The entries are not those that the head signs.
        UsageError, DiskFull: The folder is not empty, or cannot be written.
    """
    open_folder(folder)
    writer = LogWriter(folder)
    for page in pages:
        writer.add(page)
        if on_progress is not None:
            on_progress(writer.size, head.size)
    writer.finish(head_note, head)


def write_rows(folder: Path, vkey: str, *, query: Query, format: str, sample: Sample | None) -> Certificate:
    """Answer a query from the log in ``folder``: the file of rows, and last the certificate.

    Raises:
        IntegrityFailure: The log does not hold.
    """
    made = _derive(folder, vkey, query=query, format=format, sample=sample, write=True)
    write_new(folder / CERTIFICATE, made.to_bytes())
    return made


def verify_export(folder: Path, vkey: str) -> Verified:
    """Verify an export offline: the log, that the rows are the whole answer, and the sample's draw.

    Args:
        folder: The export.
        vkey: The log's verifier key, from somebody other than the exporter.

    Raises:
        IntegrityFailure: Something in it is not what the signed log gives; the message says what.
        UsageError: There is no export in the folder.
    """
    try:
        data = _read_small(folder / CERTIFICATE)
    except FileNotFoundError as exc:
        stray = [rows_name(each) for each in certificate.FORMATS if (folder / rows_name(each)).exists()]
        if stray:
            raise IntegrityFailure(f"{folder / stray[0]} is there without its certificate") from exc
        archive = ArchiveCheck(folder)
        head = verify_static_log(folder, vkey, on_hashes=archive.take).head
        archive.finish()
        return Verified(head=head, certificate=None)
    asked = certificate.parse_certificate(data)
    made = _derive(folder, vkey, query=asked.query, format=asked.format, sample=asked.sample, write=False)
    if made.to_bytes() != data:
        raise IntegrityFailure(
            f"{folder / CERTIFICATE} is not what the signed log gives",
            why=f"{made.matching} entries match, {made.rows} rows, digest {made.digest}",
        )
    return Verified(head=note.open_head(read_checkpoint(folder), vkey), certificate=made)


def _derive(
    folder: Path, vkey: str, *, query: Query, format: str, sample: Sample | None, write: bool
) -> Certificate:
    """Verify the log, and write or compare the rows that a query gives over it."""
    chosen: frozenset[int] | None = None
    matching = 0
    if sample is not None:
        # The sample is drawn over all matching rows before the first is written: the log is read twice.
        head = verify_static_log(folder, vkey).head
        sampler = Sampler(sample, head.root)

        def offer(start: int, entries: Sequence[bytes]) -> None:
            nonlocal matching
            for index, entry in enumerate(entries, start):
                if matches(query, index_row(parse_entry(entry))):
                    matching += 1
                    sampler.offer(index)

        verify_static_log(folder, vkey, on_entries=offer)
        chosen = sampler.chosen()
    # Events name their log: as the checkpoint does whose signature holds.
    origin = note.open_head(read_checkpoint(folder), vkey).origin
    with _open_rows(folder, format=format, origin=origin, write=write) as rows:

        def take(start: int, entries: Sequence[bytes]) -> None:
            nonlocal matching
            for index, data in enumerate(entries, start):
                entry = parse_entry(data)
                row = index_row(entry)
                if not matches(query, row):
                    continue
                if chosen is None:
                    matching += 1
                elif index not in chosen:
                    continue
                rows.put(index, data, entry, row)

        log = verify_static_log(folder, vkey, on_entries=take)
        rows.end(log.head.size)
    return Certificate(
        origin=log.head.origin,
        size=log.head.size,
        root=log.head.root,
        query=query,
        format=format,
        matching=matching,
        rows=rows.count,
        digest=rows.digest,
        sample=sample,
    )


def _open_rows(
    folder: Path, *, format: str, origin: str, write: bool
) -> AbstractContextManager[_Rows | ParquetRows]:
    if format == "parquet":
        return nullcontext(ParquetRows(folder, write=write))
    return _Rows(folder / rows_name(format), format=format, origin=origin, write=write)


class _Rows:
    """A file of rows that is written, or compared with the one that is there."""

    def __init__(self, path: Path, *, format: str, origin: str, write: bool) -> None:
        self._path, self._write, self._format, self._origin = path, write, format, origin
        self._sha256 = hashlib.sha256()
        self._file: IO[bytes]
        self.count = 0

    def __enter__(self) -> _Rows:
        try:
            self._file = open(self._path, "xb" if self._write else "rb")
        except FileNotFoundError as exc:
            raise IntegrityFailure(f"{self._path} is missing") from exc
        except OSError as exc:
            raise UsageError(f"cannot open {self._path}", why=exc.strerror) from exc
        if self._format == "csv":
            self._take(_csv_line(COLUMNS))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, index: int, data: bytes, entry: Json, found: IndexRow) -> None:  # noqa: ARG002 - as Parquet's
        """The next row."""
        self.count += 1
        if self._format == "ocsf":
            self._take(canonical_bytes(ocsf.event(index, entry, origin=self._origin)) + b"\n")
            return
        row = search_row(index, found)
        if self._format == "csv":
            self._take(_csv_line([_cell(row[name]) for name in COLUMNS]))
        else:
            self._take(canonical_bytes({**row, "entry": entry}) + b"\n")

    def end(self, size: int) -> None:  # noqa: ARG002 - as Parquet's
        """Nothing comes after the last row."""
        if not self._write and self._file.read(1):
            raise IntegrityFailure(f"{self._path} has more rows than the query gives ({self.count})")

    @property
    def digest(self) -> str:
        """``sha256:`` digest of the file."""
        return f"sha256:{self._sha256.hexdigest()}"

    def _take(self, line: bytes) -> None:
        self._sha256.update(line)
        if not self._write:
            if self._file.read(len(line)) != line:
                raise IntegrityFailure(
                    f"{self._path} is not what the query gives over the log",
                    why=f"first at row {self.count}" if self.count else "its heading is another",
                )
            return
        try:
            self._file.write(line)
        except OSError as exc:
            raise DiskFull(f"cannot write {self._path}", why=exc.strerror) from exc


def _cell(value: Any) -> str:
    # Entries hold no control characters; a text that a spreadsheet would run gets a quote before it.
    text = "" if value is None else " ".join(value) if isinstance(value, list) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_line(cells: Sequence[str]) -> bytes:
    held = io.StringIO()
    csv.writer(held, lineterminator="\n").writerow(cells)
    return held.getvalue().encode()


def _read_small(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(certificate.MAX_CERTIFICATE + 1)
