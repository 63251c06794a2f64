"""Step 6, the release: unwrap, derive, presign, seal. Called with a :class:`Recorded` only (I01)."""

from __future__ import annotations

import json

from broker.canonical import Json, b64url, format_time
from broker.drafts import Absent
from broker.envelope import extents, seal, wrap
from broker.envelope.lease import LeaseExtent, LeaseFile, LeasePiece, OpenLease, lease_bytes
from broker.envelope.manifest import Manifest
from broker.errors import Conflict, IntegrityFailure
from broker.ledger.selection import ExtentRun
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
    runs: list[ExtentRun] = [(run[0], run[1], run[2]) for run in json.loads(lease.extents)]
    opened = OpenLease(
        grant=lease.grant,
        number=lease.number,
        files=_open_files(house, version, manifest, lease, version_key, runs, ranges=ranges),
    )
    info = seal.lease_info(
        grant=lease.grant,
        number=lease.number,
        leaf_hash=recorded.leaf_hash,
        jkt=entry["jkt"],
        recipient_digest=lease.recipient,
        expires_at=expires_at,
    )
    return {
        "number": lease.number,
        "expires_at": expires_at,
        "extents": [list(run) for run in runs],
        "ciphertext": b64url(seal.seal(lease_bytes(opened), recipient, info)),
    }


def _open_files(
    house: House,
    version: Version,
    manifest: Manifest,
    lease: Lease,
    version_key: bytes,
    runs: list[ExtentRun],
    *,
    ranges: bool,
) -> tuple[LeaseFile, ...]:
    by_file: dict[int, list[LeaseExtent]] = {}
    now = house.clock.now()
    for file, first, last in runs:
        listed = manifest.files[file]
        name = object_name(version.version_id, file)
        for index in range(first, last + 1):
            start, length = extents.extent_range(listed.size, manifest.extent_size, index)
            url = _presign(house, name, start, length, lease, now)
            key = extents.extent_key(version_key, version.version_id, listed.path, index)
            extent = LeaseExtent(index=index, key=key, url=url, start=start, length=length)
            by_file.setdefault(file, []).append(extent)
    return tuple(
        LeaseFile(
            file=file,
            path=manifest.files[file].path,
            extents=tuple(found),
            segments=_segments(house, version, manifest, lease, version_key, file, now) if ranges else None,
        )
        for file, found in sorted(by_file.items())
    )


def _segments(
    house: House,
    version: Version,
    manifest: Manifest,
    lease: Lease,
    version_key: bytes,
    file: int,
    now: int,
) -> LeasePiece | None:
    listed = manifest.files[file]
    if not extents.has_segments_object(listed.size, manifest.extent_size):
        return None
    length = extents.segments_object_size(listed.size, manifest.extent_size)
    name = segments_name(version.version_id, file)
    return LeasePiece(
        key=extents.segments_key(version_key, version.version_id, listed.path),
        url=_presign(house, name, 0, length, lease, now),
        start=0,
        length=length,
    )


def _presign(house: House, name: str, start: int, length: int, lease: Lease, now: int) -> str:
    left = (lease.expires - now) // 1000
    if left < 1:
        # I06: a URL lives for whole seconds, and never longer than its lease.
        raise Conflict("the lease ran out before it was released", next="ask for a new lease")
    url, _ = house.presigner.get(
        name,
        byte_range=f"bytes={start}-{start + length - 1}",
        grant=lease.grant,
        expires=left,
        now=now,
    )
    return url
