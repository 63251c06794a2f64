"""The record behind ``selection.digest``: exactly which files and extents an entry is about.

The client builds the same bytes from its own request and the manifest that it verified, and compares
the digest with the entry's (step 7), so an entry can never speak of another selection.

Layout: RFC 8785 JSON, ``{"schema":"broker/selection/v1","artifact","version","manifest",
"files":[[first,last],...],"lease":N,"extents":[[file,first,last],...],
"spans":[[file,extent,first,last],...]}``. ``files`` are runs of indices into the manifest's list,
ascending; ``extents`` are what the keys of the lease of that number open; ``spans``, only in a lease
that was asked for by spans, are the segments of each of these extents that its URLs reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker.canonical import canonical_bytes, drop_absent

SCHEMA = "broker/selection/v1"

ExtentRun = tuple[int, int, int]
"""(file index, first extent, last extent), both ends included."""

ExtentSpan = tuple[int, int, int, int]
"""(file index, extent, first segment, last segment), both ends included."""


def span_runs(spans: Iterable[ExtentSpan]) -> tuple[ExtentRun, ...]:
    """The extents that ascending spans are of, as runs."""
    runs: list[ExtentRun] = []
    for file, extent, _, _ in spans:
        if runs and runs[-1][0] == file and runs[-1][2] in (extent - 1, extent):
            runs[-1] = (file, runs[-1][1], extent)
        else:
            runs.append((file, extent, extent))
    return tuple(runs)


def count_segments(spans: Iterable[ExtentSpan]) -> int:
    """How many segments the spans have."""
    return sum(last - first + 1 for _, _, first, last in spans)


def index_runs(indices: Iterable[int]) -> list[list[int]]:
    """Ascending indices as runs [first, last], both ends included."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return runs


def selection_record(
    *,
    artifact: str,
    version: str,
    manifest: str,
    files: Iterable[int],
    lease: int,
    extents: Sequence[ExtentRun],
    spans: Sequence[ExtentSpan] | None = None,
) -> bytes:
    """The record's bytes; ``selection.digest`` is ``sha256:`` of them.

    Args:
        manifest: The manifest's digest, ``sha256:<hex>``.
        files: Ascending indices of the selected files.
        lease: Number of the lease that this entry releases, from 0.
        extents: What the keys of that lease open.
        spans: What its URLs reach, when that is less.
    """
    return canonical_bytes(
        drop_absent(
            {
                "schema": SCHEMA,
                "artifact": artifact,
                "version": version,
                "manifest": manifest,
                "files": index_runs(files),
                "lease": lease,
                "extents": [list(run) for run in extents],
                "spans": None if spans is None else [list(span) for span in spans],
            }
        )
    )
