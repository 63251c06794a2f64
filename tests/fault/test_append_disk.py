"""A PostgreSQL server that cannot write any more, and can again (I16).

It is started under a limit on the size of its files, which the kernel enforces as it does a full disk: the
write fails. The first limit leaves room for the segments of the server's own log (16 MiB), so that single
statements fail; under the second the log itself cannot be written, so that the server goes down.
"""

from __future__ import annotations

import resource
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from broker.db import LedgerStore, upgrade
from broker.errors import LedgerUnavailable
from tests.databases import check_ledger, draft, entry, open_store, proof, request
from tests.fault.test_append_restarts import kill, server

__all__ = ["server"]

pytestmark = pytest.mark.postgres

MIB = 2**20
MOST = 1000


def restart(server: Any, size: int = resource.RLIM_INFINITY) -> None:
    """The server anew; none of its processes writes a file past ``size`` bytes."""
    kill(server)
    own = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A process inherits its limits, and one of another user cannot be given new ones.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, own[1]))
    try:
        server.ensure_postgres_running()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, own)


@pytest.fixture
def store(server: Any) -> Iterator[LedgerStore]:
    upgrade(server.get_uri())
    made = open_store(server.get_uri())
    made.initialize()
    yield made
    made.close()


def large() -> Any:
    """A draft that brings 64 KiB which do not compress, under a request id of its own."""
    evidence = secrets.token_bytes(64 * 1024)
    return draft(
        entries=(replace(entry(), evidence=evidence, evidence_salt=secrets.token_bytes(32)),),
        request=request(request_id=secrets.token_hex(8)),
    )


def append_until_refused(store: LedgerStore) -> tuple[dict[str, int], Any]:
    """Request id -> index of what was acknowledged, and the draft that was refused."""
    told: dict[str, int] = {}
    for _ in range(MOST):
        wanted = large()
        try:
            done = store.append(replace(wanted, proof=proof()))
        except LedgerUnavailable:
            return told, wanted
        assert done.index is not None
        told[wanted.request.request_id] = done.index
    raise AssertionError("the disk never filled up")


@pytest.mark.parametrize("size", [16 * MIB, 12 * MIB], ids=["tables", "log"])
def test_a_full_disk_refuses_and_loses_nothing(server: Any, store: LedgerStore, size: int) -> None:
    before = store.append(replace(large(), proof=proof())).index
    restart(server, size)
    told, refused = append_until_refused(store)
    with pytest.raises(LedgerUnavailable):
        store.append(replace(refused, proof=proof()))
    restart(server)
    again = _append_when_it_is_back(store, refused)
    assert before == 0
    assert sorted([*told.values(), again]) == list(range(1, len(told) + 2))
    assert check_ledger(store) == len(told) + 2


def _append_when_it_is_back(store: LedgerStore, wanted: Any) -> int:
    for _ in range(60):
        try:
            index = store.append(replace(wanted, proof=proof())).index
        except LedgerUnavailable:
            continue
        assert index is not None
        return index
    raise AssertionError("the ledger did not come back")
