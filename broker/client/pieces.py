"""Where the bytes of one file are: positions, segments, and the pieces of extents that a range needs."""

from __future__ import annotations

from dataclasses import dataclass

from broker.envelope import extents
from broker.envelope.manifest import Manifest

Segment = tuple[int, int]
"""(extent, segment of that extent)."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Segments ``first`` to ``last`` (both included) of one extent.

    Attributes:
        whole: They are all that the extent has.
        size: Their plaintext bytes.
    """

    extent: int
    first: int
    last: int
    whole: bool
    size: int


class Layout:
    """The arithmetic of one file of a version; positions count plaintext bytes from the file's start."""

    def __init__(self, manifest: Manifest, file: int) -> None:
        self.file = file
        self.signed = manifest.files[file]
        self.size = self.signed.size
        self.extent_size = manifest.extent_size
        self.extents = len(self.signed.extents)
        self.has_list = extents.has_segments_object(self.size, self.extent_size)
        self._manifest = manifest

    def locate(self, position: int) -> tuple[Segment, int]:
        """The segment that a position (inside the file) is in, and the segment's own position."""
        extent, inside = divmod(position, self.extent_size)
        plain = self.plain(extent)
        segment, _ = extents.segment_span(plain, inside, inside + 1)
        start, _ = extents.segment_plaintext_range(plain, segment)
        return (extent, segment), extent * self.extent_size + start

    def plain(self, extent: int) -> int:
        """Plaintext bytes of an extent."""
        return extents.extent_plaintext_size(self.size, self.extent_size, extent)

    def length(self, extent: int, segment: int) -> int:
        """Plaintext bytes of a segment."""
        return extents.segment_plaintext_range(self.plain(extent), segment)[1]

    def piece(self, extent: int, first: int, last: int) -> Piece:
        """Segments of an extent as a piece."""
        plain = self.plain(extent)
        return Piece(
            extent=extent,
            first=first,
            last=last,
            whole=first == 0 and last == extents.segment_count(plain) - 1,
            size=extents.segments_plaintext(plain, first, last),
        )

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """What positions ``start`` to ``stop`` (exclusive, not empty, inside the file) need, ascending."""
        found: list[Piece] = []
        for extent in range(start // self.extent_size, (stop - 1) // self.extent_size + 1):
            begin, plain = extent * self.extent_size, self.plain(extent)
            first, last = extents.segment_span(plain, max(0, start - begin), min(plain, stop - begin))
            found.append(self.piece(extent, first, last))
        return found

    def bound(self, extent: int) -> bytes:
        """What an extent's ciphertext is bound to, as 32 bytes."""
        return extents.associated_data(
            artifact=self._manifest.artifact,
            version_id=self._manifest.version_id,
            path=self.signed.path,
            extent=extent,
            extents=self.extents,
        )

    def list_bound(self) -> bytes:
        """What the file's segment list is bound to, as 32 bytes."""
        return extents.segments_associated_data(
            artifact=self._manifest.artifact,
            version_id=self._manifest.version_id,
            path=self.signed.path,
            segments=extents.file_segment_count(self.size, self.extent_size),
        )
