"""One file of a version as a source of verified segments: its grant, its leases, and the store.

A piece is leased for one fetch. What is leased as a whole extent or as a few segments of it is fetched
exactly so, because a presigned URL covers one exact range; every segment is checked against the file's
list of segment digests, which the publisher signed, before it is handed on (I09).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator
from hmac import compare_digest
from typing import Final, NamedTuple

from broker import limits
from broker.client.feed import MAX_EXPIRIES, refused_urls
from broker.client.leasing import FileLeases, Leased
from broker.client.pieces import Layout
from broker.client.rawhttp import Connection, ConnectionCache, UrlExpired, parse_target
from broker.client.session import Session
from broker.client.settings import Profile
from broker.client.trust import LogMemory
from broker.client.versions import TrustedVersion
from broker.envelope import digest, extents
from broker.envelope.lease import LeaseExtent, LeasePlace
from broker.envelope.reader import RangeReader
from broker.envelope.stream import decrypt_extent
from broker.errors import IntegrityFailure, Unreachable

ATTEMPTS: Final = 5
"""How often a piece is fetched without progress before the store counts as unreachable."""
FIRST_PAUSE: Final = 0.25
"""Seconds before the third attempt (the second is at once: an idle connection was closed); then doubled."""
HEADERS_KEPT: Final = 4096
"""Headers of extents (40 bytes of ciphertext each) that are kept: a second range there is one fetch less."""


class Halted(Exception):
    """Whoever wanted the segments does not want them any more."""


class Lane:
    """What one thread fetches with: its connections, and a buffer for ciphertext."""

    def __init__(self) -> None:
        self.connections = ConnectionCache()
        self.sealed = memoryview(bytearray(limits.SEGMENT_SIZE))


class Opened(NamedTuple):
    """A verified segment: its number in its extent, and its plaintext, the front of a buffer.

    ``until`` (our clock, ms) is the end of the lease that it came under.
    """

    segment: int
    buffer: bytearray
    size: int
    until: int


class Source:
    """One file of one version. Safe to share between threads; each fetches with a lane of its own.

    Args:
        session: The caller's session.
        log: What is known of the log.
        profile: Whose ``store_hosts`` may be contacted.
        version: The version, its manifest verified.
        file: Index of the file in the manifest.
        purpose: Recorded with the grant, and a matter of policy.
    """

    def __init__(
        self,
        session: Session,
        log: LogMemory,
        profile: Profile,
        version: TrustedVersion,
        file: int,
        *,
        purpose: str | None,
    ) -> None:
        self.layout = Layout(version.manifest, file)
        self.leases = FileLeases(session, log, version, self.layout, purpose=purpose)
        self._clock = session.clock
        self._hosts = profile.store_hosts
        self._list: list[bytes] | None = None
        self._listing = threading.Lock()
        self._headers: OrderedDict[int, bytes] = OrderedDict()

    # -- the store ----------------------------------------------------------------------------------------

    def fetch(
        self, leased: Leased, lane: Lane, take: Callable[[], bytearray], stop: threading.Event
    ) -> Generator[Opened, None, None]:
        """The segments of a piece in order, each verified.

        What breaks is fetched again from where it broke; a URL that the store no longer takes is leased
        again for what is left.

        Args:
            leased: What to fetch.
            lane: The calling thread's own.
            take: Gives a buffer of a segment's size, which then belongs to the receiver.
            stop: Ends the waiting between attempts.

        Raises:
            IntegrityFailure: A segment is not what the publisher signed; it was not handed out.
            Halted: ``stop`` was set.
            StoreUnavailable, Unreachable: The store does not give it.
            Denied, GrantRevoked, OverBudget: The recorded answer to a lease that was asked for again.
        """
        at, last = leased.piece.first, leased.piece.last
        failures = expiries = 0
        while at <= last:
            try:
                if self._clock.now() >= leased.until:
                    raise UrlExpired("the lease is about to end")
                for opened in self._fetch_once(leased, lane, at, take):
                    yield opened
                    at, failures, expiries = opened.segment + 1, 0, 0
            except UrlExpired:
                expiries += 1
                if expiries >= MAX_EXPIRIES:
                    raise refused_urls() from None
                [leased] = self.leases.lease([self.layout.piece(leased.piece.extent, at, last)])
            except Unreachable:
                failures += 1
                if failures == ATTEMPTS:
                    raise
                if stop.wait(FIRST_PAUSE * 2 ** (failures - 2) if failures > 1 else 0):
                    raise Halted from None

    def _fetch_once(
        self, leased: Leased, lane: Lane, at: int, take: Callable[[], bytearray]
    ) -> Generator[Opened, None, None]:
        extent, piece, layout = leased.extent, leased.piece, self.layout
        target, done = parse_target(extent.url, self._hosts), False
        plain = layout.plain(extent.index)
        try:
            digests = self._digests(extent.index, lane)
            header = self._header(extent, lane)
            connection = lane.connections.take(target)
            connection.get_range(target, extent.range, start=extent.start, length=extent.length)
            if header is None:
                header = _read_header(connection)
                self._keep_header(extent.index, header)
            reader = self._reader(extent, header, digests)
            for segment in range(piece.first, piece.last + 1):
                _, length = extents.segment_ciphertext_range(plain, segment)
                sealed = lane.sealed[:length]
                connection.read_into(sealed)
                if segment < at:
                    continue
                buffer = take()
                size = reader.read_segment(segment, sealed, buffer)
                done = segment == piece.last
                yield Opened(segment, buffer, size, leased.until)
        except IntegrityFailure as exc:
            self._headers.pop(extent.index, None)
            raise IntegrityFailure(
                f"{layout.signed.path} is not what its publisher signed (extent {extent.index})",
                why=exc.what,
                next="nothing of it was handed out; tell the publisher and the operator of the store",
            ) from exc
        finally:
            if not done:
                # What is left on the connection is not known.
                lane.connections.drop(target)

    def _reader(self, extent: LeaseExtent, header: bytes, digests: list[bytes] | None) -> RangeReader:
        return RangeReader(
            extent.key,
            self.layout.bound(extent.index),
            header,
            plaintext_size=self.layout.plain(extent.index),
            extent_digest=self.layout.signed.extents[extent.index],
            segment_digests=digests,
        )

    def _header(self, extent: LeaseExtent, lane: Lane) -> bytes | None:
        """The header of an extent whose fetch does not begin with it."""
        if extent.header is None:
            return None
        found = self._headers.get(extent.index)
        if found is None:
            found = self._get(extent.header, lane)
            self._keep_header(extent.index, found)
        return found

    def _keep_header(self, extent: int, header: bytes) -> None:
        self._headers[extent] = header
        if len(self._headers) > HEADERS_KEPT:
            self._headers.popitem(last=False)

    def _digests(self, extent: int, lane: Lane) -> list[bytes] | None:
        """The digests of an extent's segments; None in a file of one segment, which has no list of them."""
        if not self.layout.has_list:
            return None
        with self._listing:
            if self._list is None:
                self._list = self._fetch_list(lane)
                self.leases.lacks_list = False
            first, count = extents.segments_slice(self.layout.size, self.layout.extent_size, extent)
            return self._list[first : first + count]

    def _fetch_list(self, lane: Lane) -> list[bytes]:
        place, layout = self.leases.list_place, self.layout
        if place is None:
            raise IntegrityFailure("a lease for ranges lacks the file's segment list")
        count = extents.file_segment_count(layout.size, layout.extent_size)
        size = count * extents.DIGEST_SIZE
        sealed = self._get(place, lane)
        data = decrypt_extent(place.key, layout.list_bound(), sealed, plaintext_size=size)
        if not compare_digest(hashlib.sha256(data).digest(), layout.signed.segments):
            raise IntegrityFailure("a file's segment list is not what the publisher signed")
        return digest.parse_segment_list(data, count)

    def _get(self, place: LeasePlace, lane: Lane) -> bytes:
        """All of a small place."""
        target, found = parse_target(place.url, self._hosts), bytearray(place.length)
        try:
            connection = lane.connections.take(target)
            connection.get_range(target, place.range, start=place.start, length=place.length)
            connection.read_into(memoryview(found))
        except BaseException:
            lane.connections.drop(target)
            raise
        return bytes(found)


def _read_header(connection: Connection) -> bytes:
    found = bytearray(extents.HEADER_SIZE)
    connection.read_into(memoryview(found))
    return bytes(found)
