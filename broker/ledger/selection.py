"""The record behind ``selection.digest``: exactly which files and extents an entry is about.

The client builds the same bytes from its own request and the manifest that it verified, and compares
the digest with the entry's (step 7), so an entry can never speak of another selection.

Layout: RFC 8785 JSON, ``{"schema":"broker/selection/v1","artifact","version","manifest",
"files":[[first,last],...],"lease":N,"extents":[[file,first,last],...]}``. ``files`` are runs of
indices into the manifest's list, ascending; ``extents`` are what the lease of that number opens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker.canonical import canonical_bytes

SCHEMA = "broker/selection/v1"

ExtentRun = tuple[int, int, int]
"""(file index, first extent, last extent), both ends included."""


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
) -> bytes:
    """The record's bytes; ``selection.digest`` is ``sha256:`` of them.

    Args:
        manifest: The manifest's digest, ``sha256:<hex>``.
        files: Ascending indices of the selected files.
        lease: Number of the lease that this entry releases, from 0.
        extents: What that lease opens.
    """
    return canonical_bytes(
        {
            "schema": SCHEMA,
            "artifact": artifact,
            "version": version,
            "manifest": manifest,
            "files": index_runs(files),
            "lease": lease,
            "extents": [list(run) for run in extents],
        }
    )
