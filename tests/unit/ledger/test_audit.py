"""The auditor names what was changed: the row, or the interval between two signed heads (I10)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from broker.errors import IntegrityFailure
from broker.ledger.audit import MAX_PROBLEMS, Auditor, Verdict
from broker.ledger.entry import index_row, parse_entry
from broker.ledger.merkle import EMPTY_ROOT, leaf_hash
from broker.ledger.note import TreeHead
from tests.unit.ledger.samples import StoredLog, sample, sample_log

ENTRIES = sample_log(300)
LOG = StoredLog(ENTRIES)
HEADS = [LOG.head(size) for size in (0, 1, 30, 38, 200, 290)]
OTHER = sample("abandon", at=10_000)

Row = tuple[int, bytes, bytes]


def audit(rows: list[Row], *, heads=HEADS, step: int = 64, **options) -> Verdict:
    auditor = Auditor(heads=heads, **options)
    for start in range(0, len(rows), step):
        auditor.feed(rows[start : start + step])
    return auditor.finish()


def changed(index: int, entry: bytes = OTHER, leaf: bytes | None = None) -> list[Row]:
    """The log with one row rewritten, together with its hash when ``leaf`` is not given."""
    rows = LOG.rows()
    rows[index] = (index, entry, leaf_hash(entry) if leaf is None else leaf)
    return rows


def renumbered(pairs: list[Row]) -> list[Row]:
    return [(at, entry, leaf) for at, (_, entry, leaf) in enumerate(pairs)]


def search_rows(entries: list[bytes] = ENTRIES) -> list:
    return [(at, index_row(parse_entry(entry))) for at, entry in enumerate(entries)]


def audit_with_index(index_rows, rows: list[Row] | None = None) -> Verdict:
    auditor = Auditor(heads=HEADS, full=True)
    auditor.feed(LOG.rows() if rows is None else rows, index_rows=index_rows)
    return auditor.finish()


# -- a log as it should be ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
@pytest.mark.parametrize("full", [False, True])
def test_an_honest_log_is_fine(step, full):
    verdict = audit(LOG.rows(), step=step, full=full, stored_hashes=LOG.read)
    assert verdict == Verdict(
        ok=True,
        size=300,
        root=LOG.frontier.root(),
        covered=290,
        first_bad_index=None,
        first_bad_interval=None,
        problems=(),
    )


def test_an_empty_log_is_fine():
    verdict = audit([], heads=[LOG.head(0)])
    assert verdict.ok
    assert (verdict.size, verdict.root, verdict.covered) == (0, EMPTY_ROOT, 0)
    assert audit([], heads=[]).ok


def test_heads_may_come_in_any_order_and_twice():
    heads = [*HEADS, *HEADS]
    random.Random(1).shuffle(heads)
    assert audit(LOG.rows(), heads=heads).ok


# -- rows that contradict themselves ------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 29, 30, 37, 38, 199, 289, 290, 299])
@pytest.mark.parametrize("full", [False, True])
def test_a_changed_entry_is_named(index, full):
    verdict = audit(changed(index, leaf=LOG.leaves[index]), full=full)
    assert not verdict.ok
    assert (verdict.first_bad_index, verdict.first_bad_interval) == (index, None)


@pytest.mark.parametrize("index", [0, 37, 299])
def test_a_changed_leaf_hash_is_named(index):
    verdict = audit(changed(index, LOG.entries[index], leaf=bytes(32)))
    assert (verdict.ok, verdict.first_bad_index, verdict.first_bad_interval) == (False, index, None)


@pytest.mark.parametrize("value", ["text", None, 7, memoryview(b"x")])
def test_a_row_that_is_not_bytes_is_named(value):
    for row in ((5, value, LOG.leaves[5]), (5, LOG.entries[5], value)):
        rows = LOG.rows()
        rows[5] = row
        assert audit(rows).first_bad_index == 5
        assert audit(rows, full=True).first_bad_index == 5


@pytest.mark.parametrize("index", [0, 1, 150, 298])
def test_a_deleted_row_is_named(index):
    rows = LOG.rows()
    del rows[index]
    verdict = audit(rows)
    assert (verdict.ok, verdict.first_bad_index, verdict.first_bad_interval) == (False, index, None)


def test_a_row_that_is_there_twice_is_named():
    rows = LOG.rows()
    rows.insert(40, rows[39])
    assert audit(rows).first_bad_index == 39


def test_rows_out_of_order_are_named():
    rows = LOG.rows()
    rows[40], rows[41] = rows[41], rows[40]
    assert audit(rows).first_bad_index == 40


@pytest.mark.parametrize("size", [0, 1, 289])
def test_a_log_shorter_than_a_signed_head_is_found(size):
    verdict = audit(LOG.rows()[:size])
    assert (verdict.ok, verdict.first_bad_index, verdict.size) == (False, size, size)


def test_the_first_of_several_bad_rows_is_named():
    rows = LOG.rows()
    for index in (250, 20, 100):
        rows[index] = (index, OTHER, LOG.leaves[index])
    verdict = audit(rows)
    assert verdict.first_bad_index == 20
    assert len([line for line in verdict.problems if "does not hash" in line]) == 3


# -- rows that were rewritten together with their hashes ----------------------------------------------


@pytest.mark.parametrize(
    ("index", "interval"),
    [(0, (0, 1)), (1, (1, 30)), (29, (1, 30)), (30, (30, 38)), (37, (30, 38)), (289, (200, 290))],
)
def test_a_consistent_rewrite_is_named_by_its_interval(index, interval):
    verdict = audit(changed(index))
    assert not verdict.ok
    assert (verdict.first_bad_index, verdict.first_bad_interval) == (None, interval)
    assert interval[0] <= index < interval[1]
    assert verdict.covered == interval[0]


def test_an_inserted_a_removed_and_a_swapped_row_are_named_by_their_interval():
    rows = LOG.rows()
    inserted = renumbered([*rows[:33], (33, OTHER, leaf_hash(OTHER)), *rows[33:]])
    removed = renumbered([*rows[:33], *rows[34:]])
    swapped = renumbered([*rows[:33], rows[34], rows[33], *rows[35:]])
    for forged in (inserted, removed, swapped):
        verdict = audit(forged)
        assert (verdict.first_bad_index, verdict.first_bad_interval) == (None, (30, 38))


def test_a_rewrite_before_a_bad_row_is_told_beside_it():
    rows = changed(33)
    rows[100] = (100, OTHER, LOG.leaves[100])
    verdict = audit(rows)
    assert (verdict.first_bad_index, verdict.first_bad_interval) == (100, (30, 38))


def test_a_bad_row_before_a_rewrite_is_told_beside_it():
    rows = changed(33)
    rows[2] = (2, LOG.entries[2], bytes(32))
    verdict = audit(rows)
    assert (verdict.first_bad_index, verdict.first_bad_interval) == (2, (30, 38))


def test_two_heads_of_one_size_with_different_roots_are_a_fork():
    verdict = audit(LOG.rows(), heads=[*HEADS, TreeHead(origin="o", size=200, root=bytes(32))])
    assert not verdict.ok
    assert verdict.first_bad_interval is not None
    assert verdict.first_bad_interval[1] == 200


def test_what_no_head_covers_can_be_rewritten_and_the_verdict_says_how_far_it_vouches():
    verdict = audit(changed(295))
    assert verdict.ok
    assert verdict.covered == 290 < verdict.size


def test_what_no_head_covers_must_at_least_be_entries():
    assert audit(changed(295, b"junk")).first_bad_index == 295
    assert audit(changed(3, b"junk"), heads=[]).first_bad_index == 3


def test_a_signed_row_that_is_no_entry_is_found_by_a_full_audit():
    junk = StoredLog([*ENTRIES[:3], b"junk", *ENTRIES[4:10]])
    assert audit(junk.rows(), heads=[junk.head(10)]).ok
    verdict = audit(junk.rows(), heads=[junk.head(10)], full=True)
    assert (verdict.ok, verdict.first_bad_index) == (False, 3)


# -- stored hashes of the levels 8, 16, ... -----------------------------------------------------------


def test_a_changed_stored_hash_is_found():
    log = StoredLog([str(at).encode() for at in range(1000)])
    heads = [log.head(1000)]
    assert audit(log.rows(), heads=heads, stored_hashes=log.read).ok
    for at in range(3):
        genuine, log.hashes[8][at] = log.hashes[8][at], bytes(32)
        verdict = audit(log.rows(), heads=heads, stored_hashes=log.read)
        log.hashes[8][at] = genuine
        assert (verdict.ok, verdict.first_bad_index) == (False, at * 256)
        assert verdict.problems == (f"stored hash {at} of level 8 is wrong or missing",)


def test_a_missing_stored_hash_is_found():
    log = StoredLog([str(at).encode() for at in range(1000)])

    def read(level: int, start: int, stop: int) -> list[bytes]:
        if start <= 1 < stop:
            raise IntegrityFailure("a stored hash is missing")
        return log.read(level, start, stop)

    verdict = audit(log.rows(), heads=[log.head(1000)], stored_hashes=read, step=1000)
    assert (verdict.ok, verdict.first_bad_index) == (False, 256)
    assert len(verdict.problems) == 1


def test_a_stored_hash_too_many_is_found():
    log = StoredLog([str(at).encode() for at in range(1000)])
    log.hashes[8].append(bytes(32))
    verdict = audit(log.rows(), heads=[log.head(1000)], stored_hashes=log.read)
    assert (verdict.ok, verdict.first_bad_index) == (False, 1000)


def test_a_rewrite_is_named_by_heads_even_if_stored_hashes_differ_too():
    verdict = audit(changed(33), stored_hashes=LOG.read)
    assert (verdict.first_bad_index, verdict.first_bad_interval) == (None, (30, 38))


# -- search rows --------------------------------------------------------------------------------------


def test_an_honest_index_is_fine():
    assert audit_with_index(search_rows()).ok
    auditor = Auditor(heads=HEADS)
    rows, index = LOG.rows(), search_rows()
    for start in range(0, 300, 70):
        auditor.feed(rows[start : start + 70], index_rows=iter(index[start : start + 70]))
    auditor.feed([], index_rows=[])
    assert auditor.finish().ok


@pytest.mark.parametrize(
    "change", [{"principal": "user:eve"}, {"time": 1}, {"policies": ("x",)}, {"bytes": None}]
)
def test_a_search_row_that_does_not_follow_from_its_entry_is_found(change):
    index = search_rows()
    index[4] = (4, replace(index[4][1], **change))
    verdict = audit_with_index(index)
    assert (verdict.ok, verdict.first_bad_index) == (False, 4)


@pytest.mark.parametrize("at", [0, 4, 299])
def test_a_missing_search_row_is_found(at):
    index = search_rows()
    del index[at]
    verdict = audit_with_index(index)
    assert (verdict.ok, verdict.first_bad_index) == (False, at)
    assert verdict.problems == (f"search row {at} is missing",)


def test_search_rows_without_an_entry_are_found():
    extra = (300, search_rows()[0][1])
    verdict = audit_with_index([*search_rows(), extra])
    assert (verdict.ok, verdict.first_bad_index) == (False, 300)
    index = search_rows()
    index.insert(5, index[4])
    assert audit_with_index(index).first_bad_index == 4
    assert audit_with_index([(-1, extra[1]), *search_rows()]).first_bad_index == -1


# -- the verdict --------------------------------------------------------------------------------------


def test_a_verdict_spells_out_a_bounded_number_of_problems():
    rows = [(at, entry, bytes(32)) for at, entry in enumerate(ENTRIES)]
    verdict = audit(rows, heads=[])
    assert len(verdict.problems) == MAX_PROBLEMS + 1
    assert verdict.problems[-1] == "and 200 more"


def test_no_problem_repeats_what_a_row_says():
    verdict = audit(changed(295, b'{"type":"s3cret","s3cret":1}'))
    assert not verdict.ok
    assert "s3cret" not in "".join(verdict.problems)
