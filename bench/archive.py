"""One principal's history out of the ledger's archive, and full scans of the same rows beside it.

The archive is what the broker publishes: ranges of 65,536 entries, each a Parquet file that is sorted by
principal. Beside it stand the same rows in one Parquet file in the log's order: DuckDB scans it whole, and
Arrow reads it whole and then filters. Beside these, the log as JSON lines in a loop of Python. All give the
same rows: index, time, type and the entry's text, of a principal that asked often, of one that did now and
then, and of one that seldom did. Two threads each; rounds are interleaved, ratios are of medians.
"""

from __future__ import annotations

import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import duckdb
from pyarrow import compute, parquet

from bench import machine
from bench.measure import RESULTS
from broker.archive.parts import ParquetParts
from broker.ledger import columns
from broker.ledger.columns import COLUMNS, INDEX, SORTED_BY, RangeBuilder, Row
from broker.ledger.entry import build_entry

PRINCIPALS: Final = 2000
WHOSE: Final = {"often": 40, "now and then": 170, "seldom": 600}
"""How much somebody asked -> the number of such a principal."""
WARM: Final = 3
_NOW: Final = 1_760_000_000_000
_DIGEST: Final = "sha256:" + "5a" * 32
_COLUMNS: Final = "index, time, type, entry"


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when every way gave the same rows.

    ``size_mib`` chooses how long the log is: 512 entries for each MiB that the other benchmarks move.
    """
    count = max(1, size_mib * 512 // columns.WIDTH) * columns.WIDTH
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as name_of:
        folder = Path(name_of)
        written = _write(folder, count)
        found, same = _measure(folder, rounds)
    middle = {what: statistics.median(times) for what, times in found.items()}
    ratios = {
        f"{other}, {often} / archive": middle[f"{other}, {often}"] / middle[f"archive, {often}"]
        for often in WHOSE
        for other in ("full scan, DuckDB", "full read, Arrow")
    }
    for what, seconds in middle.items():
        sys.stdout.write(f"{what:<44} {seconds * 1000:>12,.2f} ms\n")
    for what, ratio in ratios.items():
        sys.stdout.write(f"{what:<44} {ratio:>12.1f}\n")
    summary = {
        "machine": machine.describe(RESULTS),
        "entries": count,
        "principals": PRINCIPALS,
        "bytes": written,
        "seconds": found,
        "ratios": ratios,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0 if same else 1


def _entry(index: int, draw: random.Random) -> bytes:
    """A read of some principal: few ask often, many seldom."""
    number = min(int(draw.paretovariate(0.6)), PRINCIPALS)
    return build_entry(
        type="grant",
        time=_NOW + index * 1000,
        salt=draw.randbytes(16),
        principal=f"user:person-{number:04d}",
        jkt="kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        token=f"t_{draw.randbytes(8).hex()}",
        request_id=draw.randbytes(16).hex(),
        artifact=f"acme/model-{draw.randrange(200):03d}",
        version="v1",
        manifest=_DIGEST,
        action="read",
        selection={"digest": f"sha256:{draw.randbytes(32).hex()}", "files": 12, "extents": 14},
        bytes=draw.randrange(1 << 36),
        purpose="evaluation",
        recipient=_DIGEST,
        decision={"effect": "allow", "policies": ["readers-by-group"], "bundle": _DIGEST},
        grant=f"g_{draw.randbytes(8).hex()}",
        lease=0,
        expires_at="2026-01-01T00:00:00.000Z",
        evidence=f"sha256:{draw.randbytes(32).hex()}",
    )


def _write(folder: Path, count: int) -> dict[str, int]:
    """The same rows three times; bytes of each."""
    format = ParquetParts(COLUMNS, sorted_by=SORTED_BY)
    plain: list[parquet.ParquetWriter] = []

    def put(start: int, stop: int, rows: list[Row]) -> None:
        path = folder / "archive" / columns.range_path(start, stop)
        path.parent.mkdir(parents=True)
        path.write_bytes(format.encode(rows))
        # The other file has the very same values, in the log's order.
        table = parquet.read_table(io.BytesIO(path.read_bytes())).sort_by("index")
        if not plain:
            plain.append(parquet.ParquetWriter(folder / "unsorted.parquet", table.schema, compression="zstd"))
        plain[0].write_table(table)

    draw = random.Random(7)
    builder = RangeBuilder(put)
    with open(folder / "log.jsonl", "wb") as lines:
        for index in range(count):
            data = _entry(index, draw)
            lines.write(data + b"\n")
            builder.add(columns.archive_row(index, data))
    builder.finish(count)
    plain[0].close()
    archive = sum(path.stat().st_size for path in (folder / "archive").rglob("*.parquet"))
    files = {each: (folder / each).stat().st_size for each in ("unsorted.parquet", "log.jsonl")}
    return {"archive": archive, **files}


def _measure(folder: Path, rounds: int) -> tuple[dict[str, list[float]], bool]:
    # As `broker ledger query` names them: without looking for files and for partitions.
    files = ", ".join(f"'{path}'" for path in sorted((folder / "archive").rglob("*.parquet")))
    ways: dict[str, str] = {
        "archive": f"read_parquet([{files}], hive_partitioning=false)",
        "full scan, DuckDB": f"read_parquet('{folder}/unsorted.parquet')",
    }
    found: dict[str, list[float]] = {}
    same = True
    whose = {f"user:person-{number:04d}": often for often, number in WHOSE.items()}
    with duckdb.connect(config={"threads": "2"}) as connection:
        for at in range(rounds + WARM):
            for who, often in whose.items():
                answers = []
                for what, table in ways.items():
                    sql = _sql(table, who)
                    seconds, rows = _timed(lambda: connection.execute(sql).fetchall())  # noqa: B023
                    answers.append(sorted(row[INDEX] for row in rows))
                    if at >= WARM:
                        found.setdefault(f"{what}, {often}", []).append(seconds)
                seconds, rows = _timed(lambda: _read_whole(folder / "unsorted.parquet", who))  # noqa: B023
                answers.append(sorted(rows))
                if at >= WARM:
                    found.setdefault(f"full read, Arrow, {often}", []).append(seconds)
                same = same and answers[0] == answers[1] == answers[2] != []
        lines, rows = _timed(lambda: _scan_lines(folder / "log.jsonl", next(iter(whose))))
        found["JSON lines, Python"] = [lines]
    return found, same and bool(rows)


def _sql(table: str, who: str) -> str:
    # Times as text: DuckDB's own conversion of them would need one more library.
    chosen = _COLUMNS.replace("time", "epoch_ms(time)")
    return f"SELECT {chosen} FROM {table} WHERE principal = '{who}'"


def _read_whole(path: Path, who: str) -> list[int]:
    table = parquet.read_table(path, columns=["index", "time", "type", "entry", "principal"])
    indices: list[int] = table.filter(compute.field("principal") == who)["index"].to_pylist()
    return indices


def _scan_lines(path: Path, who: str) -> list[int]:
    with open(path, "rb") as lines:
        return [at for at, line in enumerate(lines) if json.loads(line).get("principal") == who]


def _timed(act: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = act()
    return time.perf_counter() - began, found
