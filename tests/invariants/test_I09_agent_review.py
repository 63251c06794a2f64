"""I09 for readers: a broker that leaves out part of what was asked for moves no byte to another's place."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from broker.client.reading import Reader
from broker.client.sdk import Client
from broker.errors import IntegrityFailure
from broker.services import selection
from tests.unit.client.conftest import MIB, Stack, make_tree, publisher, reader, stack

__all__ = ["publisher", "reader", "stack"]

REF = "acme/gaps@v1"
EXTENT = 4 * MIB


def _with_a_gap(honest: Callable[..., selection.Window]) -> Callable[..., selection.Window]:
    """Extents 0 and 2 in place of 0, 1 and 2: recorded, signed and sealed as such."""

    def lie(*args: object, **named: object) -> selection.Window:
        window = honest(*args, **named)
        runs = tuple(
            (file, at, at) for file, first, last in window.runs for at in range(first, last + 1) if at != 1
        )
        return selection.Window(
            runs=runs, extents=window.extents - 1, bytes=window.bytes - EXTENT, spans=window.spans
        )

    return lie


@pytest.mark.parametrize("jobs", [1, 4])
def test_I09_a_lease_with_a_gap_moves_no_bytes(
    stack: Stack, publisher: Client, reader: Client, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    big = os.urandom(3 * EXTENT)
    publisher.publish(make_tree(stack.folder / "src", {"a.bin": big}), REF, extent_size=EXTENT)
    files = Reader(reader._session, reader._log, reader.profile, reader.info(REF), jobs=jobs)
    monkeypatch.setattr(selection, "first_window", _with_a_gap(selection.first_window))
    got = bytearray()

    def take() -> None:
        for piece in files.iterate("a.bin", 0, len(big)):
            got.extend(piece)

    with pytest.raises(IntegrityFailure, match="leaves out"):
        take()
    assert got == big[: len(got)]
    files.close()
