"""Random access: ``open`` and ``cat``. What is read is verified before it is handed out (I09).

A presigned URL covers exactly one whole extent, so a range read asks for that extent, skips to the first
segment that it needs (ciphertext that is skipped is never decrypted), and hangs up after the last one.
Single segments are checked against the file's segment list, which the publisher signed. Extents of one
segment have no list; they are checked whole.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from broker import limits
from broker.client.grants import (
    Ask,
    GrantClient,
    Granted,
    first_runs,
    open_lease,
    opened_extents,
)
from broker.client.rawhttp import Connection, ConnectionCache, Target, UrlExpired, parse_target
from broker.client.session import Session
from broker.client.settings import Profile
from broker.client.trust import LogMemory
from broker.client.versions import TrustedVersion, fetch_version, file_index, literal_glob, selected_files
from broker.envelope import digest, extents
from broker.envelope.lease import LeaseExtent, LeasePiece, OpenLease
from broker.envelope.reader import RangeReader, open_extent
from broker.envelope.stream import decrypt_extent
from broker.errors import IntegrityFailure, InvalidRequest, NotFound, Unreachable
from broker.ledger.selection import ExtentRun
from broker.names import Ref

SEGMENTS_KEPT: Final = 8
"""Verified segments that are kept in memory: 8 MiB."""
AHEAD: Final = 4
"""Extents that are leased at once while a file is read in order."""
ATTEMPTS: Final = 4
_SKIP: Final = 256 * limits.KIB


class _Leases:
    """Leases for single extents of one file, asked for when they are needed."""

    def __init__(
        self, session: Session, log: LogMemory, ask: Ask, version: TrustedVersion, file: int
    ) -> None:
        self._grants = GrantClient(session, log)
        self._jkt = session.jkt
        self._ask = ask
        self._version = version
        self._file = file
        self._files = selected_files(version.manifest, ask.patterns, ())
        self._granted: Granted | None = None
        self._held: dict[int, LeaseExtent] = {}
        self.segments: LeasePiece | None = None

    def begin(self) -> None:
        """Ask without needing any bytes: reading an empty file is a recorded read too."""
        if self._granted is None:
            self._granted = self._grants.request_grant(self._ask)

    def extent(self, index: int, *, last: int) -> LeaseExtent:
        """The extent, leased; up to extent ``last`` is leased along with it.

        Raises:
            Denied, GrantRevoked, OverBudget: The recorded answer of the broker.
        """
        if index not in self._held:
            self._held.clear()
            self._lease([(self._file, index, last)])
        found = self._held.get(index)
        if found is None:
            raise IntegrityFailure("a lease does not open the extent that was asked for")
        return found

    def forget(self) -> None:
        """The URLs are no longer taken."""
        self._held.clear()

    def _lease(self, runs: list[ExtentRun]) -> None:
        runs = first_runs(runs)
        if self._granted is None:
            granted = self._grants.request_grant(replace(self._ask, extents=tuple(runs)))
            self._check(granted)
            opened = self._open(granted, runs)
            self._granted = granted
        else:
            lease = self._grants.request_lease(self._granted, runs)
            opened = open_lease(lease, self._version, self._files, asked=runs, jkt=self._jkt)
        self._take(opened)

    def _check(self, granted: Granted) -> None:
        if granted.manifest != self._version.digest:
            raise IntegrityFailure("the grant is of another version than the file")

    def _open(self, granted: Granted, runs: Sequence[ExtentRun]) -> OpenLease:
        return open_lease(granted.lease, self._version, self._files, asked=runs, jkt=self._jkt)

    def _take(self, opened: OpenLease) -> None:
        for file, extent in opened_extents(opened):
            if file.file == self._file:
                self._held[extent.index] = extent
                self.segments = file.segments or self.segments


class _Stream:
    """One extent on the wire, read forward from wherever it is."""

    def __init__(self, connection: Connection, target: Target, extent: LeaseExtent) -> None:
        connection.get_range(target, extent.range, start=extent.start, length=extent.length)
        self._connection = connection
        self.index = extent.index
        self._at = 0
        self._length = extent.length

    def read(self, start: int, length: int) -> memoryview:
        """``length`` bytes from ``start`` of the extent, which must not lie behind."""
        scratch = memoryview(bytearray(min(_SKIP, max(1, start - self._at))))
        while self._at < start:
            size = min(len(scratch), start - self._at)
            self._connection.read_into(scratch[:size])
            self._at += size
        found = memoryview(bytearray(length))
        self._connection.read_into(found)
        self._at += length
        return found

    def reaches(self, start: int) -> bool:
        """Whether it can still be read from there."""
        return self._at <= start

    @property
    def finished(self) -> bool:
        """Whether the connection is free again."""
        return self._at == self._length


class RangeFile(io.RawIOBase):
    """A file of a version as a seekable, read-only stream. Safe for threads, one read at a time.

    The first read asks the broker; each further extent is leased when it is reached.
    """

    def __init__(
        self, session: Session, log: LogMemory, profile: Profile, version: TrustedVersion, path: str, ask: Ask
    ) -> None:
        super().__init__()
        self._connections = ConnectionCache()
        file = file_index(version.manifest, path)
        if file is None:
            raise NotFound(f"there is no such file in {version.ref}", next=f"broker info {version.ref}")
        self.version = version
        self._manifest = version.manifest
        self._signed = version.manifest.files[file]
        self._file = file
        self._hosts = profile.store_hosts
        self._leases = _Leases(session, log, ask, version, file)
        self._stream: _Stream | None = None
        self._target: Target | None = None
        self._reader: RangeReader | None = None
        self._reader_index = -1
        self._list: list[bytes] | None = None
        self._kept: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._position = 0
        self._lock = threading.RLock()
        if self._signed.size == 0:
            self._leases.begin()

    # -- io.RawIOBase -------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._signed.size

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; past the end is allowed and reads nothing there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError("a position is not negative, and whence is 0, 1 or 2")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the front of ``buffer`` with verified bytes; returns how many, 0 at the end.

        Raises:
            IntegrityFailure: The object is not what its publisher signed; nothing of it was handed out.
        """
        with self._lock:
            if self.closed:
                raise ValueError("the file is closed")
            view = memoryview(buffer).cast("B")
            if self._position >= self.size or not len(view):
                return 0
            step = self._manifest.extent_size
            extent, inside = divmod(self._position, step)
            plain = extents.extent_plaintext_size(self.size, step, extent)
            segment, _ = extents.segment_span(plain, inside, inside + 1)
            start, _ = extents.segment_plaintext_range(plain, segment)
            found = self._segment(extent, segment)[inside - start :][: len(view)]
            view[: len(found)] = found
            self._position += len(found)
            return len(found)

    def close(self) -> None:
        """Hang up."""
        self._connections.close()
        super().close()

    # -- how ----------------------------------------------------------------------------------------------

    def _segment(self, extent: int, segment: int) -> memoryview:
        place = extent, segment
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        found = self._fetch_patiently(extent, segment)
        self._kept[place] = found
        while len(self._kept) > SEGMENTS_KEPT:
            self._kept.popitem(last=False)
        return found

    def _fetch_patiently(self, extent: int, segment: int) -> memoryview:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._fetch(extent, segment)
            except (Unreachable, UrlExpired) as exc:
                self._hang_up()
                if isinstance(exc, UrlExpired):
                    self._leases.forget()
                if attempt == ATTEMPTS:
                    raise Unreachable(exc.what, why=exc.why, next=exc.next) from exc
            except BaseException:
                self._hang_up()
                raise
        raise Unreachable("the object store does not answer")

    def _hang_up(self) -> None:
        if self._target is not None:
            self._connections.drop(self._target)
        self._stream = self._reader = None
        self._reader_index = -1

    def _fetch(self, index: int, segment: int) -> memoryview:
        count = len(self._signed.extents)
        ahead = AHEAD if self._reader_index == index - 1 else 1
        plain = extents.extent_plaintext_size(self.size, self._manifest.extent_size, index)
        single = extents.segment_count(plain) == 1
        start, length = extents.segment_ciphertext_range(plain, segment)
        stream = self._stream
        if stream is None or stream.index != index or not stream.reaches(start):
            leased = self._leases.extent(index, last=min(count, index + ahead) - 1)
            if not single and self._list is None:
                self._list = self._fetch_list()
            stream = self._open(leased)
            header = stream.read(0, extents.HEADER_SIZE)
            if single:
                return self._open_single(leased, header, stream.read(start, length), plain)
            self._reader = self._range_reader(leased, header, plain)
            self._reader_index = index
        if self._reader is None:
            raise Unreachable("the connection was lost")
        sealed = stream.read(start, length)
        plaintext = memoryview(bytearray(extents.segment_plaintext_range(plain, segment)[1]))
        self._reader.read_segment(segment, sealed, plaintext)
        return plaintext

    def _open(self, leased: LeasePiece) -> _Stream:
        target = parse_target(leased.url, self._hosts)
        if self._stream is not None and not self._stream.finished:
            # The rest of the former extent is still on the wire.
            self._hang_up()
        self._target = target
        extent = leased if isinstance(leased, LeaseExtent) else LeaseExtent(**vars(leased), index=-1)
        self._stream = _Stream(self._connections.take(target), target, extent)
        return self._stream

    def _fetch_list(self) -> list[bytes]:
        """The file's segment list: one stream of its own, checked against the manifest."""
        piece = self._leases.segments
        if piece is None:
            raise IntegrityFailure("a lease for ranges lacks the file's segment list")
        count = extents.file_segment_count(self.size, self._manifest.extent_size)
        sealed = self._open(piece).read(0, piece.length)
        bound = extents.segments_associated_data(
            artifact=self._manifest.artifact,
            version_id=self._manifest.version_id,
            path=self._signed.path,
            segments=count,
        )
        data = decrypt_extent(piece.key, bound, sealed, plaintext_size=count * extents.DIGEST_SIZE)
        if hashlib.sha256(data).digest() != self._signed.segments:
            raise IntegrityFailure("a file's segment list is not what the publisher signed")
        return digest.parse_segment_list(data, count)

    def _bound(self, index: int) -> bytes:
        return extents.associated_data(
            artifact=self._manifest.artifact,
            version_id=self._manifest.version_id,
            path=self._signed.path,
            extent=index,
            extents=len(self._signed.extents),
        )

    def _open_single(
        self, leased: LeaseExtent, header: memoryview, sealed: memoryview, plain: int
    ) -> memoryview:
        self._reader_index = leased.index
        whole = bytes(header) + bytes(sealed)
        signed = self._signed.extents[leased.index]
        opened = open_extent(
            leased.key, self._bound(leased.index), whole, plaintext_size=plain, extent_digest=signed
        )
        return memoryview(opened)

    def _range_reader(self, leased: LeaseExtent, header: memoryview, plain: int) -> RangeReader:
        first, count = extents.segments_slice(self.size, self._manifest.extent_size, leased.index)
        return RangeReader(
            leased.key,
            self._bound(leased.index),
            header,
            plaintext_size=plain,
            extent_digest=self._signed.extents[leased.index],
            segment_digests=(self._list or [])[first : first + count],
        )


def open_file(
    session: Session, log: LogMemory, profile: Profile, ref: Ref, *, purpose: str | None
) -> RangeFile:
    """The file that a reference with a path names.

    Raises:
        InvalidRequest: The reference has no path.
        NotFound: No such version or file, or not visible.
        IntegrityFailure: The manifest's trust path does not hold.
    """
    if ref.path is None:
        raise InvalidRequest("this needs one file: collection/name[@version]/path")
    version = fetch_version(session, log, ref)
    pinned = Ref(collection=ref.collection, name=ref.name, version=version.digest)
    ask = Ask(ref=pinned, include=(literal_glob(ref.path),), purpose=purpose, ranges=True)
    return RangeFile(session, log, profile, version, ref.path, ask)
