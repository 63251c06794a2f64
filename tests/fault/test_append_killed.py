"""A writer killed in the middle of appending (I16)."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import pytest

from tests.databases import (
    check_ledger,
    database_url,  # noqa: F401 - a fixture
    draft,
    open_store,
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
