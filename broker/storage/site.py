"""The log as static files in a bucket, for a CDN or another organisation to serve."""

from __future__ import annotations

from typing import Final

from broker import limits
from broker.storage.s3 import S3Store

CHECKPOINT: Final = "checkpoint"
_FOR_EVER: Final = {
    "ContentType": "application/octet-stream",
    "CacheControl": "public, max-age=31536000, immutable",
}
_FOR_NOW: Final = {"ContentType": "text/plain; charset=utf-8", "CacheControl": "public, max-age=5"}


class S3LogSite:
    """Implements ``ports.LogSite`` under a prefix of a bucket; safe to share between threads.

    Files are created and never replaced. Only the checkpoint moves, by a PUT with ``If-Match``, so that of
    two replicas that move it at once one is refused.

    Args:
        store: The bucket. Its credentials need to read and write below the prefix, and nothing else.
        prefix: Before every name, such as ``logs/broker/``; may be empty.

    Source: C2SP tlog-tiles, "Checkpoints" and "Merkle Tree" (names and caching).
    """

    def __init__(self, store: S3Store, *, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def checkpoint(self) -> tuple[str, str] | None:
        """The checkpoint there and its ETag; None before the first.

        Raises:
            IntegrityFailure: Something else is in its place.
        """
        found = self._store.read(self._prefix + CHECKPOINT, most=limits.MAX_NOTE)
        return None if found is None else (found[0].decode("utf-8", "replace"), found[1])

    def create(self, path: str, data: bytes) -> None:
        """Put a file that never changes there; the same again is fine.

        Raises:
            Conflict: Another one has its place.
        """
        self._store.put(self._prefix + path, data, **_FOR_EVER)

    def has(self, path: str) -> bool:
        """Whether such a file is there."""
        return self._store.head(self._prefix + path) is not None

    def find(self, path: str, *, most: int) -> bytes | None:
        """Such a file; None when it is not there.

        Raises:
            IntegrityFailure: It has more than ``most`` bytes.
        """
        found = self._store.read(self._prefix + path, most=most)
        return None if found is None else found[0]

    def move(self, note: str, before: str | None) -> None:
        """Replace the checkpoint that has this ETag.

        Raises:
            Conflict: It is another by now.
        """
        self._store.replace(self._prefix + CHECKPOINT, note.encode(), before=before, **_FOR_NOW)
