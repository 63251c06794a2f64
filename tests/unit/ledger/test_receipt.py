"""Receipts: every part is authenticated, and there is one spelling of each."""

from __future__ import annotations

import base64

import pytest

from broker import limits
from broker.errors import IntegrityFailure
from broker.ledger.entry import parse_entry
from broker.ledger.merkle import inclusion_proof, leaf_hash
from broker.ledger.note import TreeHead, Verifier, head_text, sign_head, sign_note
from broker.ledger.receipt import build_receipt, parse_receipt, verify_receipt
from tests.unit.ledger.samples import (
    KEY,
    ORIGIN,
    OTHER_KEY,
    OTHER_VERIFIER,
    VERIFIER,
    StoredLog,
    sample_log,
)

LOG = StoredLog(sample_log(40))


def receipt_of(index: int = 4, size: int = 40) -> str:
    proof = inclusion_proof(index, size, LOG.read)
    return build_receipt(LOG.entries[index], index, proof, LOG.note(size))


def test_a_receipt_verifies_and_says_what_it_proves():
    for index, size in [(4, 40), (0, 1), (39, 40), (31, 33)]:
        verified = verify_receipt(receipt_of(index, size), VERIFIER.vkey)
        assert verified.entry == parse_entry(LOG.entries[index])
        assert verified.entry_bytes == LOG.entries[index]
        assert verified.index == index
        assert verified.leaf_hash == leaf_hash(LOG.entries[index])
        assert verified.head == LOG.head(size)


def test_a_receipt_is_a_tlog_proof():
    lines = receipt_of().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert base64.b64decode(lines[1].removeprefix("extra ")) == LOG.entries[4]
    assert lines[2] == "index 4"
    assert [base64.b64decode(line) for line in lines[3:9]] == inclusion_proof(4, 40, LOG.read)
    assert lines[9:12] == ["", ORIGIN, "40"]
    assert receipt_of().endswith("=\n")


def test_parsing_and_building_are_inverse():
    text = receipt_of()
    parts = parse_receipt(text)
    assert build_receipt(parts.entry_bytes, parts.index, parts.proof, parts.note) == text


def test_a_receipt_verifies_under_an_older_key_of_the_log_and_with_witnesses():
    proof = inclusion_proof(4, 40, LOG.read)
    old = build_receipt(LOG.entries[4], 4, proof, sign_head(LOG.head(40), OTHER_VERIFIER, OTHER_KEY.sign))
    assert verify_receipt(old, [VERIFIER, OTHER_VERIFIER]).index == 4
    witness = "— witness.example " + base64.b64encode(bytes(76)).decode() + "\n"
    assert verify_receipt(receipt_of() + witness, VERIFIER).index == 4


def test_every_changed_character_is_refused():
    text = receipt_of()
    for at in range(len(text)):
        for other in ("A", "\n", "0"):
            if text[at] != other:
                with pytest.raises(IntegrityFailure):
                    verify_receipt(text[:at] + other + text[at + 1 :], VERIFIER)


def test_every_truncation_is_refused():
    text = receipt_of()
    for at in range(len(text)):
        with pytest.raises(IntegrityFailure):
            verify_receipt(text[:at], VERIFIER)


def test_receipts_of_another_form_are_refused():
    text = receipt_of()
    lines = text.split("\n")
    broken = [
        text + "\n",
        "\n" + text,
        text.replace("\n", "\r\n"),
        text.replace("@v1", "@v2"),
        text.replace("extra ", "Extra "),
        text.replace("extra ", "extra  "),
        text.replace("index 4", "index 04"),
        text.replace("index 4", "index +4"),
        text.replace("index 4", "index ٤"),
        text.replace("index 4", "index 4 "),
        "\n".join([lines[0], *lines[2:]]),
        "\n".join([lines[0], lines[2], lines[1], *lines[3:]]),
        "\n".join([*lines[:3], *lines[4:]]),
        "\n".join([*lines[:4], lines[3], *lines[4:]]),
        "\n".join([*lines[:3], lines[4], lines[3], *lines[5:]]),
        "\n".join([*lines[:3], lines[3] + " ", *lines[4:]]),
        "\n".join([*lines[:3], base64.b64encode(bytes(31)).decode(), *lines[4:]]),
        "\n".join([*lines[:3], *[lines[3]] * (limits.MAX_PROOF_HASHES + 1), *lines[9:]]),
        text.replace(lines[3], lines[3].rstrip("=")),
        text.replace(lines[1], lines[1].rstrip("=") + "=" * 4),
        text.encode(),
        None,
    ]
    for receipt in broken:
        with pytest.raises(IntegrityFailure):
            verify_receipt(receipt, VERIFIER)  # type: ignore[arg-type]


def test_parts_of_two_genuine_receipts_do_not_mix():
    one, two = parse_receipt(receipt_of(4, 40)), parse_receipt(receipt_of(5, 33))
    mixed = [
        build_receipt(two.entry_bytes, one.index, one.proof, one.note),
        build_receipt(one.entry_bytes, two.index, one.proof, one.note),
        build_receipt(one.entry_bytes, one.index, two.proof, one.note),
        build_receipt(one.entry_bytes, one.index, one.proof, two.note),
    ]
    for receipt in mixed:
        with pytest.raises(IntegrityFailure):
            verify_receipt(receipt, VERIFIER)


def test_a_receipt_of_a_log_that_is_not_trusted_is_refused():
    with pytest.raises(IntegrityFailure):
        verify_receipt(receipt_of(), OTHER_VERIFIER)
    with pytest.raises(IntegrityFailure):
        verify_receipt(receipt_of(), Verifier(name="other.example", public=VERIFIER.public))
    with pytest.raises(IntegrityFailure):
        verify_receipt(receipt_of(), [])


def test_a_proven_leaf_that_is_no_entry_is_refused():
    log = StoredLog([b"hello"])
    with pytest.raises(IntegrityFailure):
        verify_receipt(build_receipt(b"hello", 0, [], log.note(1)), VERIFIER)


def test_a_head_that_was_not_signed_as_a_head_is_refused():
    text = head_text(TreeHead(origin=ORIGIN, size=40, root=LOG.head(40).root)) + "extension\n"
    forged = build_receipt(
        LOG.entries[4], 4, inclusion_proof(4, 40, LOG.read), sign_note(text, VERIFIER, KEY.sign)
    )
    with pytest.raises(IntegrityFailure):
        verify_receipt(forged, VERIFIER)


def test_a_proof_may_have_as_many_hashes_as_the_limit_and_no_more():
    proof = [bytes(32)] * limits.MAX_PROOF_HASHES
    assert len(parse_receipt(build_receipt(b"", 0, proof, "\n")).proof) == limits.MAX_PROOF_HASHES
    with pytest.raises(IntegrityFailure):
        parse_receipt(build_receipt(b"", 0, [*proof, bytes(32)], "\n"))


def test_the_largest_receipt_fits_and_one_character_more_does_not():
    front = build_receipt(bytes(limits.MAX_ENTRY), 2**53 - 2, [bytes(32)] * limits.MAX_PROOF_HASHES, "")
    parse_receipt(front + "\n" * limits.MAX_NOTE)
    largest = front + "\n" * (limits.MAX_RECEIPT - len(front))
    parse_receipt(largest)
    with pytest.raises(IntegrityFailure):
        parse_receipt(largest + "\n")
