"""Which files and extents a request is about, and how much of it one lease opens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from broker import limits, names
from broker.drafts import Charge
from broker.envelope import extents
from broker.envelope.manifest import Manifest, manifest_digest, parse_manifest
from broker.errors import IntegrityFailure, InvalidRequest, ScopeExceeded
from broker.ledger.selection import ExtentRun, ExtentSpan, span_runs
from broker.model import ManifestRow
from broker.ports import View


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one lease opens: runs of extents, their number and their plaintext bytes.

    Attributes:
        spans: The segments that its URLs reach; None for whole extents.
    """

    runs: tuple[ExtentRun, ...]
    extents: int
    bytes: int
    spans: tuple[ExtentSpan, ...] | None = None

    @property
    def items(self) -> tuple[tuple[int, ...], ...]:
        """What was served, as it was asked for: spans, else runs."""
        return self.runs if self.spans is None else self.spans


_PARSED: dict[str, Manifest] = {}
_MOST_PARSED = 64


def load_manifest(view: View, digest: str) -> Manifest:
    """The manifest of that digest; its bytes never change, so a parsed one is kept.

    Raises:
        IntegrityFailure: It is missing, or is not what its digest names.
    """
    found = _PARSED.get(digest)
    if found is None:
        row = view.find(ManifestRow, digest)
        if row is None or manifest_digest(row.body) != digest:
            raise IntegrityFailure("the stored manifest is not what its digest names")
        found = parse_manifest(row.body)
        if len(_PARSED) >= _MOST_PARSED:
            _PARSED.clear()
        _PARSED[digest] = found
    return found


def select_files(manifest: Manifest, include: Sequence[str], exclude: Sequence[str]) -> list[int]:
    """Indices of the selected files, ascending.

    Raises:
        InvalidRequest: A pattern is not valid, or nothing is selected.
        TooLarge: Paths times patterns exceed ``limits.MAX_MATCH_STEPS`` (I17).
    """
    names.check_match_effort((file.path for file in manifest.files), [*include, *exclude])
    found = names.select_paths((file.path for file in manifest.files), include=include, exclude=exclude)
    if not found:
        raise InvalidRequest(
            "no file of the version matches", why="include and exclude leave nothing", next="broker info REF"
        )
    return found


def whole_runs(manifest: Manifest, files: Iterable[int]) -> list[ExtentRun]:
    """Every extent of the given files; empty files have none."""
    counts = ((index, _count(manifest, index)) for index in files)
    return [(index, 0, count - 1) for index, count in counts if count]


def check_runs(manifest: Manifest, files: Sequence[int], runs: Sequence[Sequence[int]]) -> list[ExtentRun]:
    """Runs that a caller asked for: ascending, without overlap, inside the selected files.

    Raises:
        InvalidRequest: The shape or the order is wrong, or an extent does not exist.
        ScopeExceeded: A file is not part of the grant's selection; it is never silently left out.
    """
    if len(runs) > limits.MAX_FILES:
        raise InvalidRequest(f"more than {limits.MAX_FILES} runs of extents")
    allowed = set(files)
    checked: list[ExtentRun] = []
    before = (-1, -1)
    for run in runs:
        if len(run) != 3 or any(type(n) is not int or n < 0 for n in run):
            raise InvalidRequest("a run of extents is [file, first, last]")
        file, first, last = run
        if file >= len(manifest.files) or first > last or last >= _count(manifest, file):
            raise InvalidRequest("a run of extents lies outside its file")
        if (file, first) <= before:
            raise InvalidRequest("runs of extents are not ascending, or overlap")
        if file not in allowed:
            raise ScopeExceeded("a file was asked for that the grant does not cover")
        checked.append((file, first, last))
        before = (file, last)
    return checked


def check_spans(manifest: Manifest, files: Sequence[int], spans: Sequence[Sequence[int]]) -> list[ExtentSpan]:
    """Spans that a caller asked for: ascending, without overlap, inside the selected files.

    Raises:
        InvalidRequest: The shape or the order is wrong, or a segment does not exist.
        ScopeExceeded: A file is not part of the grant's selection; it is never silently left out.
    """
    if not 0 < len(spans) <= limits.MAX_LEASE_EXTENTS:
        raise InvalidRequest(f"a lease is asked for with 1 to {limits.MAX_LEASE_EXTENTS} spans")
    if any(len(span) != 4 or any(type(n) is not int or n < 0 for n in span) for span in spans):
        raise InvalidRequest("a span is [file, extent, first segment, last segment]")
    checked: list[ExtentSpan] = [(span[0], span[1], span[2], span[3]) for span in spans]
    if any(after[:3] <= (*before[:2], before[3]) for before, after in pairwise(checked)):
        raise InvalidRequest("spans are not ascending, or overlap")
    check_runs(manifest, files, span_runs(checked))
    for file, extent, first, last in checked:
        if not first <= last < extents.segment_count(_plain(manifest, file, extent)):
            raise InvalidRequest("a span lies outside its extent")
    return checked


def served_bytes(manifest: Manifest, spans: Iterable[ExtentSpan]) -> int:
    """Plaintext bytes that the URLs of these spans reach."""
    return sum(
        extents.segments_plaintext(_plain(manifest, file, extent), first, last)
        for file, extent, first, last in spans
    )


def span_window(manifest: Manifest, spans: Sequence[ExtentSpan], *, room: int) -> Window:
    """The longest prefix of the spans that fits one lease.

    A key opens its whole extent, so it is whole extents that are counted against ``room``.
    """
    window = first_window(manifest, span_runs(spans), room=room)
    file, _, last = window.runs[-1]
    return replace(window, spans=tuple(span for span in spans if span[:2] <= (file, last)))


def first_window(manifest: Manifest, runs: Iterable[ExtentRun], *, room: int) -> Window:
    """The longest prefix of the runs that fits one lease: ``room`` plaintext bytes, and its limits.

    At least one extent fits, whatever its size.
    """
    room = min(room, limits.MAX_LEASE_BYTES)
    taken: list[ExtentRun] = []
    count = total = 0
    for file, first, last in runs:
        size = manifest.files[file].size
        stop = first
        while stop <= last:
            more = extents.extent_plaintext_size(size, manifest.extent_size, stop)
            if count == limits.MAX_LEASE_EXTENTS or (count and total + more > room):
                break
            count, total, stop = count + 1, total + more, stop + 1
        if stop > first:
            taken.append((file, first, stop - 1))
        if stop <= last:
            break
    return Window(runs=tuple(taken), extents=count, bytes=total)


def count_extents(manifest: Manifest, files: Iterable[int]) -> int:
    """Number of extents of the given files."""
    return sum(_count(manifest, index) for index in files)


def charge_for(
    manifest: Manifest, digest: str, window: Window, holders: Iterable[tuple[str, int | None]]
) -> tuple[Charge, ...]:
    """What releasing a window charges to each holder (id, ceiling in bytes or None)."""
    starts = _ordinals(digest, manifest)
    opened = tuple(
        (
            starts[file] + index,
            extents.extent_plaintext_size(manifest.files[file].size, manifest.extent_size, index),
        )
        for file, first, last in window.runs
        for index in range(first, last + 1)
    )
    return tuple(
        Charge(
            holder=holder,
            version_id=manifest.version_id,
            total_extents=starts[-1],
            extents=opened,
            ceiling=ceiling,
        )
        for holder, ceiling in holders
    )


_ORDINALS: dict[str, list[int]] = {}


def _ordinals(digest: str, manifest: Manifest) -> list[int]:
    """Ordinal of the first extent of each file in the version, and the number of all at the end."""
    found = _ORDINALS.get(digest)
    if found is None:
        counts = (_count(manifest, index) for index in range(len(manifest.files)))
        found = list(accumulate(counts, initial=0))
        if len(_ORDINALS) >= _MOST_PARSED:
            _ORDINALS.clear()
        _ORDINALS[digest] = found
    return found


def _count(manifest: Manifest, file: int) -> int:
    return extents.extent_count(manifest.files[file].size, manifest.extent_size)


def _plain(manifest: Manifest, file: int, extent: int) -> int:
    return extents.extent_plaintext_size(manifest.files[file].size, manifest.extent_size, extent)
