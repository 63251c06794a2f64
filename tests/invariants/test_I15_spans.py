"""I15 for readers: a revocation ends reading at the next lease, and from memory when the last one ends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from broker import limits
from broker.client.reading import Reader
from broker.client.sdk import Client
from broker.errors import GrantRevoked, NotAuthenticated
from tests.unit.client.conftest import MIB, Stack, make_tree, publisher, reader, stack

__all__ = ["publisher", "reader", "stack"]

BIG = os.urandom(12 * MIB)
REF = "acme/read@v1"


@pytest.fixture
def files(stack: Stack, publisher: Client, reader: Client) -> Iterator[Reader]:
    source = make_tree(stack.folder / "src", {"a.bin": BIG})
    publisher.publish(source, REF, extent_size=4 * MIB)
    # One clock for both sides: what the broker's says has ended has ended for the client too.
    reader._session.clock = stack.world.clock
    found = Reader(reader._session, reader._log, reader.profile, reader.info(REF))
    yield found
    found.close()


def last_grant(stack: Stack) -> str:
    entries = [stack.world.entry(index) for index in range(stack.world.size())]
    return [str(entry["grant"]) for entry in entries if entry["type"] == "grant"][-1]


def test_I15_a_revoked_grant_leases_no_other_segment(stack: Stack, files: Reader) -> None:
    assert files.read("a.bin", 0, 9) == BIG[:9]
    stack.world.revoke("grant", last_grant(stack))
    for _ in range(2):
        with pytest.raises(GrantRevoked):
            files.read("a.bin", 6 * MIB, 6 * MIB + 9)
        with pytest.raises(GrantRevoked):
            list(files.iterate("a.bin", 5 * MIB, 12 * MIB))


def test_I15_what_is_kept_in_memory_ends_with_its_lease(stack: Stack, files: Reader) -> None:
    assert files.read("a.bin", 0, 9) == BIG[:9]
    fetched = len(stack.store.gets)
    stack.world.revoke("grant", last_grant(stack))
    assert files.read("a.bin", 0, 9) == BIG[:9], "a lease cannot be taken back"
    assert len(stack.store.gets) == fetched
    stack.world.clock.forward(limits.LEASE_TTL)
    with pytest.raises(GrantRevoked):
        files.read("a.bin", 0, 9)


def test_I15_what_was_read_ahead_ends_with_its_lease(stack: Stack, files: Reader) -> None:
    buffer = bytearray(MIB)
    for at in range(0, 3 * MIB, MIB):
        assert files.readinto("a.bin", at, buffer) == MIB
    pieces = files.iterate("a.bin", 3 * MIB, 12 * MIB)
    next(pieces)
    for grant in {
        entry["grant"] for entry in map(stack.world.entry, range(stack.world.size())) if "grant" in entry
    }:
        stack.world.revoke("grant", grant)
    stack.world.clock.forward(limits.LEASE_TTL)
    with pytest.raises(GrantRevoked):
        files.readinto("a.bin", 3 * MIB, buffer)
    with pytest.raises(GrantRevoked):
        list(pieces)


def test_I15_a_lease_that_ended_is_asked_for_again_and_decided_again(
    stack: Stack, files: Reader, reader: Client
) -> None:
    assert files.read("a.bin", 0, 9) == BIG[:9]
    stack.world.clock.forward(limits.LEASE_TTL)
    size = stack.world.size()
    assert files.read("a.bin", 0, 9) == BIG[:9]
    assert [stack.world.entry(index)["type"] for index in range(size, stack.world.size())] == ["lease"]
    stack.world.clock.forward(limits.GRANT_TTL)
    size = stack.world.size()
    assert files.read("a.bin", 0, 9) == BIG[:9]
    assert "grant" in [stack.world.entry(index)["type"] for index in range(size, stack.world.size())]
    stack.world.admin.token = stack.world.login(stack.world.admin)
    stack.world.revoke("principal", reader.profile.principal)
    stack.world.clock.forward(limits.LEASE_TTL)
    with pytest.raises(NotAuthenticated):
        files.read("a.bin", 0, 9)
