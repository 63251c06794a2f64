"""Step 6, the release: unwrap, derive, presign, seal. Called with a :class:`Recorded` only (I01)."""

from __future__ import annotations

import json
from typing import Any

from broker.canonical import Json, b64url, drop_absent, format_time
from broker.drafts import Absent
from broker.envelope import extents, seal, wrap
from broker.envelope.lease import (
    LeaseExtent,
    LeaseFile,
    LeasePiece,
    LeasePlace,
    OpenLease,
    lease_bytes,
    range_header,
)
from broker.envelope.manifest import Manifest
from broker.errors import Conflict, IntegrityFailure
from broker.ledger.selection import ExtentRun, ExtentSpan, span_runs
from broker.model import Lease, Version
from broker.services.house import House
from broker.services.record import Recorded


def object_name(version_id: bytes, file: int) -> str:
    """Where a file's ciphertext is. The random version id makes it a name that no one can aim at."""
    return f"v1/{version_id.hex()}/f/{file}"


def segments_name(version_id: bytes, file: int) -> str:
    """Where a file's encrypted list of segment digests is."""
    return f"v1/{version_id.hex()}/s/{file}"


def absent_lease(lease: Lease) -> Absent:
    """Says that no lease of this number exists yet."""
    return Absent(row=Lease, key=(lease.grant, lease.number))


def version_aad(version: Version) -> bytes:
    """What the version's key is bound to: relabelling the row makes it unopenable (I19)."""
    return wrap.wrap_aad(
        use="version",
        version_id=version.version_id,
        artifact=version.artifact,
        tier=json.loads(version.labels).get("tier", "standard"),
        manifest=version.manifest,
    )


def release(
    house: House,
    *,
    version: Version,
    manifest: Manifest,
    lease: Lease,
    recorded: Recorded,
    recipient: bytes,
    ranges: bool,
) -> Json:
    """The sealed lease: extent keys and URLs that only the recipient can open, under that entry only.

    Raises:
        IntegrityFailure: The entry does not speak of this lease, or the version's key does not open.
        Conflict: Less than a second of the lease is left.
        StoreUnavailable: URLs cannot be signed.
    """
    entry = recorded.entry
    expires_at = format_time(lease.expires)
    if (entry["grant"], entry["lease"], entry["manifest"], entry["recipient"], entry["expires_at"]) != (
        lease.grant,
        lease.number,
        version.manifest,
        lease.recipient,
        expires_at,
    ):
        raise IntegrityFailure("the recorded entry speaks of another lease; nothing is released")
    version_key = house.custody.unwrap(version.wrapped_key, version_aad(version))
    runs, spans = lease_items(lease)
    signer = _Signer(house, version, manifest, lease, version_key)
    opened = OpenLease(
        grant=lease.grant,
        number=lease.number,
        files=_open_files(signer, runs, spans, ranges=ranges or spans is not None),
    )
    info = seal.lease_info(
        grant=lease.grant,
        number=lease.number,
        leaf_hash=recorded.leaf_hash,
        jkt=entry["jkt"],
        recipient_digest=lease.recipient,
        expires_at=expires_at,
    )
    return drop_absent(
        {
            "number": lease.number,
            "expires_at": expires_at,
            "extents": [list(run) for run in runs],
            "spans": None if spans is None else [list(span) for span in spans],
            "ciphertext": b64url(seal.seal(lease_bytes(opened), recipient, info)),
        }
    )


def lease_items(lease: Lease) -> tuple[tuple[ExtentRun, ...], tuple[ExtentSpan, ...] | None]:
    """What a lease's row says that it opens: runs of extents, and spans when it was asked for by spans."""
    items = json.loads(lease.extents)
    if any(len(item) == 4 for item in items):
        spans = tuple((item[0], item[1], item[2], item[3]) for item in items)
        return span_runs(spans), spans
    return tuple((item[0], item[1], item[2]) for item in items), None


class _Signer:
    """Keys and URLs of one lease."""

    def __init__(
        self, house: House, version: Version, manifest: Manifest, lease: Lease, version_key: bytes
    ) -> None:
        self._house, self._version, self.manifest, self._lease = house, version, manifest, lease
        self._version_key = version_key
        self._now = house.clock.now()

    def extent(self, file: int, index: int) -> LeaseExtent:
        """A whole extent."""
        start, length = extents.extent_range(*self._sizes(file), index)
        return LeaseExtent(index=index, key=self._key(file, index), **self._place(file, start, length))

    def span(self, file: int, index: int, first: int, last: int) -> LeaseExtent:
        """Some segments of an extent, and its header."""
        whole, _ = extents.extent_range(*self._sizes(file), index)
        start, length = extents.segments_range(*self._sizes(file), index, first, last)
        header = LeasePlace(**self._place(file, whole, extents.HEADER_SIZE)) if first else None
        return LeaseExtent(
            index=index,
            key=self._key(file, index),
            span=(first, last),
            header=header,
            **self._place(file, start, length),
        )

    def segment_list(self, file: int) -> LeasePiece | None:
        """A file's list of segment digests, if it has one."""
        if not extents.has_segments_object(*self._sizes(file)):
            return None
        length = extents.segments_object_size(*self._sizes(file))
        name = segments_name(self._version.version_id, file)
        path = self.manifest.files[file].path
        return LeasePiece(
            key=extents.segments_key(self._version_key, self._version.version_id, path),
            url=self._presign(name, 0, length),
            start=0,
            length=length,
        )

    def _sizes(self, file: int) -> tuple[int, int]:
        return self.manifest.files[file].size, self.manifest.extent_size

    def _key(self, file: int, index: int) -> bytes:
        path = self.manifest.files[file].path
        return extents.extent_key(self._version_key, self._version.version_id, path, index)

    def _place(self, file: int, start: int, length: int) -> dict[str, Any]:
        url = self._presign(object_name(self._version.version_id, file), start, length)
        return {"url": url, "start": start, "length": length}

    def _presign(self, name: str, start: int, length: int) -> str:
        left = (self._lease.expires - self._now) // 1000
        if left < 1:
            # I06: a URL lives for whole seconds, and never longer than its lease.
            raise Conflict("the lease ran out before it was released", next="ask for a new lease")
        url, _ = self._house.presigner.get(
            name,
            byte_range=range_header(start, length),
            grant=self._lease.grant,
            expires=left,
            now=self._now,
        )
        return url


def _open_files(
    signer: _Signer,
    runs: tuple[ExtentRun, ...],
    spans: tuple[ExtentSpan, ...] | None,
    *,
    ranges: bool,
) -> tuple[LeaseFile, ...]:
    by_file: dict[int, list[LeaseExtent]] = {}
    if spans is not None:
        for file, index, first, last in spans:
            by_file.setdefault(file, []).append(signer.span(file, index, first, last))
    else:
        for file, start, stop in runs:
            found = by_file.setdefault(file, [])
            found.extend(signer.extent(file, index) for index in range(start, stop + 1))
    return tuple(
        LeaseFile(
            file=file,
            path=signer.manifest.files[file].path,
            extents=tuple(found),
            segments=signer.segment_list(file) if ranges else None,
        )
        for file, found in sorted(by_file.items())
    )
