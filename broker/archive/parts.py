"""Parquet files of rows: written so that few bytes answer much, read so that nothing in them is believed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from broker.archive import library
from broker.errors import IntegrityFailure

GROUP: Final = 8192
"""Rows of a row group: a principal's history is in one or two of a range, and the footer stays small."""
_PAGE: Final = 16 << 10
"""Bytes of a page, about: of the long column ``entry`` only the pages with wanted rows are unpacked."""
MAX_PART: Final = 1 << 30
"""Bytes of a file that is still read, and bytes that it may unpack to."""
_WITHOUT_STATISTICS: Final = ("hash", "texts")
_PLAIN: Final = ("entry", "grant", "leaf_hash", "index", "time")
"""Columns whose values hardly repeat: a dictionary of them would be the column once more."""
_BOUNDED: Final = ("index", "time", "type", "principal", "artifact", "decision", "key")
"""Columns whose bounds in a row group are worth a place in the footer, which every question reads whole."""

Columns = Sequence[tuple[str, str, bool]]
"""(name, kind, whether every row has it); kinds are ``count``, ``time``, ``text``, ``texts`` and ``hash``."""
Row = tuple[Any, ...]


class ParquetParts:
    """Writes and reads files of one set of columns. Implements ``ports.ArchiveFormat``.

    No bloom filters and no page indices are written: readers that are not ours would pass over rows by
    them, and :meth:`decode` could not tell whether they are right.

    Args:
        columns: Columns, in their order.
        sorted_by: Names of the columns that rows come sorted by; said in the file.
    """

    def __init__(self, columns: Columns, *, sorted_by: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._sorted_by = tuple(sorted_by)

    def encode(self, rows: Sequence[Row]) -> bytes:
        """A file of these rows, in their order; the same rows, the same bytes, with one version of pyarrow.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        pyarrow, parquet = library("pyarrow"), library("pyarrow.parquet")
        schema = self._schema(pyarrow)
        names = [name for name, _, _ in self._columns]
        sink = io.BytesIO()
        with parquet.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=[name for name in names if name not in _PLAIN],
            write_statistics=[name for name in names if name in _BOUNDED],
            data_page_size=_PAGE,
            write_page_checksum=True,
            sorting_columns=[
                parquet.SortingColumn(names.index(name), nulls_first=True) for name in self._sorted_by
            ],
            store_schema=False,
        ) as writer:
            for group in _groups(rows):
                values = zip(*group, strict=True)
                arrays = [
                    pyarrow.array(each, type=field.type) for each, field in zip(values, schema, strict=True)
                ]
                writer.write_table(pyarrow.table(arrays, schema=schema), row_group_size=GROUP)
        return sink.getvalue()

    def decode(self, data: bytes, *, most: int) -> list[Row]:
        """The rows of a file, in their order, whose statistics hold.

        Args:
            data: The file.
            most: Rows that it has at most.

        Raises:
            IntegrityFailure: It is no such file, has other columns, more rows, or statistics that would
                make readers pass over rows.
            ConfigurationError: pyarrow is not installed.
        """
        pyarrow, parquet = library("pyarrow"), library("pyarrow.parquet")
        try:
            file = parquet.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
            self._check_shape(pyarrow, file, most)
            rows: list[Row] = []
            for at in range(file.metadata.num_row_groups):
                table = file.read_row_group(at, use_threads=False)
                self._check_statistics(file.metadata.row_group(at), table)
                columns = [_values(table.column(name), kind) for name, kind, _ in self._columns]
                rows += zip(*columns, strict=True)
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as exc:
            raise IntegrityFailure("a file of the archive is not one that was written") from exc
        return rows

    def _schema(self, pyarrow: Any) -> Any:
        types = {
            "count": pyarrow.int64(),
            "time": pyarrow.timestamp("ms", tz="UTC"),
            "text": pyarrow.string(),
            "texts": pyarrow.list_(pyarrow.field("element", pyarrow.string(), nullable=False)),
            "hash": pyarrow.binary(32),
        }
        return pyarrow.schema(
            [
                pyarrow.field(name, types[kind], nullable=not required)
                for name, kind, required in self._columns
            ]
        )

    def _leaf(self, name: str, kind: str) -> str:
        return f"{name}.list.element" if kind == "texts" else name

    def _check_shape(self, pyarrow: Any, file: Any, most: int) -> None:
        meta = file.metadata
        unpacked = sum(meta.row_group(at).total_byte_size for at in range(meta.num_row_groups))
        if not 0 <= meta.num_rows <= most or unpacked > MAX_PART:
            raise IntegrityFailure("a file of the archive holds more than its name says")
        if not file.schema_arrow.equals(self._schema(pyarrow)):
            raise IntegrityFailure("a file of the archive has other columns")

    def _check_statistics(self, group: Any, table: Any) -> None:
        compute = library("pyarrow.compute")
        if group.num_rows != table.num_rows:
            raise IntegrityFailure("a file of the archive miscounts its rows")
        kinds = {self._leaf(name, kind): (name, kind) for name, kind, _ in self._columns}
        for at in range(group.num_columns):
            chunk = group.column(at)
            name, kind = kinds[chunk.path_in_schema]
            if chunk.has_offset_index or chunk.has_column_index or chunk.bloom_filter_offset is not None:
                raise IntegrityFailure("a file of the archive has an index that cannot be verified")
            said = chunk.statistics
            if said is None:
                continue
            values = table.column(name)
            if kind in _WITHOUT_STATISTICS or said.has_distinct_count:
                raise IntegrityFailure(f"column {name} of the archive has statistics that cannot be verified")
            if kind == "time":
                values = values.cast("int64")
            true = compute.min_max(values).as_py()
            claimed = (_plain(said.min_raw), _plain(said.max_raw)) if said.has_min_max else None
            holds = said.has_null_count and said.null_count == values.null_count
            if not holds or claimed not in (None, (true["min"], true["max"])):
                raise IntegrityFailure(f"column {name} of a file of the archive has wrong statistics")


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _values(column: Any, kind: str) -> list[Any]:
    values: list[Any] = (column.cast("int64") if kind == "time" else column).to_pylist()
    return values


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while group := list(islice(left, GROUP)):
        yield group
