"""The end of step 7: a sealed lease is opened, and holds what was asked for and nothing else (I18).

What a lease says is compared with three things that the client knows by itself: its own request, the
verified entry, and the verified manifest, from which every place follows by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from broker.canonical import sha256_digest
from broker.client.grants import Extent, SealedLease
from broker.client.versions import TrustedVersion
from broker.envelope import extents, seal
from broker.envelope.lease import LeaseExtent, LeaseFile, OpenLease, parse_lease
from broker.envelope.manifest import Manifest
from broker.errors import IntegrityFailure
from broker.ledger.selection import ExtentRun, ExtentSpan, count_segments, selection_record, span_runs


def open_lease(
    lease: SealedLease,
    version: TrustedVersion,
    files: Sequence[int],
    *,
    asked: Iterable[ExtentRun] | None = None,
    spans: Sequence[ExtentSpan] | None = None,
    jkt: str,
) -> OpenLease:
    """Step 7's end: the lease, opened, with nothing in it that was not asked for.

    Args:
        lease: Sealed, with a verified receipt.
        version: The version, its manifest verified.
        files: Our own selection: ascending indices into the manifest.
        asked: The runs that were asked for; None means every extent of the selection.
        spans: The spans that were asked for in their place; None means whole extents.
        jkt: Thumbprint of our key.

    Raises:
        IntegrityFailure: It does not open, or holds anything but extents of this selection, or but the
            segments that were asked for, at their places.
    """
    entry, manifest = lease.receipt.entry, version.manifest
    if entry["manifest"] != version.digest:
        raise IntegrityFailure("a lease is of another manifest")
    # The grant's own entry speaks of everything selected, a later lease of the files that it opens.
    named = files if lease.number == 0 else sorted({run[0] for run in lease.runs})
    record = selection_record(
        artifact=manifest.artifact,
        version=manifest.version,
        manifest=version.digest,
        files=named,
        lease=lease.number,
        extents=lease.runs,
        spans=lease.spans,
    )
    if entry["selection"]["digest"] != sha256_digest(record):
        raise IntegrityFailure("the entry speaks of another selection than this request")
    _check_spans(lease, manifest, spans)
    wanted = _expected_extents(manifest, files, lease.runs, asked if spans is None else span_runs(spans))
    info = seal.lease_info(
        grant=lease.grant,
        number=lease.number,
        leaf_hash=lease.receipt.leaf_hash,
        jkt=jkt,
        recipient_digest=lease.recipient.digest,
        expires_at=lease.expires_at,
    )
    opened = parse_lease(seal.open_sealed(lease.ciphertext, lease.recipient, info))
    if opened.grant != lease.grant or opened.number != lease.number:
        raise IntegrityFailure("a lease that opened is another one")
    _check_places(opened, manifest, wanted, lease.spans)
    return opened


def _check_spans(lease: SealedLease, manifest: Manifest, asked: Sequence[ExtentSpan] | None) -> None:
    """The broker serves a prefix of the spans that were asked for, and no span where none was."""
    served = lease.spans
    if asked is None or served is None:
        same = asked is None and served is None
    else:
        same = 0 < len(served) <= len(asked) and tuple(asked[: len(served)]) == served
    if not same or (served is not None and lease.runs != span_runs(served)):
        raise IntegrityFailure("a lease is of other segments than were asked for")
    if served is not None:
        entry, count = lease.receipt.entry, count_segments(served)
        if (entry["selection"].get("segments"), entry.get("served")) != (count, _plain(manifest, served)):
            raise IntegrityFailure("the entry counts other segments than were asked for")


def _plain(manifest: Manifest, spans: Sequence[ExtentSpan]) -> int:
    """Plaintext bytes of spans that lie in this manifest: a prefix of our own request."""
    sizes = [(manifest.files[span[0]].size, manifest.extent_size, span[1]) for span in spans]
    return sum(
        extents.segments_plaintext(extents.extent_plaintext_size(*size), span[2], span[3])
        for size, span in zip(sizes, spans, strict=True)
    )


def _expected_extents(
    manifest: Manifest, files: Sequence[int], runs: Iterable[ExtentRun], asked: Iterable[ExtentRun] | None
) -> set[Extent]:
    allowed = set(files)
    served = _spread(manifest, runs)
    if any(file not in allowed for file, _ in served):
        raise IntegrityFailure("a lease names a file outside this selection")
    if asked is not None and not served <= _spread(manifest, asked):
        raise IntegrityFailure("a lease names an extent that was not asked for")
    return served


def _spread(manifest: Manifest, runs: Iterable[ExtentRun]) -> set[Extent]:
    found: set[Extent] = set()
    for file, first, last in runs:
        if file >= len(manifest.files) or not first <= last < len(manifest.files[file].extents):
            raise IntegrityFailure("a lease names an extent that does not exist")
        found.update((file, index) for index in range(first, last + 1))
    return found


def _check_places(
    opened: OpenLease, manifest: Manifest, wanted: set[Extent], spans: Sequence[ExtentSpan] | None
) -> None:
    seen: list[ExtentSpan | Extent] = []
    for file, extent in opened_extents(opened):
        place = file.file, extent.index
        if place not in wanted:
            raise IntegrityFailure("a lease opens an extent that its entry does not name")
        seen.append(place if extent.span is None else (*place, *extent.span))
    # Both ascend: by the form of a lease, and as they were asked for.
    if seen != (sorted(wanted) if spans is None else list(spans)):
        raise IntegrityFailure("a lease opens less, or other segments, than its entry names")
    for file, extent in opened_extents(opened):
        if file.path != manifest.files[file.file].path:
            raise IntegrityFailure("a lease places an extent elsewhere than the manifest does")
        _check_place(extent, manifest, file.file)
    for opened_file in opened.files:
        _check_segments(opened_file, manifest)


def _check_place(extent: LeaseExtent, manifest: Manifest, file: int) -> None:
    sizes = manifest.files[file].size, manifest.extent_size, extent.index
    whole = extents.extent_range(*sizes)
    place = whole if extent.span is None else extents.segments_range(*sizes, *extent.span)
    header = extent.header
    fits = header is None or (header.start, header.length) == (whole[0], extents.HEADER_SIZE)
    if (extent.start, extent.length) != place or not fits:
        raise IntegrityFailure("a lease places an extent elsewhere than the manifest does")


def _check_segments(file: LeaseFile, manifest: Manifest) -> None:
    if file.segments is None:
        return
    if file.file >= len(manifest.files):
        raise IntegrityFailure("a lease names a file that does not exist")
    size = extents.segments_object_size(manifest.files[file.file].size, manifest.extent_size)
    if (file.segments.start, file.segments.length) != (0, size):
        raise IntegrityFailure("a lease places a segment list elsewhere than the manifest does")


def opened_extents(lease: OpenLease) -> Iterator[tuple[LeaseFile, LeaseExtent]]:
    """Every extent of an opened lease with its file, in order."""
    for file in lease.files:
        for extent in file.extents:
            yield file, extent
