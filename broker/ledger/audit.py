"""The auditor: reads the stored log from its first row to its last and says whether it is the log.

It trusts nothing that it is fed but the signed tree heads, and needs memory for the heads and one
batch of rows only. What it can and cannot name follows from what is signed: a row that contradicts
itself is named by its index; rows that were rewritten together with their hashes contradict a signed
head, which names the interval since the last head that still holds (I10).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Final

from broker.errors import IntegrityFailure
from broker.ledger.entry import index_row, parse_entry
from broker.ledger.merkle import STORED_STEP, Frontier, Node, Read
from broker.ledger.note import TreeHead
from broker.model import IndexRow

StoredRow = tuple[int, bytes, bytes]
"""(index, entry, stored leaf hash)."""

MAX_PROBLEMS: Final = 100
"""Problems that a verdict spells out; the rest are counted."""
_BATCH: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit found.

    Attributes:
        ok: Nothing is wrong with what was fed.
        size: Rows that were read.
        root: Root (32 bytes) over the rows, up to the first one that is missing or out of order.
        covered: Size of the largest signed head that the rows agree with; later rows are unsigned.
        first_bad_index: The first row that is wrong or missing, where one can be named.
        first_bad_interval: Sizes (a, b) of the last signed head that agrees and the first that does
            not: a row with a <= index < b was rewritten together with its hash. None when there is
            no such head, or when ``first_bad_index`` lies in it and explains it.
        problems: One line each, in the order of their discovery, at most 101.
    """

    ok: bool
    size: int
    root: bytes
    covered: int
    first_bad_index: int | None
    first_bad_interval: tuple[int, int] | None
    problems: tuple[str, ...]


class Auditor:
    """A streaming verifier: feed all rows in ascending order, in pieces of any length, then finish.

    Always checked: indices are dense from 0; every entry hashes to its stored leaf hash; the tree
    agrees with every signed head and is no smaller than any. Rows that no head covers are also parsed
    strictly, since nobody vouches for them yet; with ``full`` every row is (about 0.1 ms each).

    Args:
        heads: Signed tree heads, already opened, in any order.
        stored_hashes: Reads stored hashes of levels 8, 16, ...; when given, they are compared with
            what the entries give. It may raise IntegrityFailure where one is missing.
        full: Whether every entry is parsed.
    """

    def __init__(
        self, *, heads: Iterable[TreeHead], stored_hashes: Read | None = None, full: bool = False
    ) -> None:
        self._heads = sorted(heads, key=lambda head: head.size, reverse=True)
        self._stored_hashes = stored_hashes
        self._parse_from = 0 if full or not self._heads else self._heads[0].size
        self._frontier = Frontier()
        self._rows = 0
        self._dense = True
        self._covered = 0
        self._bad_index: int | None = None
        self._bad_node: int | None = None
        self._bad_interval: tuple[int, int] | None = None
        self._problems: list[str] = []
        self._problem_count = 0

    def feed(
        self, rows: Iterable[StoredRow], *, index_rows: Iterable[tuple[int, IndexRow]] | None = None
    ) -> None:
        """Take the next rows of the log.

        Args:
            rows: (index, entry, stored leaf hash), ascending.
            index_rows: (index, search row) of the same stretch, ascending; None leaves the search
                index unchecked. Search rows without an entry are problems too, so the last call
                should offer whatever lies beyond the log's end.
        """
        search = None if index_rows is None else _SearchRows(index_rows)
        source = iter(rows)
        while batch := list(islice(source, _BATCH)):
            self._rows += len(batch)
            if self._dense:
                self._take(batch, search)
        if search is not None and self._dense:
            for index in search.rest():
                self._report_row(index, f"search row {index} belongs to no entry")

    def finish(self) -> Verdict:
        """The verdict over all that was fed."""
        if self._dense:
            self._advance([])
            self._check_nothing_missing()
        index, interval = self._bad_index, self._bad_interval
        if index is not None and interval is not None and interval[0] <= index < interval[1]:
            interval = None
        if index is None and interval is None:
            index = self._bad_node
        unsaid = self._problem_count - len(self._problems)
        return Verdict(
            ok=self._problem_count == 0,
            size=self._rows,
            root=self._frontier.root(),
            covered=self._covered,
            first_bad_index=index,
            first_bad_interval=interval,
            problems=(*self._problems, *([f"and {unsaid} more"] if unsaid else [])),
        )

    # -- rows ---------------------------------------------------------------------------------------------

    def _take(self, batch: list[StoredRow], search: _SearchRows | None) -> None:
        start = self._frontier.size
        hashes = self._hash_rows(start, batch)
        # Rows are parsed and compared with the index only where that is asked for: it is 30 times dearer.
        first = start if search is not None else max(start, self._parse_from)
        for index, entry, _ in batch[first - start : len(hashes)]:
            self._check_entry(index, entry, search)
        self._advance(hashes)

    def _hash_rows(self, start: int, batch: list[StoredRow]) -> list[bytes]:
        """Leaf hashes of the batch's rows, up to the first row that is not where it should be."""
        sha256 = hashlib.sha256
        hashes: list[bytes] = []
        for expected, (index, entry, stored) in enumerate(batch, start):
            if index != expected:
                self._report_order(expected, index)
                break
            # A database may give back text or nothing where bytes were put: then the row is bad, not we.
            found = sha256(b"\x00" + entry).digest() if type(entry) is bytes else b"\x00" * 32
            if found != stored:
                self._report_row(index, f"entry {index} does not hash to its stored leaf hash")
            hashes.append(found)
        return hashes

    def _check_entry(self, index: int, entry: bytes, search: _SearchRows | None) -> None:
        try:
            expected = index_row(parse_entry(entry if type(entry) is bytes else b""))
        except IntegrityFailure as exc:
            self._report_row(index, f"entry {index} is not an entry: {exc.why or exc.what}")
            expected = None
        if search is None:
            return
        strays, stored = search.take(index)
        for stray in strays:
            self._report_row(stray, f"search row {stray} is out of place")
        if stored is None:
            self._report_row(index, f"search row {index} is missing")
        elif expected is not None and stored != expected:
            self._report_row(index, f"search row {index} does not follow from its entry")

    # -- the tree -----------------------------------------------------------------------------------------

    def _advance(self, hashes: list[bytes]) -> None:
        """Grow the tree, stopping at the size of each signed head to compare."""
        start, done = self._frontier.size, 0
        while self._heads and self._heads[-1].size <= start + len(hashes):
            head = self._heads.pop()
            self._grow(hashes[done : head.size - start])
            done = head.size - start
            self._compare(head)
        self._grow(hashes[done:])

    def _grow(self, hashes: list[bytes]) -> None:
        if hashes:
            self._frontier, completed = self._frontier.extend(hashes)
            if self._stored_hashes is not None:
                self._compare_stored(self._stored_hashes, completed)

    def _compare(self, head: TreeHead) -> None:
        if self._bad_interval is not None:
            return  # One bad row makes every later head disagree: only the first says where.
        if head.root == self._frontier.root():
            self._covered = head.size
            return
        self._bad_interval = (self._covered, head.size)
        self._report(f"the rows do not give the root that was signed at size {head.size}")

    def _compare_stored(self, read: Read, completed: list[Node]) -> None:
        for level, group in groupby(completed, key=lambda node: node[0]):
            nodes = list(group)
            start = nodes[0][1]
            stored = _read_each(read, level, start, start + len(nodes))
            for (_, index, expected), found in zip(nodes, stored, strict=True):
                if found != expected:
                    self._report(f"stored hash {index} of level {level} is wrong or missing")
                    first_leaf = index << level
                    self._bad_node = first_leaf if self._bad_node is None else min(self._bad_node, first_leaf)

    def _check_nothing_missing(self) -> None:
        size = self._frontier.size
        if self._heads:
            newest = self._heads[0].size
            self._report_row(size, f"entry {size} is missing: a tree head of size {newest} was signed")
        if self._stored_hashes is None:
            return
        for level in range(STORED_STEP, 53, STORED_STEP):
            beyond = size >> level
            if _read_each(self._stored_hashes, level, beyond, beyond + 1) != [None]:
                self._report(f"stored hash {beyond} of level {level} belongs to no entries")
                self._bad_node = size if self._bad_node is None else self._bad_node

    # -- reporting ----------------------------------------------------------------------------------------

    def _report(self, problem: str) -> None:
        self._problem_count += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)

    def _report_row(self, index: int, problem: str) -> None:
        self._report(problem)
        self._bad_index = index if self._bad_index is None else min(index, self._bad_index)

    def _report_order(self, expected: int, index: int) -> None:
        # From here on no row's place in the tree is known, so the tree ends here.
        self._dense = False
        if index > expected:
            self._report_row(expected, f"entry {expected} is missing")
        else:
            self._report_row(index, f"entry {index} is there twice or out of order")


class _SearchRows:
    """Search rows beside the entries they belong to, without holding them all."""

    def __init__(self, rows: Iterable[tuple[int, IndexRow]]) -> None:
        self._source: Iterator[tuple[int, IndexRow]] = iter(rows)
        self._next = next(self._source, None)

    def take(self, index: int) -> tuple[list[int], IndexRow | None]:
        """Indices that should not have come before ``index``, and the row of ``index`` if it is there."""
        strays: list[int] = []
        while self._next is not None and self._next[0] < index:
            strays.append(self._next[0])
            self._next = next(self._source, None)
        if self._next is None or self._next[0] != index:
            return strays, None
        row = self._next[1]
        self._next = next(self._source, None)
        return strays, row

    def rest(self) -> Iterator[int]:
        """Indices of all rows that no entry asked for."""
        while self._next is not None:
            yield self._next[0]
            self._next = next(self._source, None)


def _read_each(read: Read, level: int, start: int, stop: int) -> list[bytes | None]:
    """Stored hashes [start, stop) of a level, None for each that cannot be read."""
    try:
        found = list(read(level, start, stop))
    except IntegrityFailure:
        found = []
    if len(found) == stop - start:
        return [*found]
    if stop - start == 1:
        return [None]
    # Something in this run is missing: halve it until the missing ones are alone.
    middle = (start + stop) // 2
    return [*_read_each(read, level, start, middle), *_read_each(read, level, middle, stop)]
