"""Properties of the ledger's rules over random trees, entries, receipts and queries."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker import limits
from broker.errors import IntegrityFailure, InvalidRequest, TooLarge
from broker.ledger.audit import Auditor
from broker.ledger.entry import cut_name, index_row, parse_entry
from broker.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    frontier_at,
    inclusion_proof,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from broker.ledger.query import matches, parse_query
from broker.ledger.receipt import build_receipt, parse_receipt, verify_receipt
from tests.unit.ledger.samples import NOW, SAMPLES, VERIFIER, StoredLog, sample, sample_log

LOG = StoredLog(sample_log(600))
sizes = st.integers(min_value=1, max_value=600)


# -- an implementation of its own: the recursive definitions of RFC 9162, word for word ---------------


def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], complete: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if complete else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], complete), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


# -- trees --------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=8), max_size=80))
def test_roots_are_those_of_the_definition(entries):
    leaves = [leaf_hash(entry) for entry in entries]
    assert root_of(leaves) == mth(leaves) == Frontier().extend(leaves)[0].root()


@given(sizes, st.data())
def test_proofs_are_those_of_the_definition_and_verify(size, data):
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    leaves = LOG.leaves[:size]
    inclusion = inclusion_proof(index, size, LOG.read)
    consistency = consistency_proof(old, size, LOG.read)
    assert inclusion == path(index, leaves)
    assert consistency == subproof(old, leaves, True)
    verify_inclusion(leaves[index], index, size, inclusion, mth(leaves))
    verify_consistency(old, size, consistency, mth(leaves[:old]), mth(leaves))


@given(st.lists(st.integers(min_value=0, max_value=300), max_size=6))
def test_appending_in_any_pieces_gives_one_tree_and_each_node_once(pieces):
    frontier, nodes, at = Frontier(), [], 0
    for piece in pieces:
        leaves = LOG.leaves[at : at + piece]
        at += len(leaves)
        frontier, completed = frontier.extend(leaves)
        nodes += completed
    whole, expected = Frontier().extend(LOG.leaves[:at])
    assert frontier == whole == frontier_at(at, LOG.read) == Frontier.from_bytes(frontier.to_bytes())
    assert sorted(nodes) == sorted(expected)


@given(sizes, sizes, sizes, st.data())
def test_an_inclusion_proof_never_holds_for_another_leaf(size, index, other, data):
    assume(index <= size)
    assume(other != index)
    proof = inclusion_proof(index - 1, size, LOG.read)
    with pytest.raises(IntegrityFailure):
        verify_inclusion(LOG.leaves[other - 1], index - 1, size, proof, root_of(LOG.leaves[:size]))


@given(sizes, st.data())
def test_a_proof_with_anything_changed_does_not_hold(size, data):
    old = data.draw(st.integers(1, size))
    proof = consistency_proof(old, size, LOG.read)
    roots = root_of(LOG.leaves[:old]), root_of(LOG.leaves[:size])
    at = data.draw(st.integers(0, len(proof)))
    junk = data.draw(st.binary(min_size=32, max_size=32))
    assume(at == len(proof) or proof[at] != junk)
    for changed in ([*proof[:at], junk, *proof[at:]], [*proof[:at], junk, *proof[at + 1 :]]):
        with pytest.raises(IntegrityFailure):
            verify_consistency(old, size, changed, *roots)


@given(
    st.integers(-2, 2**64),
    st.integers(-2, 2**64),
    st.lists(st.binary(min_size=31, max_size=33), max_size=70),
    st.binary(min_size=31, max_size=33),
)
def test_verification_of_junk_ends_in_a_refusal(one, two, proof, root):
    with pytest.raises(IntegrityFailure):
        verify_inclusion(hashlib.sha256(b"leaf").digest(), one, two, proof, root)
    assume((one, proof) != (0, []) and one != two)
    with pytest.raises(IntegrityFailure):
        verify_consistency(one, two, proof, root, EMPTY_ROOT)


# -- entries, receipts, queries -----------------------------------------------------------------------


@given(st.text(max_size=400), st.integers(0, 300))
def test_a_cut_name_always_fits_an_entry_or_is_empty(text, size):
    cut = cut_name(text, size=size)
    assert len(cut.encode()) <= size
    assert cut_name(cut, size=size) == cut
    if cut and size <= limits.MAX_NAME_IN_LEDGER:
        assert index_row(parse_entry(sample("denial", artifact=cut))).artifact == cut


@given(st.binary(max_size=300))
def test_junk_is_not_an_entry(data):
    with pytest.raises(IntegrityFailure):
        parse_entry(data)


@given(st.sampled_from(list(SAMPLES)), st.data())
def test_an_entry_with_any_byte_changed_is_another_leaf(type, data):
    entry = sample(type)
    at = data.draw(st.integers(0, len(entry) - 1))
    changed = entry[:at] + bytes([entry[at] ^ data.draw(st.integers(1, 255))]) + entry[at + 1 :]
    assert leaf_hash(changed) != leaf_hash(entry)
    with suppress(IntegrityFailure):
        assert parse_entry(changed) != parse_entry(entry)


@given(sizes, st.data())
@settings(max_examples=60)
def test_a_receipt_verifies_and_no_mutation_of_it_does(size, data):
    index = data.draw(st.integers(0, size - 1))
    text = build_receipt(LOG.entries[index], index, inclusion_proof(index, size, LOG.read), LOG.note(size))
    assert verify_receipt(text, VERIFIER).index == index
    at = data.draw(st.integers(0, len(text)))
    drop = data.draw(st.integers(0, 100))
    put = data.draw(st.text(max_size=4))
    mutated = text[:at] + put + text[at + drop :]
    assume(mutated != text)
    with pytest.raises(IntegrityFailure):
        verify_receipt(mutated, VERIFIER)


@given(st.text(max_size=200))
def test_a_receipt_that_parses_is_written_the_same_way(text):
    lines = LOG.note(1).split("\n")
    for candidate in (text, "\n".join([*lines, text])):
        try:
            parts = parse_receipt(candidate)
        except IntegrityFailure:
            continue
        assert build_receipt(parts.entry_bytes, parts.index, parts.proof, parts.note) == candidate


@given(st.text(max_size=120))
def test_any_text_is_a_query_or_refused_and_a_query_can_be_asked(text):
    with suppress(InvalidRequest, TooLarge):
        query = parse_query(text, now=NOW)
        assert matches(query, index_row(parse_entry(sample("grant")))) in (True, False)


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1))
def test_any_value_can_be_asked_for_in_quotes(value):
    assume(len(value.encode()) < 500)
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    query = parse_query(f'"{quoted}" purpose:"{quoted}"', now=NOW)
    assert (query.text, query.purpose) == ((value,), value)


# -- the auditor --------------------------------------------------------------------------------------


@given(st.sets(st.integers(1, 600), max_size=8), st.integers(0, 599), st.booleans(), st.data())
@settings(max_examples=60)
def test_the_auditor_names_one_changed_row(sizes, index, consistent, data):
    """Every change is named by its index or by an interval that holds it, if any head covers it."""
    heads = [LOG.head(size) for size in sizes]
    forged = sample("abandon", at=data.draw(st.integers(1000, 2000)))
    rows = LOG.rows()
    rows[index] = (index, forged, leaf_hash(forged) if consistent else LOG.leaves[index])
    auditor = Auditor(heads=heads)
    auditor.feed(rows)
    verdict = auditor.finish()
    after = [size for size in sizes if size > index]
    if not consistent:
        assert (verdict.first_bad_index, verdict.first_bad_interval) == (index, None)
    elif after:
        before = max([0, *(size for size in sizes if size <= index)])
        assert (verdict.first_bad_index, verdict.first_bad_interval) == (None, (before, min(after)))
    else:
        assert verdict.ok
        assert verdict.covered <= index
