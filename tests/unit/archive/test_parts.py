"""Rows in Parquet files: the same rows back, sorted; no file that lies is taken; other readers read them."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyarrow import compute, dataset, parquet

from broker import archive
from broker.archive.parts import GROUP, ParquetParts
from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger import columns
from broker.ledger.columns import COLUMNS, ENTRY, INDEX, LEAF_HASH, SORTED_BY, RangeBuilder, Row
from broker.ledger.entry import build_entry, index_row, parse_entry
from broker.ledger.merkle import leaf_hash
from broker.model import IndexRow
from tests.unit.ledger.samples import NOW, SAMPLES

FORMAT = ParquetParts(COLUMNS, sorted_by=SORTED_BY)


def entry(index: int, *, type: str = "grant", **members: Any) -> bytes:
    salt = index.to_bytes(16, "big")
    return build_entry(type=type, time=NOW + index, salt=salt, **{**SAMPLES[type], **members})


ENTRIES = [entry(at, type=type) for at, type in enumerate(SAMPLES)] + [
    entry(at, principal=f"user:p{at * 7919 % 37}") for at in range(len(SAMPLES), GROUP + 500)
]
ROWS = columns.sorted_rows(columns.archive_row(at, data) for at, data in enumerate(ENTRIES))
DATA = FORMAT.encode(ROWS)


def test_a_row_says_what_its_entry_says_and_nothing_else() -> None:
    names = [column.name for column in COLUMNS]
    assert names[INDEX], names[ENTRY] == ("index", "entry")
    for at, data in enumerate(ENTRIES[: len(SAMPLES)]):
        row = dict(zip(names, columns.archive_row(at, data), strict=True))
        found = index_row(parse_entry(data))
        assert (row.pop("index"), row.pop("entry").encode(), row.pop("leaf_hash")) == (
            at,
            data,
            leaf_hash(data),
        )
        assert row.pop("key") == found.jkt
        assert row.pop("policies") == list(found.policies)
        assert row == {name: getattr(found, name) for name in row}
    # Whatever an entry is searched by, the table has too.
    searched = {each.name for each in dataclasses.fields(IndexRow)}
    assert searched - {"jkt"} <= set(names)
    with pytest.raises(IntegrityFailure):
        columns.archive_row(0, b"{}")


def test_the_same_rows_come_back_by_principal_and_then_by_index() -> None:
    assert FORMAT.decode(DATA, most=len(ROWS)) == ROWS
    assert FORMAT.encode(ROWS) == DATA
    keys = [(row[columns.PRINCIPAL] or "", row[INDEX]) for row in ROWS]
    assert keys == sorted(keys)
    assert FORMAT.decode(FORMAT.encode([]), most=0) == []


def test_a_history_is_in_few_row_groups_and_the_file_says_in_which() -> None:
    meta = parquet.ParquetFile(io.BytesIO(DATA)).metadata
    column = [each.name for each in COLUMNS].index("principal")
    holding = [
        at
        for at in range(meta.num_row_groups)
        if meta.row_group(at).column(column).statistics.min
        <= "user:p2"
        <= meta.row_group(at).column(column).statistics.max
    ]
    assert meta.num_row_groups == 2  # and the other one is passed over
    assert len(holding) == 1
    said = [meta.schema.column(each.column_index).name for each in meta.row_group(0).sorting_columns]
    assert said == list(SORTED_BY)


def rewritten(**how: Any) -> bytes:
    """The same rows, as somebody else writes them."""
    table = parquet.read_table(io.BytesIO(DATA))
    sink = io.BytesIO()
    parquet.write_table(how.pop("table", table), sink, compression="zstd", store_schema=False, **how)
    return sink.getvalue()


@pytest.mark.parametrize(
    "how", ["page index", "bloom filter", "another column", "other names", "no Parquet", "cut"]
)
def test_a_file_of_another_make_is_refused(how: str) -> None:
    table = parquet.read_table(io.BytesIO(DATA))
    data = {
        "page index": lambda: rewritten(write_page_index=True),
        "bloom filter": lambda: rewritten(bloom_filter_options={"principal": True}),
        "another column": lambda: rewritten(table=table.append_column("range", table["type"])),
        "other names": lambda: rewritten(table=table.rename_columns([c.name.upper() for c in COLUMNS])),
        "no Parquet": lambda: b"PAR1" * 100,
        "cut": lambda: DATA[:-1],
    }[how]()
    with pytest.raises(IntegrityFailure):
        FORMAT.decode(data, most=len(ROWS))


def test_more_rows_than_the_name_says_are_refused() -> None:
    with pytest.raises(IntegrityFailure):
        FORMAT.decode(DATA, most=len(ROWS) - 1)


def test_statistics_that_would_hide_rows_are_refused() -> None:
    # Readers pass over row groups by these bounds: the rows are all there, and nobody finds them.
    meta = parquet.ParquetFile(io.BytesIO(DATA)).metadata
    column = [each.name for each in COLUMNS].index("principal")
    bound = meta.row_group(0).column(column).statistics.max.encode()
    footer = DATA[-8 - meta.serialized_size :]
    assert bound in footer
    for other in (bound[:-1] + b"!", bound[:-1] + b"~"):
        forged = DATA[: -len(footer)] + footer.replace(bound, other)
        assert parquet.read_table(io.BytesIO(forged)).equals(parquet.read_table(io.BytesIO(DATA)))
        with pytest.raises(IntegrityFailure, match="statistics"):
            FORMAT.decode(forged, most=len(ROWS))


def test_a_flipped_byte_is_found_or_changes_no_answer() -> None:
    kept = 0
    for at in range(0, len(DATA), 397):
        forged = DATA[:at] + bytes([DATA[at] ^ 0x10]) + DATA[at + 1 :]
        try:
            assert FORMAT.decode(forged, most=len(ROWS)) == ROWS
            kept += 1
        except IntegrityFailure:
            continue
    assert kept < len(DATA) / 397 / 4


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[-1]],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [(*rows[0][:5], "acme/other", *rows[0][6:]), *rows[1:]],
        lambda rows: [(*rows[0][:LEAF_HASH], bytes(32), rows[0][ENTRY]), *rows[1:]],
    ],
    ids=["one missing", "one twice", "order", "a column", "a hash"],
)
def test_rows_that_are_not_those_of_the_entries_are_named(change: Any) -> None:
    columns.check_rows(ROWS, reversed(ROWS))
    with pytest.raises(IntegrityFailure):
        columns.check_rows(change(ROWS), ROWS)


def test_ranges_are_aligned_and_have_one_name() -> None:
    seen: list[tuple[int, int, list[Row]]] = []
    builder = RangeBuilder(lambda *found: seen.append(found), width=256)
    for row in sorted(ROWS, key=lambda row: row[INDEX]):
        if not 256 <= row[INDEX] < 512:
            builder.add(row)
    builder.finish(len(ROWS))
    bounds = [(start, stop) for start, stop, _ in seen]
    assert bounds == [(0, 256), *((at, min(at + 256, len(ROWS))) for at in range(512, len(ROWS), 256))]
    assert sum(len(rows) for _, _, rows in seen) == len(ROWS) - 256
    for start, stop in bounds:
        name, _, file = columns.range_path(start, stop).partition("/")
        assert columns.parse_range(name) == (start, stop)
        assert file == "part.parquet"
    assert columns.range_path(0, 65536) == "range=0000000000-0000065535/part.parquet"


@pytest.mark.parametrize(
    "name",
    [
        "range=0-65535",
        "range=0000000009-0000000001",
        "range=00000000000-0000000001",
        "part",
        "range=../0-1",
        "",
    ],
)
def test_what_names_no_range_is_refused(name: str) -> None:
    with pytest.raises(IntegrityFailure):
        columns.parse_range(name)


@pytest.fixture
def hive(tmp_path: Path) -> Path:
    """The rows as an archive of two ranges."""

    def write(start: int, stop: int, rows: list[Row]) -> None:
        path = tmp_path / "archive" / columns.range_path(start, stop)
        path.parent.mkdir(parents=True)
        path.write_bytes(FORMAT.encode(rows))

    builder = RangeBuilder(write, width=GROUP)
    for row in sorted(ROWS, key=lambda row: row[INDEX]):
        builder.add(row)
    builder.finish(len(ROWS))
    return tmp_path / "archive"


def test_duckdb_reads_the_archive_as_one_table(hive: Path) -> None:
    with duckdb.connect() as connection:
        files = f"read_parquet('{hive}/*/*.parquet', hive_partitioning=true)"
        found = connection.execute(
            f"SELECT count(*), count(DISTINCT range), max(index), sum(bytes) FROM {files}"
        ).fetchall()
        of = f"range = '{GROUP:010d}-{len(ROWS) - 1:010d}'"
        one = connection.execute(f"SELECT index FROM {files} WHERE {of} AND principal = 'user:p3'").fetchall()
    assert found == [(len(ROWS), 2, len(ROWS) - 1, sum(row[9] or 0 for row in ROWS))]
    expected = {row[INDEX] for row in ROWS if row[columns.PRINCIPAL] == "user:p3" and row[INDEX] >= GROUP}
    assert {index for [index] in one} == expected


def test_arrow_reads_the_archive_as_one_table(hive: Path) -> None:
    found = dataset.dataset(hive, partitioning="hive").to_table(
        columns=["index", "time", "leaf_hash", "entry", "range"],
        filter=compute.field("principal") == "user:p3",
    )
    by_index = {row[INDEX]: row for row in ROWS if row[columns.PRINCIPAL] == "user:p3"}
    assert found.num_rows == len(by_index)
    for row in found.to_pylist():
        assert row["entry"] == by_index[row["index"]][ENTRY]
        assert row["leaf_hash"] == leaf_hash(row["entry"].encode())
    assert found.schema.field("time").type == pa.timestamp("ms", tz="UTC")


def test_without_the_extra_it_is_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        archive.library("no_such_library.part")
    assert "archive" in str(caught.value.next)
    # And nothing of it is loaded before it is needed.
    code = (
        "import sys, broker.client.querying, broker.cli.ledger\nprint({'duckdb', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
