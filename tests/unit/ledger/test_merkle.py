"""The Merkle tree: compact ranges, proofs from stored hashes, and what verification refuses."""

from __future__ import annotations

import pytest

from broker import limits
from broker.errors import IntegrityFailure, InvalidRequest, RollbackDetected
from broker.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    frontier_at,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tests.unit.ledger.samples import StoredLog

SIZES = [1, 2, 3, 5, 8, 255, 256, 257, 511, 512, 513, 700]


def numbered(size: int) -> StoredLog:
    return StoredLog([str(at).encode() for at in range(size)])


# -- frontier -----------------------------------------------------------------------------------------


def test_empty_frontier_has_the_hash_of_nothing():
    assert Frontier().root() == EMPTY_ROOT == root_of([])
    assert Frontier().extend([]) == (Frontier(), [])


def test_frontier_root_is_the_tree_root_at_every_size():
    leaves = [leaf_hash(bytes([at])) for at in range(70)]
    frontier = Frontier()
    for size, leaf in enumerate(leaves, 1):
        frontier, _ = frontier.extend([leaf])
        assert (frontier.size, frontier.root()) == (size, root_of(leaves[:size]))


def test_extend_leaves_the_old_frontier_alone():
    old, _ = Frontier().extend([leaf_hash(b"a")])
    before = (old.size, old.peaks)
    old.extend([leaf_hash(b"b"), leaf_hash(b"c")])
    assert (old.size, old.peaks) == before


def test_extend_names_each_stored_interior_node_once():
    leaves = numbered(65536 + 300).leaves
    frontier, found = Frontier(), []
    for start in range(0, len(leaves), 1000):
        frontier, completed = frontier.extend(leaves[start : start + 1000])
        found += completed
    level8 = [(8, at, root_of(leaves[at * 256 : at * 256 + 256])) for at in range(257)]
    assert sorted(found) == sorted([*level8, (16, 0, root_of(leaves[:65536]))])


def test_frontier_bytes_round_trip():
    for size in SIZES:
        frontier = numbered(size).frontier
        assert len(frontier.to_bytes()) == 9 + 32 * size.bit_count()
        assert Frontier.from_bytes(frontier.to_bytes()) == frontier


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x01",
        b"\x02" + bytes(8),
        b"\x01" + bytes(7) + b"\x01",
        b"\x01" + bytes(8) + bytes(32),
        b"\x01" + bytes(7) + b"\x01" + bytes(31),
        b"\x01" + b"\x80" + bytes(7) + bytes(32),
    ],
)
def test_frontier_bytes_of_another_form_are_refused(broken):
    with pytest.raises(IntegrityFailure):
        Frontier.from_bytes(broken)


def test_frontier_refuses_hashes_of_another_size():
    with pytest.raises(IntegrityFailure):
        Frontier().extend([b"short"])
    with pytest.raises(IntegrityFailure):
        Frontier(size=1, peaks=(bytes(31),))
    with pytest.raises(IntegrityFailure):
        Frontier(size=3, peaks=(bytes(32),))


def test_a_tree_can_have_the_largest_size_and_no_more():
    largest = Frontier(size=limits.MAX_TREE_SIZE, peaks=(bytes(32),) * 53)
    assert len(largest.root()) == 32
    with pytest.raises(IntegrityFailure):
        largest.extend([leaf_hash(b"one more")])


# -- proofs from stored hashes ----------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_proofs_made_from_stored_hashes_verify(size):
    log = numbered(700)
    root = root_of(log.leaves[:size])
    for at in range(0, size, max(1, size // 40)):
        verify_inclusion(log.leaves[at], at, size, inclusion_proof(at, size, log.read), root)
    for old in range(0, size + 1, max(1, size // 40)):
        proof = consistency_proof(old, size, log.read)
        verify_consistency(old, size, proof, root_of(log.leaves[:old]), root)


def test_a_proof_needs_few_reads_of_at_most_256_hashes():
    log = numbered(66_000)
    for prove in (
        lambda: inclusion_proof(12_345, 65_999, log.read),
        lambda: consistency_proof(12_345, 65_999, log.read),
    ):
        log.reads.clear()
        prove()
        assert len(log.reads) <= 6
        assert all(stop - start <= 256 for _, start, stop in log.reads)
        assert all(level in (0, 8, 16) for level, _, _ in log.reads)
        assert len(set(log.reads)) == len(log.reads)


def test_proofs_never_ask_beyond_the_size_they_are_for():
    log = numbered(700)
    for size in (1, 300, 511, 512):
        log.reads.clear()
        inclusion_proof(0, size, log.read)
        consistency_proof(1, size, log.read)
        frontier_at(size, log.read)
        assert all(stop <= size >> level for level, _, stop in log.reads)


def test_frontier_at_an_older_size_is_the_one_that_was():
    log = numbered(700)
    for size in [0, *SIZES]:
        assert frontier_at(size, log.read) == Frontier().extend(log.leaves[:size])[0]


def test_missing_or_misshapen_stored_hashes_are_an_integrity_failure():
    log = numbered(600)
    short = [lambda level, start, stop: log.read(level, start, stop)[:-1], lambda *_: [b"x"] * 256]
    for read in short:
        with pytest.raises(IntegrityFailure):
            inclusion_proof(3, 600, read)
        with pytest.raises(IntegrityFailure):
            consistency_proof(3, 600, read)
        with pytest.raises(IntegrityFailure):
            frontier_at(600, read)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (0, limits.MAX_TREE_SIZE + 1)])
def test_a_proof_for_an_index_outside_the_tree_is_refused(index, size):
    with pytest.raises(InvalidRequest):
        inclusion_proof(index, size, numbered(5).read)


@pytest.mark.parametrize(("size1", "size2"), [(6, 5), (-1, 5), (1, limits.MAX_TREE_SIZE + 1)])
def test_a_consistency_proof_backwards_is_refused(size1, size2):
    with pytest.raises(InvalidRequest):
        consistency_proof(size1, size2, numbered(6).read)


# -- verification -----------------------------------------------------------------------------------


def test_every_bit_of_a_proof_matters():
    log = numbered(11)
    proof = inclusion_proof(6, 11, log.read)
    root = log.frontier.root()
    verify_inclusion(log.leaves[6], 6, 11, proof, root)
    for at in range(len(proof)):
        for bit in (0, 7, 255):
            value = int.from_bytes(proof[at], "big") ^ (1 << bit)
            forged = [*proof[:at], value.to_bytes(32, "big"), *proof[at + 1 :]]
            with pytest.raises(IntegrityFailure):
                verify_inclusion(log.leaves[6], 6, 11, forged, root)


def test_a_proof_holds_for_its_index_size_and_leaf_only():
    log = numbered(11)
    root = log.frontier.root()
    proof = inclusion_proof(6, 11, log.read)
    wrong = [
        (log.leaves[6], 7, 11, proof),
        # A proof fixes the path, not the size: of the sizes with another path shape each is refused.
        (log.leaves[6], 6, 7, proof),
        (log.leaves[6], 6, 17, proof),
        (log.leaves[5], 6, 11, proof),
        (log.leaves[6], 6, 11, proof[:-1]),
        (log.leaves[6], 6, 11, [*proof, bytes(32)]),
        (log.leaves[6], 6, 11, []),
        (log.leaves[6], -1, 11, proof),
        (log.leaves[6], 11, 11, proof),
        (log.leaves[6][:31], 6, 11, proof),
        (log.leaves[6], 6, 11, [value[:31] for value in proof]),
    ]
    for leaf, index, size, hashes in wrong:
        with pytest.raises(IntegrityFailure):
            verify_inclusion(leaf, index, size, hashes, root)


def test_an_interior_node_is_never_taken_for_an_entry():
    # Leaves and nodes are hashed with different first bytes: RFC 9162 section 2.1.1.
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)
    assert leaf_hash(b"\x01" + left + right) != node_hash(left, right)


def test_from_the_empty_tree_the_proof_is_empty():
    root = numbered(5).frontier.root()
    verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    verify_consistency(0, 5, [], EMPTY_ROOT, root)
    with pytest.raises(IntegrityFailure):
        verify_consistency(0, 5, [root], EMPTY_ROOT, root)
    with pytest.raises(IntegrityFailure):
        verify_consistency(0, 5, [], bytes(32), root)
    with pytest.raises(IntegrityFailure):
        verify_consistency(0, 0, [], bytes(32), bytes(32))


def test_a_smaller_or_forked_log_is_a_rollback():
    log = numbered(9)
    with pytest.raises(RollbackDetected):
        verify_consistency(9, 8, [], log.frontier.root(), root_of(log.leaves[:8]))
    with pytest.raises(RollbackDetected):
        verify_consistency(9, 9, [], log.frontier.root(), bytes(32))


def test_a_history_that_was_rewritten_is_not_consistent():
    honest, forged = numbered(9), StoredLog([b"0", b"forged", *(str(at).encode() for at in range(2, 14))])
    proof = consistency_proof(9, 14, forged.read)
    with pytest.raises(IntegrityFailure):
        verify_consistency(9, 14, proof, honest.frontier.root(), forged.frontier.root())
    verify_consistency(9, 14, proof, root_of(forged.leaves[:9]), forged.frontier.root())
    for broken in (proof[:-1], [*proof, proof[0]], proof[::-1], [], [value[1:] for value in proof]):
        with pytest.raises(IntegrityFailure):
            verify_consistency(9, 14, broken, root_of(forged.leaves[:9]), forged.frontier.root())
