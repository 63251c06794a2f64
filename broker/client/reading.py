"""Reading parts of files. What is handed out is verified first (I09).

A :class:`Reader` serves any number of threads: filesystems, the loopback endpoints and ``Client.open`` all
read through it. Each file has a grant of its own, asked for at its first read, so the ledger says which
files were read and not merely which version.

* A short range leases the segments that it needs and no others, and keeps them for a while.
* A long range is read ahead in order, extents as a whole (:mod:`broker.client.flow`).
* Reads that follow one another are taken for reading in order: what comes next is read ahead, a little at
  first, more the longer it goes on.

Nothing is handed out after the lease that it came under has ended: it is leased and fetched again, so a
revocation ends reading from memory too (I15).
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Final

from broker import limits
from broker.client.ahead import Ahead, Runs
from broker.client.flow import Flow, Lanes
from broker.client.pieces import Piece, Segment
from broker.client.plaintext import Buffers, Kept
from broker.client.session import Session
from broker.client.settings import Profile
from broker.client.source import Opened, Source
from broker.client.trust import LogMemory
from broker.client.versions import TrustedVersion
from broker.errors import InvalidRequest, NotFound

SHORT: Final = 4
"""Segments up to which a range is fetched by the thread that wants it, and kept."""
MOST_AHEAD: Final = 4
"""Places at which files are read in order at the same time."""


class _Fetching:
    """A segment that some thread is fetching; others wait for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.opened: Opened | None = None


class _File:
    """A file that is read: where it comes from, and how it was read so far."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.layout = source.layout
        self.runs = Runs()


class Reader:
    """Reads the files of one version. Safe to share between threads.

    Args:
        session: The caller's session.
        log: What is known of the log.
        profile: Whose ``store_hosts`` may be contacted.
        version: The version, its manifest verified.
        purpose: Recorded with every grant, and a matter of policy.
        jobs: Connections that one long read uses at most.
        memory: Bytes of verified plaintext that are kept or read ahead at most; a few segments for each
            read that is under way come on top.
    """

    def __init__(
        self,
        session: Session,
        log: LogMemory,
        profile: Profile,
        version: TrustedVersion,
        *,
        purpose: str | None = None,
        jobs: int = 4,
        memory: int = 64 * limits.MIB,
    ) -> None:
        self.version = version
        self._session, self._log, self._profile = session, log, profile
        self._purpose, self._jobs = purpose, jobs
        self._indices = {file.path: at for at, file in enumerate(version.manifest.files)}
        self._files: dict[int, _File] = {}
        self._kept, self._buffers, self._lanes = Kept(memory), Buffers(), Lanes(jobs)
        self._fetching: dict[tuple[int, Segment], _Fetching] = {}
        self._ahead: OrderedDict[tuple[int, Segment], Ahead] = OrderedDict()
        self._lock = threading.Lock()
        self._never = threading.Event()
        # A reader that is dropped without close leaves no thread behind.
        # At the end of a process the kernel does this; a forked child would shut down its parent's sockets.
        weakref.finalize(self, _hang_up, self._ahead, self._lanes).atexit = False

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            NotFound: There is no such file in the version.
        """
        return self.version.manifest.files[self._index(path)].size

    def readinto(self, path: str, start: int, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` with the file's bytes from ``start``; fewer only at the end of the file.

        Raises:
            NotFound: There is no such file.
            InvalidRequest: ``start`` is negative.
            Denied, ApprovalNeeded, OverBudget, GrantRevoked: The recorded answer of the broker.
            IntegrityFailure: Bytes are not what the publisher signed; none of those were handed out.
            StoreUnavailable, Unreachable: The broker or the store does not answer.
        """
        view, done = memoryview(buffer).cast("B"), 0
        file, stop = self._range(path, start, start + len(view))
        in_order = file.runs.note(start, stop) if start < stop else False
        with closing(self._views(file, start, stop, in_order=in_order)) as pieces:
            for piece in pieces:
                view[done : done + len(piece)] = piece
                done += len(piece)
        return done

    def read(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop`` (exclusive), cut at the end of the file.

        Raises:
            As :meth:`readinto`.
        """
        found = bytearray(max(0, min(stop, self.size(path)) - start))
        return bytes(memoryview(found)[: self.readinto(path, start, found)])

    def iterate(self, path: str, start: int, stop: int) -> Iterator[memoryview]:
        """The same in order, in pieces of at most 1 MiB, read ahead on several connections.

        A piece stays good for as long as it is held.

        Raises:
            As :meth:`readinto`, from the step that reaches the trouble.
        """
        file, stop = self._range(path, start, stop)
        return self._views(file, start, stop, in_order=False)

    def close(self) -> None:
        """Hang up and forget what is kept. Reading again begins anew."""
        with self._lock:
            _hang_up(self._ahead, self._lanes)
        self._kept.clear()

    # -- which --------------------------------------------------------------------------------------------

    def _index(self, path: str) -> int:
        found = self._indices.get(path)
        if found is None:
            raise NotFound(
                f"there is no such file in {self.version.ref}", next=f"broker info {self.version.ref}"
            )
        return found

    def _range(self, path: str, start: int, stop: int) -> tuple[_File, int]:
        """The file, and where to stop in it."""
        if start < 0:
            raise InvalidRequest("a read begins at 0 or later")
        index = self._index(path)
        with self._lock:
            if index not in self._files:
                self._files[index] = _File(
                    Source(
                        self._session, self._log, self._profile, self.version, index, purpose=self._purpose
                    )
                )
            file = self._files[index]
        return file, min(stop, file.layout.size)

    # -- how ----------------------------------------------------------------------------------------------

    def _views(
        self, file: _File, start: int, stop: int, *, in_order: bool
    ) -> Generator[memoryview, None, None]:
        """Verified bytes of a range in order: kept ones, those read ahead, and what has to be fetched."""
        if not file.layout.size:
            file.source.leases.begin()
        ready: deque[Opened] = deque()
        while start < stop:
            place, begin = file.layout.locate(start)
            if not ready and (opened := self._find(file, place, begin, stop, in_order=in_order)) is not None:
                ready.append(opened)
            if not ready and (pieces := self._long(file, start, stop)):
                for view in self._stream(file, pieces, start, stop):
                    start += len(view)
                    yield view
                    del view
                continue
            if not ready:
                # Nothing when another thread has just fetched it: then it is found next time.
                ready.extend(self._fetch_short(file, place, start, stop))
                continue
            opened = ready.popleft()
            if self._now() >= opened.until:
                # Whoever takes the pieces was slow: what is left of this lease is leased again.
                ready.clear()
                continue
            end = min(stop, begin + opened.size)
            yield memoryview(opened.buffer)[start - begin : end - begin]
            start = end

    def _now(self) -> int:
        return self._session.clock.now()

    def _long(self, file: _File, start: int, stop: int) -> list[Piece] | None:
        pieces = file.layout.pieces(start, stop)
        count = sum(piece.last - piece.first + 1 for piece in pieces)
        return pieces if count > SHORT else None

    def _stream(
        self, file: _File, pieces: list[Piece], start: int, stop: int
    ) -> Generator[memoryview, None, None]:
        """A long range through a flow of its own, until it is through or what it leased has ended."""
        spent: deque[bytearray] = deque()
        with closing(self._flow(file.source)) as flow:
            flow.extend(pieces)
            while (opened := flow.next()) is not None and self._now() < opened.until:
                _, begin = file.layout.locate(start)
                end = min(stop, begin + opened.size)
                spent.append(opened.buffer)
                yield memoryview(opened.buffer)[start - begin : end - begin]
                start = end
                # The receiver may hold the last piece while it asks for the next one.
                if len(spent) > 1:
                    self._buffers.give_back(spent.popleft())

    def _flow(self, source: Source) -> Flow:
        return Flow(source, kept=self._kept, buffers=self._buffers, lanes=self._lanes, jobs=self._jobs)

    # -- in order -----------------------------------------------------------------------------------------

    def _find(self, file: _File, place: Segment, begin: int, stop: int, *, in_order: bool) -> Opened | None:
        """A segment that is in memory already, or that reading in order comes to next."""
        key = file.layout.file, place
        kept = self._kept.find(*key, now=self._now())
        if kept is not None:
            return kept
        with self._lock:
            ahead = self._ahead.pop(key, None)
        if ahead is None and in_order:
            flow = self._flow(file.source)
            ahead = Ahead(file.layout, flow, start=begin, most=self._kept.most_ahead)
        return None if ahead is None else self._go_on(key, ahead, stop)

    def _go_on(self, key: tuple[int, Segment], ahead: Ahead, stop: int) -> Opened | None:
        try:
            opened = ahead.next(stop)
        except BaseException:
            ahead.close()
            raise
        if opened is None or self._now() >= opened.until:
            ahead.close()
            return None
        self._kept.add(*key, opened)
        self._put_back(key[0], ahead)
        return opened

    def _put_back(self, file: int, ahead: Ahead) -> None:
        dropped: list[Ahead] = []
        with self._lock:
            place = ahead.place
            if place is None:
                dropped.append(ahead)
            else:
                twin = self._ahead.pop((file, place), None)
                dropped.extend([] if twin is None else [twin])
                self._ahead[file, place] = ahead
            while len(self._ahead) > MOST_AHEAD:
                dropped.append(self._ahead.popitem(last=False)[1])
        for each in dropped:
            each.close()

    # -- a few segments -----------------------------------------------------------------------------------

    def _fetch_short(self, file: _File, place: Segment, start: int, stop: int) -> list[Opened]:
        """The segment at ``place`` and those behind it that nobody has or fetches, in order.

        What another thread is fetching is waited for, not fetched twice.
        """
        while True:
            with self._lock:
                other = self._fetching.get((file.layout.file, place))
                claimed = [] if other is not None else self._claim(file, start, stop)
            if other is None:
                return self._fetch(file, claimed)
            other.done.wait()
            if other.opened is not None:
                return [other.opened]

    def _claim(self, file: _File, start: int, stop: int) -> list[Piece]:
        layout, claimed = file.layout, list[Piece]()
        for piece in layout.pieces(start, stop):
            last = piece.first - 1
            while last < piece.last and not self._is_here((layout.file, (piece.extent, last + 1))):
                last += 1
                self._fetching[layout.file, (piece.extent, last)] = _Fetching()
            if last >= piece.first:
                claimed.append(layout.piece(piece.extent, piece.first, last))
            if last < piece.last:
                break
        return claimed

    def _is_here(self, key: tuple[int, Segment]) -> bool:
        return key in self._fetching or self._kept.find(*key, now=self._now()) is not None

    def _fetch(self, file: _File, claimed: list[Piece]) -> list[Opened]:
        """Lease and fetch pieces that this thread has claimed."""
        index, found, left = file.layout.file, list[Opened](), list(claimed)
        lane = self._lanes.take()
        try:
            while left:
                for leased in file.source.leases.lease(left):
                    for opened in file.source.fetch(leased, lane, self._buffers.take, self._never):
                        self._settle((index, (leased.piece.extent, opened.segment)), opened)
                        found.append(opened)
                    left.pop(0)
            return found
        finally:
            for piece in left:
                for segment in range(piece.first, piece.last + 1):
                    self._settle((index, (piece.extent, segment)), None)
            self._lanes.give_back(lane)

    def _settle(self, key: tuple[int, Segment], opened: Opened | None) -> None:
        if opened is not None:
            self._kept.add(*key, opened)
        with self._lock:
            claim = self._fetching.pop(key, None)
        if claim is not None:
            claim.opened = opened
            claim.done.set()


def _hang_up(ahead: OrderedDict[tuple[int, Segment], Ahead], lanes: Lanes) -> None:
    while ahead:
        ahead.popitem()[1].close()
    lanes.close()
