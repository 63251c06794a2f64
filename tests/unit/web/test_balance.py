"""Connections are spread over workers."""

from __future__ import annotations

import os

from broker.web.balance import Balance


def test_who_has_more_than_another_leaves_it_the_next() -> None:
    balance = Balance(3)
    assert not balance.has_more(0, 100), "nobody else accepts anything yet"
    balance.set(1, 2)
    assert not balance.has_more(0, 2)
    assert balance.has_more(0, 3)
    balance.set(2, 0)
    assert balance.has_more(0, 1)
    balance.leave(2)
    assert not balance.has_more(0, 1), "who is gone takes no connection"


def test_a_worker_does_not_count_against_itself() -> None:
    balance = Balance(1)
    balance.set(0, 0)
    assert not balance.has_more(0, 5)


def test_a_place_is_given_once_and_again_when_it_is_free() -> None:
    balance = Balance(3)
    assert [balance.free_place(taken) for taken in ((), (0,), (0, 2), (1, 2))] == [0, 1, 1, 0]
    assert balance.free_place((0, 1, 2)) == 2, "more workers than places: one that dies beside its successor"


def test_a_forked_process_sees_and_is_seen() -> None:
    balance = Balance(2)
    balance.set(0, 7)
    child = os.fork()
    if child == 0:
        balance.set(1, 3)
        os._exit(0 if balance.has_more(1, 8) and not balance.has_more(1, 7) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert balance.has_more(0, 4)
    assert not balance.has_more(0, 3)
