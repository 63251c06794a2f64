"""What a wrapped version key is bound to.

The key-encryption key wraps a version key with this as associated data. So a row that was relabelled,
or a wrap that was moved to another row, makes the key unopenable (I19, I20); a change of tier, and the
commit of an upload, mean a recorded rewrap.

**Source**: ``docs/formats/extent.md``, section "Version key".
"""

from __future__ import annotations

from typing import Literal

from broker.canonical import b64url, canonical_bytes, parse_digest
from broker.envelope.extents import VERSION_ID_SIZE
from broker.errors import InternalError


def wrap_aad(
    *,
    use: Literal["upload", "version"],
    version_id: bytes,
    artifact: str,
    tier: str,
    manifest: str | None = None,
    publisher: str | None = None,
) -> bytes:
    """Associated data of a wrap: canonical {use, version_id, artifact, manifest | publisher, tier}.

    Args:
        use: ``upload`` before the commit, ``version`` after it.
        version_id: 16 bytes.
        artifact: ``collection/name``.
        tier: The version's ``tier`` label.
        manifest: Digest of the manifest, for ``version`` only.
        publisher: Thumbprint of the publisher's key, for ``upload`` only.

    Raises:
        InternalError: The arguments do not belong to this use.
        MalformedRequest: ``manifest`` is not a digest.
    """
    bound = {"version": manifest, "upload": publisher}.get(use)
    if not bound or (manifest and publisher) or len(version_id) != VERSION_ID_SIZE or not tier:
        raise InternalError("a wrap is bound to a version id, a tier, and one manifest or publisher")
    common = {"use": use, "version_id": b64url(version_id), "artifact": artifact, "tier": tier}
    if use == "upload":
        return canonical_bytes({**common, "publisher": bound})
    parse_digest(bound)
    return canonical_bytes({**common, "manifest": bound})
