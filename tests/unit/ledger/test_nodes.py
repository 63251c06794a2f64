"""Proofs from nodes that were read before: the same proofs, with hardly a read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import IntegrityFailure
from broker.ledger import merkle
from broker.ledger.nodes import NodeCache

LEAVES = [hashlib.sha256(b"%d" % at).digest() for at in range(1400)]


class Stored:
    """Stored hashes of a log that grows, and what was read of them."""

    def __init__(self, size: int = len(LEAVES)) -> None:
        frontier, nodes = merkle.Frontier().extend(LEAVES)
        assert frontier.size == len(LEAVES)
        self.size = size
        self.nodes = {(level, index): value for level, index, value in nodes}
        self.read_hashes = 0

    def read(self, level: int, start: int, stop: int) -> Sequence[bytes]:
        assert stop <= self.size >> level, "more was read than the log has"
        self.read_hashes += stop - start
        return LEAVES[start:stop] if level == 0 else [self.nodes[level, at] for at in range(start, stop)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, len(LEAVES)), st.integers(0, 10**6)), min_size=1, max_size=30))
def test_they_are_the_proofs_that_are_made_without(asked: list[tuple[int, int]]) -> None:
    stored, cache = Stored(), NodeCache(most=3)
    for size, number in asked:
        index = number % size
        assert merkle.inclusion_proof(index, size, stored.read, nodes=cache) == merkle.inclusion_proof(
            index, size, stored.read
        )
        assert merkle.consistency_proof(index, size, stored.read, nodes=cache) == merkle.consistency_proof(
            index, size, stored.read
        )


def test_a_log_that_grows_is_read_on_from_where_it_ended() -> None:
    stored, cache = Stored(0), NodeCache()
    for size in range(1, len(LEAVES)):
        stored.size = size
        proof = merkle.inclusion_proof(size - 1, size, stored.read, nodes=cache)
        root = merkle.root_of(LEAVES[:size])
        merkle.verify_inclusion(LEAVES[size - 1], size - 1, size, proof, root)
    # Every leaf and every stored node once, at most.
    assert stored.read_hashes <= len(LEAVES) + len(stored.nodes)


def test_it_keeps_no_more_than_it_may() -> None:
    stored, cache = Stored(), NodeCache(most=2)
    for index in (0, 300, 600, 900, 0):
        merkle.inclusion_proof(index, stored.size, stored.read, nodes=cache)
        assert len(cache._tiles) <= 2
    before = stored.read_hashes
    cache.clear()
    merkle.inclusion_proof(0, stored.size, stored.read, nodes=cache)
    assert stored.read_hashes > before


def test_a_changed_hash_makes_a_proof_that_does_not_hold_until_it_is_forgotten() -> None:
    stored, cache = Stored(), NodeCache()
    root = merkle.root_of(LEAVES)

    def check() -> None:
        proof = merkle.inclusion_proof(0, len(LEAVES), stored.read, nodes=cache)
        merkle.verify_inclusion(LEAVES[0], 0, len(LEAVES), proof, root)

    good = stored.nodes[8, 1]
    stored.nodes[8, 1] = bytes(32)
    with pytest.raises(IntegrityFailure):
        check()
    stored.nodes[8, 1] = good
    with pytest.raises(IntegrityFailure):
        check()
    cache.clear()
    check()


@pytest.mark.parametrize("wrong", [[], [bytes(32)], [bytes(31)] * 256, [bytes(32)] * 257])
def test_what_is_missing_or_no_hash_is_refused(wrong: list[bytes]) -> None:
    with pytest.raises(IntegrityFailure):
        merkle.inclusion_proof(0, 1400, lambda *_: wrong, nodes=NodeCache())


def test_threads_share_it() -> None:
    stored, cache = Stored(), NodeCache(most=4)

    def prove(number: int) -> bool:
        size = 1 + number * 37 % len(LEAVES)
        index = number * 101 % size
        proof = merkle.inclusion_proof(index, size, stored.read, nodes=cache)
        return proof == merkle.inclusion_proof(index, size, Stored().read)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(prove, range(300)))
