"""A part of a file in order, read ahead on several connections, a lease ahead of need.

Each worker fetches one piece (an extent, or some segments of one) at a time. The piece that is needed
next is always under way; those behind it only as far as there is room, so memory stays bounded however
slow the receiver is, and no connection stands still half read for long.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

from broker.client.leasing import Leased
from broker.client.pieces import Piece
from broker.client.plaintext import Buffers, Kept
from broker.client.source import Halted, Lane, Opened, Source
from broker.errors import InternalError, Interrupted

NARROW: Final = 4
"""Segments that are read ahead when there is no room for a whole piece."""


class _Task:
    """One piece on its way."""

    __slots__ = ("failure", "finished", "leased", "piece", "ready", "reserved", "started")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.leased: Leased | None = None
        self.started = self.finished = False
        self.reserved: int | None = None
        self.failure: BaseException | None = None
        self.ready: deque[Opened] = deque()


class Lanes:
    """Lanes that are not in use; their connections stay open for whoever comes next."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._idle: list[Lane] = []
        self._lock = threading.Lock()

    def take(self) -> Lane:
        """A lane for the calling thread alone."""
        with self._lock:
            return self._idle.pop() if self._idle else Lane()

    def give_back(self, lane: Lane) -> None:
        """The thread is done with it."""
        with self._lock:
            if len(self._idle) < self._most:
                self._idle.append(lane)
                return
        lane.connections.close()

    def close(self) -> None:
        """Hang up what is not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for lane in idle:
            lane.connections.close()


class Flow:
    """Segments of one file in order. One thread receives; :meth:`close` may come from another.

    Args:
        source: The file.
        kept: Where room is reserved.
        buffers: Where buffers come from.
        lanes: Where connections come from.
        jobs: Worker threads at most.
    """

    def __init__(self, source: Source, *, kept: Kept, buffers: Buffers, lanes: Lanes, jobs: int) -> None:
        self._source, self._kept, self._buffers, self._lanes = source, kept, buffers, lanes
        self._jobs = jobs
        self._tasks: deque[_Task] = deque()
        self._unleased: deque[_Task] = deque()
        self._unstarted: deque[_Task] = deque()
        self._leasing = False
        self._failure: BaseException | None = None
        self._low = 0
        self._workers: set[Lane] = set()
        self._changed = threading.Condition()
        self._stop = threading.Event()

    def extend(self, pieces: Sequence[Piece]) -> None:
        """These come next."""
        with self._changed:
            tasks = [_Task(piece) for piece in pieces]
            self._tasks.extend(tasks)
            self._unleased.extend(tasks)
            for _ in range(min(self._jobs, len(self._tasks)) - len(self._workers)):
                lane = self._lanes.take()
                self._workers.add(lane)
                threading.Thread(target=self._work, args=(lane,), name="broker-read", daemon=True).start()
            self._changed.notify_all()

    def next(self) -> Opened | None:
        """The next segment; waits for it. None when there is none.

        Raises:
            BrokerError: What went wrong with its piece; everything before it was handed out.
            Interrupted: The flow was closed.
        """
        with self._changed:
            while self._tasks:
                if self._stop.is_set():
                    raise Interrupted("the reader was closed while somebody read")
                task = self._tasks[0]
                if task.ready:
                    opened = task.ready.popleft()
                    self._release(task, opened.size)
                    self._changed.notify_all()
                    return opened
                if task.failure is not None:
                    raise task.failure
                if self._failure is not None and not task.started:
                    # A lease behind it was refused: what was not begun is not begun any more (I15).
                    raise self._failure
                if task.finished:
                    self._drop_first()
                else:
                    self._changed.wait()
            return None

    def close(self) -> None:
        """Stop; nobody waits for what was read ahead any more."""
        with self._changed:
            self._stop.set()
            for task in self._tasks:
                self._release(task, task.reserved or 0)
                task.ready.clear()
                task.reserved = 0
            for lane in self._workers:
                lane.connections.abort()
            self._changed.notify_all()

    # -- how ----------------------------------------------------------------------------------------------

    def _drop_first(self) -> None:
        task = self._tasks.popleft()
        self._release(task, task.reserved or 0)
        # The next one may now start without room of its own.
        self._changed.notify_all()

    def _release(self, task: _Task, size: int) -> None:
        if task.reserved:
            self._kept.release(min(size, task.reserved))
            task.reserved -= min(size, task.reserved)

    def _work(self, lane: Lane) -> None:
        try:
            while (step := self._choose(lane)) is not None:
                step()
        finally:
            self._lanes.give_back(lane)

    def _choose(self, lane: Lane) -> Callable[[], None] | None:
        """What this worker does next: ask for a lease, fetch a piece, or end."""
        with self._changed:
            while not (self._stop.is_set() or self._failure is not None):
                if self._unleased and not self._leasing and len(self._unstarted) <= self._low:
                    self._leasing = True
                    wanted = list(self._unleased)
                    return lambda: self._lease(wanted)
                if self._unstarted and self._has_room(self._unstarted[0]):
                    task = self._unstarted.popleft()
                    task.started = True
                    self._changed.notify_all()
                    return lambda: self._fetch(task, lane)
                if not self._unleased and not self._unstarted:
                    break
                self._changed.wait()
            self._workers.discard(lane)
            return None

    def _has_room(self, task: _Task) -> bool:
        if self._kept.reserve(task.piece.size):
            task.reserved = task.piece.size
            return True
        return self._tasks[0] is task

    def _lease(self, wanted: Sequence[_Task]) -> None:
        try:
            leased = self._source.leases.lease([task.piece for task in wanted])
        except BaseException as exc:
            self._fail(wanted[0], exc)
            return
        with self._changed:
            for task, found in zip(wanted, leased, strict=False):
                task.leased = found
                self._unleased.popleft()
                self._unstarted.append(task)
            self._low = len(leased) // 2
            self._leasing = False
            self._changed.notify_all()

    def _fetch(self, task: _Task, lane: Lane) -> None:
        try:
            if task.leased is None:
                raise InternalError("a piece is fetched before it is leased")
            with closing(self._source.fetch(task.leased, lane, self._buffers.take, self._stop)) as found:
                for opened in found:
                    self._deliver(task, opened)
        except Halted:
            return
        except BaseException as exc:
            self._fail(task, exc)
            return
        with self._changed:
            task.finished = True
            self._changed.notify_all()

    def _deliver(self, task: _Task, opened: Opened) -> None:
        with self._changed:
            while task.reserved is None and len(task.ready) >= NARROW and not self._stop.is_set():
                self._changed.wait()
            if self._stop.is_set():
                raise Halted
            task.ready.append(opened)
            self._changed.notify_all()

    def _fail(self, task: _Task, failure: BaseException) -> None:
        with self._changed:
            task.failure = failure
            self._failure = self._failure or failure
            self._leasing = False
            self._changed.notify_all()
