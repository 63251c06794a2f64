"""The Merkle tree of the ledger: hashes, compact ranges, proofs, and their verification.

Hashing is that of RFC 6962 and RFC 9162, with SHA-256. Nothing here stores a tree: proofs are made
from stored hashes that a ``read`` function returns, and a :class:`Frontier` is all that an append
needs. Hashes of complete subtrees are stored for levels 0 (the leaves), 8, 16, ...; what lies
between is computed again from at most 256 of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from broker import limits
from broker.errors import IntegrityFailure, InvalidRequest, RollbackDetected

if TYPE_CHECKING:
    from broker.ledger.nodes import NodeCache

    Nodes: TypeAlias = NodeCache | None

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of the tree without leaves. Source: RFC 9162 section 2.1.1."""
STORED_STEP: Final = 8
"""Hashes are stored for the levels that are multiples of this, level 0 being the leaves."""
_TILE_WIDTH: Final = 1 << STORED_STEP
_FRONTIER_VERSION: Final = b"\x01"

Read = Callable[[int, int, int], Sequence[bytes]]
"""``read(level, start, stop)``: stored hashes of the complete subtrees [start, stop) of that level."""
Node = tuple[int, int, bytes]
"""(level, index inside the level, hash of 32 bytes)."""


def leaf_hash(entry: bytes) -> bytes:
    """The leaf hash of an entry, 32 bytes: SHA-256(0x00 || entry). Source: RFC 9162 section 2.1.1."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, 32 bytes: SHA-256(0x01 || left || right). Source: RFC 9162 section 2.1.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root (32 bytes) over leaf hashes in their order. Source: RFC 9162 section 2.1.1."""
    hashes = list(leaf_hashes)
    if not hashes:
        return EMPTY_ROOT
    while len(hashes) > 1:
        parents = _pair_up(hashes)
        # A last node without a partner is the right subtree of a later split: it moves up unchanged.
        hashes = parents + hashes[len(parents) * 2 :]
    return hashes[0]


def _pair_up(hashes: Sequence[bytes]) -> list[bytes]:
    sha256 = hashlib.sha256
    halves = iter(hashes)
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(halves, halves, strict=False)]


def _complete_subtrees(start: int, stop: int) -> list[tuple[int, int]]:
    """(level, index) of the largest complete subtrees that make up [start, stop), left to right.

    ``start`` is a multiple of the largest power of two that fits into the range, as in every range
    that RFC 9162 splits a tree into.
    """
    found = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def _fold(peaks: Sequence[bytes]) -> bytes:
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def _check_hash(value: bytes) -> bytes:
    if len(value) != HASH_SIZE:
        raise IntegrityFailure(f"a Merkle hash has {len(value)} bytes where {HASH_SIZE} are expected")
    return value


# -- appending ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """A tree reduced to what an append needs: its size and its complete subtrees, largest first.

    Immutable: :meth:`extend` returns a new one, so an append that fails leaves nothing to undo.

    Attributes:
        size: Number of leaves, below 2^53.
        peaks: One hash (32 bytes) for each one-bit of ``size``, largest subtree first.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= limits.MAX_TREE_SIZE or len(self.peaks) != self.size.bit_count():
            raise IntegrityFailure("a compact range does not fit its size")
        for peak in self.peaks:
            _check_hash(peak)

    def root(self) -> bytes:
        """The tree's root, 32 bytes."""
        return _fold(self.peaks) if self.peaks else EMPTY_ROOT

    def extend(self, hashes: Iterable[bytes], *, level: int = 0) -> tuple[Frontier, list[Node]]:
        """The tree with these leaves added, and the stored interior nodes that are now complete.

        Args:
            hashes: Leaf hashes; with ``level`` those of complete subtrees of 2^level leaves.
            level: Their level; the size so far must be a multiple of 2^level.

        Returns:
            The new frontier, and every newly complete node of level 8, 16, ... as (level, index,
            hash), ascending by level and then by index. Leaves themselves are not repeated.

        Raises:
            IntegrityFailure: A hash is not 32 bytes, or subtrees of that level cannot follow.
        """
        hashes = [_check_hash(value) for value in hashes]
        start, odd = divmod(self.size, 1 << level)
        if odd:
            raise IntegrityFailure(f"a subtree of level {level} cannot follow {self.size} leaves")
        size = self.size + (len(hashes) << level)
        peaks = dict(zip(_levels(self.size), self.peaks, strict=True))
        given = enumerate(hashes, start) if level and level % STORED_STEP == 0 else ()
        completed: list[Node] = [(level, at, value) for at, value in given]
        while hashes:
            if start & 1:
                hashes.insert(0, peaks.pop(level))
            if len(hashes) & 1:
                peaks[level] = hashes.pop()
            hashes, level, start = _pair_up(hashes), level + 1, start >> 1
            if level % STORED_STEP == 0:
                completed.extend((level, start + at, value) for at, value in enumerate(hashes))
        return Frontier(size=size, peaks=tuple(peaks[level] for level in _levels(size))), completed

    def to_bytes(self) -> bytes:
        """The layout: byte 1, the size as u64 big-endian, then the peaks (32 bytes each)."""
        return _FRONTIER_VERSION + self.size.to_bytes(8, "big") + b"".join(self.peaks)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """The frontier that :meth:`to_bytes` wrote.

        Raises:
            IntegrityFailure: Another version, or a length that does not fit the size.
        """
        body = data[9:]
        if len(data) < 9 or data[:1] != _FRONTIER_VERSION or len(body) % HASH_SIZE:
            raise IntegrityFailure("a stored compact range is not of a known form")
        peaks = tuple(body[at : at + HASH_SIZE] for at in range(0, len(body), HASH_SIZE))
        return cls(size=int.from_bytes(data[1:9], "big"), peaks=peaks)


def _levels(size: int) -> list[int]:
    """Levels of the complete subtrees of a tree of that size, largest first."""
    return [level for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1]


# -- making proofs --------------------------------------------------------------------------------------


class _StoredHashes:
    """Subtree hashes of a tree of one size; reads each aligned run of 256 stored hashes at most once."""

    def __init__(self, size: int, read: Read, nodes: Nodes = None) -> None:
        self._size, self._read, self._nodes = size, read, nodes
        self._runs: dict[tuple[int, int], list[bytes]] = {}

    def subtree(self, level: int, index: int) -> bytes:
        if self._nodes is not None:
            return self._nodes.subtree(level, index, size=self._size, read=self._read)
        base = level - level % STORED_STEP
        width = 1 << level - base
        run, offset = divmod(index * width, _TILE_WIDTH)
        return root_of(self._run(base, run)[offset : offset + width])

    def range(self, start: int, stop: int) -> bytes:
        return _fold([self.subtree(level, index) for level, index in _complete_subtrees(start, stop)])

    def _run(self, level: int, run: int) -> list[bytes]:
        if (level, run) not in self._runs:
            start = run * _TILE_WIDTH
            stop = min(start + _TILE_WIDTH, self._size >> level)
            found = [_check_hash(value) for value in self._read(level, start, stop)]
            if len(found) != stop - start:
                raise IntegrityFailure(f"stored hashes of level {level} are missing in [{start}, {stop})")
            self._runs[level, run] = found
        return self._runs[level, run]


def _check_size(size: int) -> None:
    if not 0 <= size <= limits.MAX_TREE_SIZE:
        raise InvalidRequest("a tree size is out of range", why=f"0 to {limits.MAX_TREE_SIZE}")


def inclusion_proof(index: int, size: int, read: Read, *, nodes: Nodes = None) -> list[bytes]:
    """The proof that leaf ``index`` is in the tree of ``size`` leaves, from the leaf's sibling upwards.

    It has at most 53 hashes of 32 bytes.

    Args:
        index: Index of the leaf, from 0.
        size: Size of the tree that the proof is for; at most the number of stored leaves.
        read: Stored hashes; called O(log n) times, each time for at most 256 hashes.
        nodes: What was read of this log before.

    Raises:
        InvalidRequest: ``index`` is not below ``size``, or ``size`` is out of range.
        IntegrityFailure: ``read`` returned too few hashes, or one that is not 32 bytes.

    Source: RFC 9162 section 2.1.3.1.
    """
    _check_size(size)
    if not 0 <= index < size:
        raise InvalidRequest(f"index {index} is not in a tree of {size} entries")
    start, stop, siblings = 0, size, []
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            siblings.append((middle, stop))
            stop = middle
        else:
            siblings.append((start, middle))
            start = middle
    stored = _StoredHashes(size, read, nodes)
    return [stored.range(*sibling) for sibling in reversed(siblings)]


def consistency_proof(size1: int, size2: int, read: Read, *, nodes: NodeCache | None = None) -> list[bytes]:
    """The proof that the tree of ``size2`` leaves extends that of ``size1``.

    At most 54 hashes of 32 bytes; none for equal sizes, and from size 0: so C2SP witnesses take it.

    Args:
        size1: The older size.
        size2: The newer size; at most the number of stored leaves.
        read: Stored hashes; called O(log n) times, each time for at most 256 hashes.
        nodes: What was read of this log before.

    Raises:
        InvalidRequest: ``size1`` is larger than ``size2``, or one is out of range.
        IntegrityFailure: ``read`` returned too few hashes, or one that is not 32 bytes.

    Source: RFC 9162 section 2.1.4.1; C2SP tlog-witness (add-checkpoint).
    """
    _check_size(size1)
    _check_size(size2)
    if size1 > size2:
        raise InvalidRequest(f"a tree of {size2} entries does not extend one of {size1}")
    if size1 in (0, size2):
        return []
    ranges = []
    start, stop = 0, size2
    while stop != size1:
        middle = start + _split(stop - start)
        if size1 <= middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    if start:
        # With start at 0 the old tree is itself a subtree of the new one: its root is known already.
        ranges.append((start, stop))
    stored = _StoredHashes(size2, read, nodes)
    return [stored.range(*part) for part in reversed(ranges)]


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def frontier_at(size: int, read: Read) -> Frontier:
    """The frontier that the tree had at ``size`` leaves, from stored hashes.

    Raises:
        InvalidRequest: ``size`` is out of range.
        IntegrityFailure: ``read`` returned too few hashes, or one that is not 32 bytes.
    """
    _check_size(size)
    stored = _StoredHashes(size, read)
    peaks = tuple(stored.subtree(level, index) for level, index in _complete_subtrees(0, size))
    return Frontier(size=size, peaks=peaks)


# -- verifying proofs -----------------------------------------------------------------------------------


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Leaf ``index`` of the tree with this size and root has this hash.

    Args:
        leaf_hash: Hash of the leaf, 32 bytes.
        index: Index of the leaf, from 0.
        size: Number of leaves of the tree.
        proof: Hashes of 32 bytes, from the leaf's sibling to the root's child.
        root: Root of the tree, 32 bytes.

    Raises:
        IntegrityFailure: The proof does not show that, or a hash is not 32 bytes.

    Source: RFC 9162 section 2.1.3.2.
    """
    if not 0 <= index < size:
        raise IntegrityFailure("an inclusion proof is for an index outside its tree")
    node, last, found = index, size - 1, _check_hash(leaf_hash)
    for sibling in proof:
        if last == 0:
            raise IntegrityFailure("an inclusion proof is too long")
        if node & 1 or node == last:
            found = node_hash(_check_hash(sibling), found)
            node, last = _skip_unpaired(node, last)
        else:
            found = node_hash(found, _check_hash(sibling))
        node, last = node >> 1, last >> 1
    if last != 0:
        raise IntegrityFailure("an inclusion proof is too short")
    if found != root:
        raise IntegrityFailure("an inclusion proof does not lead to the tree's root")


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """The tree (``size2``, ``root2``) extends the tree (``size1``, ``root1``).

    From size 0 the proof is empty and ``root1`` is :data:`EMPTY_ROOT`: every tree extends the empty
    one. This is what C2SP witnesses do; other implementations refuse size 0.

    Args:
        size1: The older size.
        size2: The newer size.
        proof: Hashes of 32 bytes, as :func:`consistency_proof` gives them.
        root1: Root of the older tree, 32 bytes.
        root2: Root of the newer tree, 32 bytes.

    Raises:
        RollbackDetected: The newer tree is smaller, or of the same size with another root.
        IntegrityFailure: The proof does not show it, or a hash is not 32 bytes.

    Source: RFC 9162 section 2.1.4.2; C2SP tlog-witness (add-checkpoint).
    """
    if not 0 <= size1 <= size2:
        raise RollbackDetected(f"the log has {size2} entries, and had {size1} before")
    if size1 == size2 and root1 != root2:
        raise RollbackDetected(f"the log shows two different roots for its first {size1} entries")
    if size1 == 0 and root1 != EMPTY_ROOT:
        raise IntegrityFailure("the root of an empty tree is not the hash of nothing")
    if size1 in (0, size2):
        if proof:
            raise IntegrityFailure("a consistency proof should be empty and is not")
        return
    old, new = _roots_from(size1, size2, proof, root1)
    if old != root1 or new != root2:
        raise IntegrityFailure("a consistency proof does not lead to the two roots")


def _roots_from(size1: int, size2: int, proof: Sequence[bytes], root1: bytes) -> tuple[bytes, bytes]:
    # A power of two: the old tree is a subtree of the new one, so its root begins the path.
    path = [root1, *proof] if size1.bit_count() == 1 else list(proof)
    if not proof:
        raise IntegrityFailure("a consistency proof is empty and should not be")
    node, last = size1 - 1, size2 - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = _check_hash(path[0])
    for sibling in path[1:]:
        if last == 0:
            raise IntegrityFailure("a consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(_check_hash(sibling), old), node_hash(sibling, new)
            node, last = _skip_unpaired(node, last)
        else:
            new = node_hash(new, _check_hash(sibling))
        node, last = node >> 1, last >> 1
    if last != 0:
        raise IntegrityFailure("a consistency proof is too short")
    return old, new


def _skip_unpaired(node: int, last: int) -> tuple[int, int]:
    """Climb the levels at which the tree's last node has no partner and moves up unchanged."""
    while node and not node & 1:
        node, last = node >> 1, last >> 1
    return node, last
