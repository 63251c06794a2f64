"""Leaders that are interrupted, and threads that stop waiting: nobody waits for somebody who is gone."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from broker.db import queue as queues
from broker.db.queue import CommitQueue, Outcome, _Latch, _Waiting
from broker.drafts import Appended, Draft
from broker.errors import Conflict, InternalError, LedgerUnavailable
from broker.model import Tail

DONE = Appended(index=0, tail=Tail(size=1, root=b"", epoch=0))


class Gate:
    """A commit that waits to be let through, and then does what it was told."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.raises: list[BaseException | None] = []

    def commit(self, drafts: Sequence[Draft]) -> Sequence[Outcome]:
        self.sizes.append(len(drafts))
        self.entered.release()
        self.open.acquire()
        failure = self.raises.pop(0) if self.raises else None
        if failure is not None:
            raise failure
        return [DONE] * len(drafts)


def start(queue: CommitQueue, found: list[object]) -> threading.Thread:
    def run() -> None:
        try:
            found.append(queue.append(Draft()))
        except BaseException as exc:
            found.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def wait_for(queue: CommitQueue, waiting: int) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if len(queue._waiting) == waiting:
            return
        pause.wait(0.002)
    raise AssertionError(f"{len(queue._waiting)} wait")


@pytest.mark.parametrize(
    ("failure", "leader", "others"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, LedgerUnavailable),
        (LedgerUnavailable("down"), LedgerUnavailable, LedgerUnavailable),
        (RuntimeError("bug"), InternalError, InternalError),
    ],
)
def test_when_a_leader_fails_everybody_hears_and_the_next_batch_is_led(
    failure: BaseException, leader: type[BaseException], others: type[BaseException]
) -> None:
    gate = Gate()
    queue = CommitQueue(gate.commit)
    first: list[object] = []
    second: list[object] = []
    third: list[object] = []
    threads = [start(queue, first)]
    gate.entered.acquire()
    threads += [start(queue, second) for _ in range(3)]
    wait_for(queue, 3)
    gate.raises = [None, failure]
    gate.open.release()
    gate.entered.acquire()  # the batch of three has its leader
    threads += [start(queue, third) for _ in range(2)]
    wait_for(queue, 2)
    gate.open.release()
    gate.entered.acquire()
    gate.open.release()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert gate.sizes == [1, 3, 2]
    assert first == [DONE]
    assert third == [DONE, DONE]
    assert sum(isinstance(found, leader) for found in second) >= 1
    assert all(isinstance(found, leader | others) for found in second)
    queue._commit = lambda drafts: [DONE] * len(drafts)
    assert queue.append(Draft()) is DONE


class InterruptedLatch(_Latch):
    """A latch whose wait a signal ends."""

    def wait(self, seconds: float = -1) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("called", [False, True], ids=["still-waiting", "called-to-lead"])
def test_a_thread_that_stops_waiting_passes_its_turn_on(called: bool) -> None:
    gate = Gate()
    queue = CommitQueue(gate.commit)
    found: list[object] = []
    mine = _Waiting(Draft())
    mine.latch = InterruptedLatch()  # type: ignore[misc]  # final in the product, not here
    leader: list[threading.Thread] = []
    if called:
        # The one before has answered its batch and called us, the head of the queue.
        queue._led = True
        mine.leads = True
        queue._waiting.append(mine)
    else:
        leader = [start(queue, found)]
        gate.entered.acquire()
        queue._waiting.append(mine)
    behind = start(queue, found)
    wait_for(queue, 2)
    with pytest.raises(KeyboardInterrupt):
        queue._wait(mine)
    gate.open.release()
    gate.open.release()
    for thread in (*leader, behind):
        thread.join(10)
        assert not thread.is_alive()
    assert found == [DONE] * (1 + len(leader))
    assert sum(gate.sizes) == len(found)


def test_a_refused_draft_gets_its_own_exception() -> None:
    shared = Conflict("what", why="why", next="next")
    queue = CommitQueue(lambda drafts: [shared] * len(drafts))
    with pytest.raises(Conflict) as caught:
        queue.append(Draft())
    assert caught.value is not shared
    assert (caught.value.what, caught.value.why, caught.value.next) == ("what", "why", "next")
    assert caught.value.__cause__ is shared


def test_a_leader_that_is_interrupted_while_it_waits_for_company_passes_its_turn_on() -> None:
    sizes: list[int] = []

    def commit(drafts: Sequence[Draft]) -> Sequence[Outcome]:
        sizes.append(len(drafts))
        return [DONE] * len(drafts)

    queue = CommitQueue(commit)
    # The last commit answered four: the next leader waits for as many.
    queue._last_size, queue._last_seconds = 4, 60.0
    gather, found = queue._gather, list[object]()

    def interrupted() -> None:
        queue._gather = gather  # type: ignore[method-assign]  # only the first leader is interrupted
        wait_for(queue, 3)
        raise KeyboardInterrupt

    queue._gather = interrupted  # type: ignore[method-assign]  # a signal comes at that point
    threads = [start(queue, found) for _ in range(3)]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert sum(isinstance(each, KeyboardInterrupt) for each in found) == 1
    assert found.count(DONE) == 2
    assert sum(sizes) == 2


def test_those_who_come_back_together_are_committed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough that three threads are up, whatever else the machine does.
    monkeypatch.setattr(queues, "_LONGEST_GATHER", 30.0)
    gate = Gate()
    queue = CommitQueue(gate.commit)
    first: list[object] = []
    queue._last_size, queue._last_seconds = 3, 60.0
    threads = [start(queue, first) for _ in range(3)]
    gate.entered.acquire()
    gate.open.release()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert gate.sizes == [3]


def test_whoever_is_alone_waits_for_nobody_after_a_moment() -> None:
    queue = CommitQueue(lambda drafts: [DONE] * len(drafts))
    queue._last_size, queue._last_seconds = 256, 3600.0
    for _ in range(3):
        assert queue.append(Draft()) is DONE
    assert queue._last_size == 1
