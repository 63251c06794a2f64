"""A writer killed in the middle of appending: at any moment, and at each step in turn (I16)."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from broker.drafts import Charge, Draft
from tests.databases import (
    check_ledger,
    database_url,  # noqa: F401 - a fixture
    draft,
    entry,
    open_store,
    proof,
    request,
    start_writer,
)


@pytest.mark.parametrize("acknowledged", [1, 17, 60])
def test_what_a_killed_writer_was_told_is_there(database_url: str, acknowledged: int) -> None:
    writer = start_writer(database_url, threads=4, count=1_000_000)
    writer.wait()
    writer.go()
    told = [writer.read() for _ in range(acknowledged)]
    writer.kill()
    told += writer.rest()
    assert len(told) >= acknowledged
    made = open_store(database_url)
    made.initialize()
    size = check_ledger(made)
    assert size >= len(told)
    with made.view() as view:
        # Every acknowledged append is where it was said to be, and was charged once.
        for index, request_id in told:
            found = view.find_request("jkt-1", request_id)
            assert found is not None
            assert found[1] == index
        assert view.meter("everybody") == size
    assert made.append(draft()).index == size
    assert check_ledger(made) == size + 1
    made.close()


STEPS = ("do_execute", "do_executemany", "do_commit")
COMPLETED = 0


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody outlives SIGKILL")


def append_and_die(url: str, wanted: Draft, step: int, *, after: bool) -> int:
    """The wait status of a process that is killed before or after its ``step``-th call of the driver."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        store = open_store(url)
        calls = [0]

        def killing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                at, calls[0] = calls[0], calls[0] + 1
                if at == step and not after:
                    die()
                done = real(*args, **kwargs)
                if at == step:
                    die()
                return done

            return call

        dialect: Any = store._writers.dialect
        for name in STEPS:
            setattr(dialect, name, killing(getattr(dialect, name)))
        store.append(wanted)
    except BaseException:
        os._exit(1)
    os._exit(COMPLETED)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_writer_killed_at_any_step_leaves_all_or_nothing(database_url: str, after: bool) -> None:
    made = open_store(database_url)
    made.initialize()
    outlived: set[bool] = set()
    size, step, status = 0, 0, -1
    while status != COMPLETED:
        charge = Charge(holder="h", version_id=b"v" * 16, total_extents=4096, extents=((step, 1),))
        key = request()
        whole = replace(entry(), record=b"list", evidence=b"why", evidence_salt=b"s" * 32)
        wanted = draft(entries=(whole, entry()), proof=proof(), request=key, charges=(charge,))
        status = append_and_die(database_url, wanted, step, after=after)
        assert status in (COMPLETED, signal.SIGKILL), step
        found = check_ledger(made)
        assert found in (size, size + 2), step
        outlived.add(found > size)
        # Whoever waited for the answer asks again with a fresh proof: once, whatever had happened.
        again = made.append(replace(wanted, proof=proof()))
        assert (again.index, again.repeated) == (size, found > size), step
        size, step = size + 2, step + 1
        assert check_ledger(made) == size
        with made.view() as view:
            assert view.meter("h") == step
    assert step > 15
    assert outlived == {False, True}
    made.close()
