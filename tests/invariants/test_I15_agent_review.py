"""I15 for readers: what was fetched for somebody slow ends with its lease, too."""

from __future__ import annotations

import os

import pytest

from broker import limits
from broker.client.reading import Reader
from broker.client.sdk import Client
from broker.errors import GrantRevoked
from tests.unit.client.conftest import MIB, Stack, make_tree, publisher, reader, stack

__all__ = ["publisher", "reader", "stack"]

BIG = os.urandom(4 * MIB)
REF = "acme/slow@v1"


@pytest.mark.parametrize("revoked", [False, True])
def test_I15_the_rest_of_a_short_range_ends_with_its_lease(
    stack: Stack, publisher: Client, reader: Client, *, revoked: bool
) -> None:
    publisher.publish(make_tree(stack.folder / "src", {"a.bin": BIG}), REF, extent_size=4 * MIB)
    reader._session.clock = stack.world.clock
    files = Reader(reader._session, reader._log, reader.profile, reader.info(REF))
    pieces = files.iterate("a.bin", 0, 3 * MIB)
    got = bytearray(next(pieces))
    entries = [stack.world.entry(index) for index in range(stack.world.size())]
    if revoked:
        stack.world.revoke("grant", next(e["grant"] for e in reversed(entries) if e["type"] == "grant"))
    stack.world.clock.forward(limits.LEASE_TTL)
    if revoked:
        with pytest.raises(GrantRevoked):
            next(pieces)
    else:
        for piece in pieces:
            got += piece
        assert got == BIG[: 3 * MIB]
    files.close()
