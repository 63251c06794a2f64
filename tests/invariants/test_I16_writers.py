"""I16: several writers keep indices dense and the tree whole, and nothing is charged twice."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

from tests.databases import (
    check_ledger,
    database_url,  # noqa: F401 - a fixture
    open_store,
    start_writer,
)


def test_I16_processes_and_threads_that_write_at_once_keep_the_log_dense(database_url: str) -> None:
    writers = [start_writer(database_url, threads=4, count=40) for _ in range(2)]
    for writer in writers:
        writer.wait()
    for writer in writers:
        writer.go()
    told = [writer.rest() for writer in writers]
    assert [writer.process.returncode for writer in writers] == [0, 0]
    indices = sorted(index for one in told for index, _ in one)
    assert indices == list(range(2 * 4 * 40))
    made = open_store(database_url)
    assert check_ledger(made) == len(indices)
    with made.view() as view:
        assert view.meter("everybody") == len(indices)
        for index, request_id in told[0] + told[1]:
            found = view.find_request("jkt-1", request_id)
            assert found is not None
            assert found[1] == index
    made.close()
