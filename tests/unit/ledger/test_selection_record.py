"""The record behind a selection: its one form, with and without spans."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.ledger.selection import SCHEMA, ExtentSpan, count_segments, selection_record, span_runs

MANIFEST = "sha256:" + 64 * "a"


def record(**members: Any) -> dict[str, Any]:
    fixed: dict[str, Any] = {"artifact": "acme/llama", "version": "v1", "manifest": MANIFEST}
    found: dict[str, Any] = json.loads(selection_record(**fixed, **members))
    return found


def test_a_record_without_spans_is_what_it_always_was() -> None:
    assert record(files=[0, 1, 4], lease=2, extents=((1, 0, 3),)) == {
        "schema": SCHEMA,
        "artifact": "acme/llama",
        "version": "v1",
        "manifest": MANIFEST,
        "files": [[0, 1], [4, 4]],
        "lease": 2,
        "extents": [[1, 0, 3]],
    }


def test_a_record_with_spans_names_extents_too() -> None:
    spans = ((1, 0, 3, 4), (1, 0, 9, 9), (1, 1, 0, 0))
    found = record(files=[1], lease=0, extents=span_runs(spans), spans=spans)
    assert found["spans"] == [[1, 0, 3, 4], [1, 0, 9, 9], [1, 1, 0, 0]]
    assert found["extents"] == [[1, 0, 1]]


spans = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9)), unique=True, max_size=20
).map(lambda places: tuple((file, extent, at, at) for file, extent, at in sorted(places)))


@given(spans)
def test_runs_of_spans_are_their_extents(found: tuple[ExtentSpan, ...]) -> None:
    runs = span_runs(found)
    spread = [(file, extent) for file, first, last in runs for extent in range(first, last + 1)]
    assert spread == sorted({(file, extent) for file, extent, _, _ in found})
    for before, after in pairwise(runs):
        assert (before[0], before[2] + 1) < (after[0], after[1]), "runs that touch are one run"
    assert count_segments(found) == len(found)
