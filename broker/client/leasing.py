"""Leases of one file for many readers: its grant, and one request for what several threads wait for.

While a lease is asked for, whoever needs another one waits, and the next request asks for all of them.
So the ledger has fewer entries the more goes on at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from broker import limits
from broker.canonical import parse_time
from broker.client.grants import Ask, GrantClient, Granted, SealedLease, runs_of
from broker.client.opening import open_lease, opened_extents
from broker.client.pieces import Layout, Piece
from broker.client.session import Session
from broker.client.trust import LogMemory
from broker.client.versions import TrustedVersion, literal_glob, selected_files
from broker.envelope.lease import LeaseExtent, LeasePiece
from broker.errors import IntegrityFailure
from broker.names import Ref

MARGIN: Final = 20_000
"""Milliseconds before its end from which a lease or grant is no longer used; at most a quarter of it."""
TOGETHER: Final = limits.DEFAULT_LEASE_WINDOW
"""Plaintext bytes of the extents that are asked for together on behalf of several threads."""


@dataclass(frozen=True, kw_only=True)
class Leased:
    """A piece with its key and URL; ``until`` (our clock, ms) is when it is not used any more."""

    piece: Piece
    extent: LeaseExtent
    until: int


class _Want:
    """What one thread waits for."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.alone = len(pieces) > 2
        self.leased: list[Leased] = []
        self.failure: BaseException | None = None

    @property
    def done(self) -> bool:
        return bool(self.leased) or self.failure is not None


class FileLeases:
    """Grant and leases of one file of one version. Safe to share between threads.

    Args:
        session: The caller's session.
        log: What is known of the log.
        version: The version, its manifest verified.
        layout: Of the file.
        purpose: Recorded with the grant, and a matter of policy.

    Attributes:
        list_place: Where the file's segment list is, as the newest lease that named it says.
        lacks_list: Whether leases shall name it.
    """

    def __init__(
        self,
        session: Session,
        log: LogMemory,
        version: TrustedVersion,
        layout: Layout,
        *,
        purpose: str | None,
    ) -> None:
        self.list_place: LeasePiece | None = None
        self.lacks_list = layout.has_list
        self._session, self._layout, self._version = session, layout, version
        self._grants = GrantClient(session, log)
        collection, _, name = version.manifest.artifact.partition("/")
        self._ask = Ask(
            ref=Ref(collection=collection, name=name, version=version.digest),
            include=(literal_glob(layout.signed.path),),
            purpose=purpose,
        )
        self._files = selected_files(version.manifest, self._ask.patterns, ())
        self._granted: tuple[Granted, int] | None = None
        self._granting = threading.Lock()
        self._waiting: deque[_Want] = deque()
        self._busy = False
        self._turn = threading.Condition()

    def begin(self) -> None:
        """Ask without needing any bytes: reading an empty file is a recorded read too.

        Raises:
            Denied, ApprovalNeeded, NotFound: The recorded answer of the broker.
        """
        with self._granting:
            if self._find_grant() is None:
                self._request_grant(Ask(**{**vars(self._ask), "extents": ()}))

    def lease(self, pieces: Sequence[Piece]) -> list[Leased]:
        """Keys and URLs for the first of these pieces (at least one).

        Args:
            pieces: Ascending and without overlap.

        Raises:
            Denied, GrantRevoked, OverBudget: The recorded answer of the broker.
            IntegrityFailure: The lease is not what was asked for.
        """
        want = _Want(pieces[: limits.MAX_LEASE_EXTENTS])
        with self._turn:
            self._waiting.append(want)
        try:
            while (together := self._await_turn(want)) is not None:
                self._lease_together(want, together)
        finally:
            with self._turn, suppress(ValueError):
                self._waiting.remove(want)
        if want.failure is not None:
            raise want.failure
        return want.leased

    # -- together -----------------------------------------------------------------------------------------

    def _await_turn(self, want: _Want) -> list[_Want] | None:
        """What this thread asks for on behalf of all; None when its own want is settled."""
        with self._turn:
            while self._busy and not want.done:
                self._turn.wait()
            if want.done:
                return None
            self._busy = True
            together, taken = [self._waiting.popleft()], list(self._waiting)
            for other in taken:
                if _fits(other, together, self._layout):
                    self._waiting.remove(other)
                    together.append(other)
            return together

    def _lease_together(self, own: _Want, together: list[_Want]) -> None:
        try:
            leased = self._lease_now(sorted((p for w in together for p in w.pieces), key=_place))
            for want in together:
                want.leased = [found for found in leased if found.piece in want.pieces]
        except BaseException as exc:
            # A Ctrl-C is this thread's alone: the others ask again.
            for want in together if isinstance(exc, Exception) else [own]:
                want.failure = exc
        with self._turn:
            self._busy = False
            for want in reversed(together):
                if not want.done:
                    # The lease ended before it: it is asked for next, and by itself.
                    want.alone = True
                    self._waiting.appendleft(want)
            self._turn.notify_all()

    # -- one lease ----------------------------------------------------------------------------------------

    def _lease_now(self, wanted: Sequence[Piece]) -> list[Leased]:
        file = self._layout.file
        if all(piece.whole for piece in wanted):
            runs = tuple(runs_of((file, piece.extent) for piece in wanted))
            ask = Ask(**{**vars(self._ask), "extents": runs, "ranges": self.lacks_list})
        else:
            spans = tuple((file, piece.extent, piece.first, piece.last) for piece in wanted)
            ask = Ask(**{**vars(self._ask), "spans": spans})
        return self._open(self._request(ask), ask, wanted)

    def _request(self, ask: Ask) -> SealedLease:
        with self._granting:
            granted = self._find_grant()
            if granted is None:
                return self._request_grant(ask).lease
        return self._grants.request_lease(granted, ask.extents or (), spans=ask.spans, ranges=ask.ranges)

    def _find_grant(self) -> Granted | None:
        if self._granted is None or self._session.clock.now() >= self._granted[1]:
            return None
        return self._granted[0]

    def _request_grant(self, ask: Ask) -> Granted:
        granted = self._grants.request_grant(ask)
        if granted.manifest != self._version.digest:
            raise IntegrityFailure("the grant is of another version than the file")
        end = granted.receipt.entry.get("grant_expires_at", granted.lease.expires_at)
        self._granted = granted, self._until(granted.lease, end)
        return granted

    def _until(self, lease: SealedLease, end: str) -> int:
        """Our own time at which ``end`` is near. Only durations are taken from the broker's clock."""
        lifetime = max(0, parse_time(end) - parse_time(lease.receipt.entry["time"]))
        return self._session.clock.now() + lifetime - min(MARGIN, lifetime // 4)

    def _open(self, lease: SealedLease, ask: Ask, wanted: Sequence[Piece]) -> list[Leased]:
        opened = open_lease(
            lease, self._version, self._files, asked=ask.extents, spans=ask.spans, jkt=self._session.jkt
        )
        until = self._until(lease, lease.expires_at)
        found: dict[tuple[int, int], LeaseExtent] = {}
        for file, extent in opened_extents(opened):
            if file.file == self._layout.file:
                found[extent.index, (extent.span or (0, 0))[0]] = extent
                self.list_place = file.segments or self.list_place
        leased = [
            Leased(piece=piece, extent=found[_place(piece)], until=until)
            for piece in wanted
            if _place(piece) in found
        ]
        if not leased:
            raise IntegrityFailure("a lease opens nothing that was asked for")
        # Whoever waits takes them one after the other: behind a gap, bytes would be handed out in the place
        # of others (I09).
        if any(each.piece != piece for each, piece in zip(leased, wanted, strict=False)):
            raise IntegrityFailure("a lease leaves out what comes before something that it opens")
        return leased


def _place(piece: Piece) -> tuple[int, int]:
    return piece.extent, piece.first


def _fits(other: _Want, together: Sequence[_Want], layout: Layout) -> bool:
    """Whether one more want may come along: no overlap, and not more than one lease opens."""
    if other.alone or together[0].alone:
        return False
    pieces = sorted((p for want in (*together, other) for p in want.pieces), key=_place)
    apart = all(
        (before.extent, before.last) < (after.extent, after.first) for before, after in pairwise(pieces)
    )
    return apart and sum(layout.plain(extent) for extent in {p.extent for p in pieces}) <= TOGETHER
