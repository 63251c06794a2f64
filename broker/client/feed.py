"""The queue between leases and workers: always a lease ahead, never more than it takes.

One thread asks for leases; workers take extents. When half of the last lease is gone the next one is
asked for (step 9), so that no worker waits for the broker, and a revoked grant stops the transfer at the
next lease (I15).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from broker.client.grants import Extent, first_runs
from broker.client.opening import opened_extents
from broker.envelope.lease import LeaseExtent, OpenLease
from broker.errors import StoreUnavailable, Unavailable
from broker.ledger.selection import ExtentRun

MoreLeases = Callable[[Sequence[ExtentRun]], OpenLease]
"""Asks for a lease of the first of these runs and opens it."""

MAX_EXPIRIES: Final = 4
"""How often a URL of one extent may be refused before that is an error and not slowness."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One extent to fetch: where it is, and the key that opens it."""

    file: int
    extent: LeaseExtent

    @property
    def place(self) -> Extent:
        """(file index, extent index)."""
        return self.file, self.extent.index


def refused_urls() -> StoreUnavailable:
    """What it is called when the store takes none of several fresh URLs."""
    return StoreUnavailable(
        "the object store refuses every URL that the broker signs",
        why="its clock or credentials differ from what the broker has",
        next="broker admin doctor",
    )


class Stopped(Exception):
    """The transfer has ended elsewhere; the feed knows why."""


class LeaseFeed:
    """Hands out each wanted extent once, and again when it was given back.

    Args:
        wanted: What is needed, ascending.
        first: The lease that came with the grant.
        more: Asks for the next one; called from this feed's own thread only.
    """

    def __init__(self, wanted: Sequence[ExtentRun], first: OpenLease, more: MoreLeases) -> None:
        self._wanted = deque(wanted)
        self._more = more
        self._ready: deque[Job] = deque()
        self._active = 0
        self._low = 0
        self._expiries: Counter[Extent] = Counter()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._keep_ahead, name="broker-leases", daemon=True)
        self._queue(first)

    def start(self) -> None:
        """Begin to ask for leases ahead of need."""
        self._thread.start()

    def take(self) -> Job | None:
        """The next extent; waits for a lease. None when everything is done.

        Raises:
            Stopped: The transfer failed or was interrupted.
        """
        with self._changed:
            while True:
                if self._failure is not None:
                    raise Stopped
                if self._ready:
                    self._active += 1
                    job = self._ready.popleft()
                    self._changed.notify_all()
                    return job
                if self._finished():
                    return None
                self._changed.wait()

    def finish(self) -> None:
        """An extent that was taken is verified and on disk."""
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def give_back(self, job: Job) -> None:
        """The store no longer takes the URL of an extent: it is leased again.

        Raises:
            StoreUnavailable: That happened too often for one extent.
        """
        with self._changed:
            self._expiries[job.place] += 1
            if self._expiries[job.place] >= MAX_EXPIRIES:
                raise refused_urls()
            file, index = job.place
            self._wanted = deque(sorted([*self._wanted, (file, index, index)]))
            self._active -= 1
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """End the transfer; the first failure is the one that counts."""
        with self._changed:
            if self._failure is None:
                self._failure = failure
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until everything is done, or something failed; interruptible in the main thread."""
        with self._changed:
            while self._failure is None and not self._finished():
                self._changed.wait()

    def join(self) -> None:
        """Wait for this feed's thread; a request that is under way ends first."""
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def failure(self) -> BaseException | None:
        """Why the transfer ended early."""
        return self._failure

    def _finished(self) -> bool:
        return not self._wanted and not self._ready and self._active == 0

    def _keep_ahead(self) -> None:
        while True:
            with self._changed:
                while not (self._wanted and len(self._ready) <= self._low):
                    if self._failure is not None or self._finished():
                        return
                    self._changed.wait()
                if self._failure is not None:
                    return
                runs = first_runs(self._wanted)
            try:
                lease = self._more(runs)
            except BaseException as exc:
                self.fail(exc)
                return
            with self._changed:
                if not self._queue(lease):
                    self._failure = self._failure or Unavailable("a lease opened nothing that was asked for")
                self._changed.notify_all()

    def _queue(self, lease: OpenLease) -> int:
        """Move what the lease opens from wanted to ready; what is not wanted is left alone."""
        served = {(file.file, extent.index): extent for file, extent in opened_extents(lease)}
        taken = 0
        kept: list[ExtentRun] = []
        while self._wanted and taken < len(served):
            file, first, last = self._wanted.popleft()
            while first <= last and (file, first) in served:
                self._ready.append(Job(file=file, extent=served[file, first]))
                first, taken = first + 1, taken + 1
            if first <= last:
                kept.append((file, first, last))
        self._wanted.extendleft(reversed(kept))
        self._low = taken // 2
        return taken
