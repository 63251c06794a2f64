"""The vectors of the archive in ``docs/formats``, against the code, and against plain JSON and hashlib."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

import pytest

from broker.ledger import columns

VECTORS = json.loads(
    (Path(__file__).parents[2] / "docs" / "formats" / "vectors" / "archive.json").read_text(encoding="utf-8")
)
ROWS = VECTORS["rows"]


@pytest.mark.parametrize("row", ROWS, ids=[row["type"] for row in ROWS])
def test_the_rows_of_the_vector_are_made(row: dict[str, object]) -> None:
    made = columns.archive_row(int(str(row["index"])), str(row["entry"]).encode())
    found = dict(zip(VECTORS["columns"], made, strict=True))
    assert {**found, "leaf_hash": found["leaf_hash"].hex()} == row
    assert VECTORS["columns"] == [column.name for column in columns.COLUMNS]
    assert VECTORS["sorted_by"] == list(columns.SORTED_BY)


@pytest.mark.parametrize("row", ROWS, ids=[row["type"] for row in ROWS])
def test_plain_code_makes_the_same_rows(row: dict[str, object]) -> None:
    entry = json.loads(str(row["entry"]))
    plain = {
        name: entry.get(name) for name in ("principal", "action", "artifact", "version", "bytes", "grant")
    }
    decision = entry.get("decision", {})
    assert row == {
        "index": row["index"],
        "entry": row["entry"],
        "leaf_hash": hashlib.sha256(b"\x00" + str(row["entry"]).encode()).hexdigest(),
        "time": round(datetime.fromisoformat(entry["time"]).timestamp() * 1000),
        "type": entry["type"],
        **plain,
        "decision": decision.get("effect"),
        "policies": decision.get("policies", []),
        "purpose": entry.get("purpose"),
        "key": entry.get("jkt") or entry.get("key", {}).get("jkt"),
    }


def test_the_names_of_the_vector_are_made() -> None:
    for item in VECTORS["ranges"]:
        assert columns.range_path(item["start"], item["stop"]) == item["path"]
        assert columns.parse_range(item["path"].partition("/")[0]) == (item["start"], item["stop"])
