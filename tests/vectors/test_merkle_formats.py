"""The vectors of ``docs/formats`` for the ledger, against the code and against plain other code.

The other code is hashlib, pymerkle, rfc8785 and an Ed25519 key; it shares nothing with ``broker/ledger``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pymerkle
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker.errors import IntegrityFailure
from broker.ledger.entry import TYPES, cut_name, evidence_commitment, parse_entry
from broker.ledger.members import COMMON, MEMBERS
from broker.ledger.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from broker.ledger.note import TreeHead, Verifier, open_head, sign_head
from broker.ledger.receipt import build_receipt, parse_receipt, verify_receipt
from tests.unit.ledger.samples import StoredLog

DOCS = Path(__file__).parents[2] / "docs" / "formats"


def load(name: str) -> Any:
    return json.loads((DOCS / "vectors" / name).read_text(encoding="utf-8"))


ENTRY, HEAD, RECEIPT = load("entry.json"), load("tree-head.json"), load("receipt.json")
LEAVES = [bytes.fromhex(leaf) for leaf in HEAD["leaves"]]


def plain_tree(size: int) -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for leaf in LEAVES[:size]:
        tree.append_entry(leaf)
    return tree


def plain_public_key(vkey: str) -> Ed25519PublicKey:
    encoded = base64.b64decode(vkey.split("+", 2)[2])
    assert encoded[0] == 1
    return Ed25519PublicKey.from_public_bytes(encoded[1:])


def plain_open(note: str, vkey: str) -> list[str]:
    text, _, line = note.rpartition("\n\n")
    blob = base64.b64decode(line.split(" ")[2])
    key_id = hashlib.sha256(vkey.split("+")[0].encode() + b"\n" + base64.b64decode(vkey.split("+", 2)[2]))
    assert blob[:4] == key_id.digest()[:4] == bytes.fromhex(vkey.split("+")[1])
    plain_public_key(vkey).verify(blob[4:], (text + "\n").encode())
    return text.split("\n")


# -- entries --------------------------------------------------------------------------------------------


def test_there_is_a_vector_for_every_type():
    assert {json.loads(case["text"])["type"] for case in ENTRY["entries"]} == set(TYPES)


@pytest.mark.parametrize("case", ENTRY["entries"], ids=lambda case: json.loads(case["text"])["type"])
def test_entry_vector(case):
    data = case["text"].encode()
    assert parse_entry(data) == json.loads(data)
    assert leaf_hash(data).hex() == case["leaf_hash"]
    assert rfc8785.dumps(json.loads(data)) == data
    assert hashlib.sha256(b"\x00" + data).hexdigest() == case["leaf_hash"]


@pytest.mark.parametrize("case", ENTRY["refused"], ids=lambda case: case["why"])
def test_refused_entry_vector(case):
    with pytest.raises(IntegrityFailure):
        parse_entry(case["text"].encode())


def test_commitment_and_name_vectors():
    case = ENTRY["evidence"]
    salt, evidence = bytes.fromhex(case["salt"]), case["evidence"].encode()
    assert evidence_commitment(salt, evidence) == case["commitment"]
    assert case["commitment"] == "sha256:" + hashlib.sha256(salt + evidence).hexdigest()
    for name in ENTRY["names"]:
        assert cut_name(name["name"]) == name["cut"]


def test_the_page_lists_every_type_and_member():
    page = (DOCS / "entry.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        cells = [re.findall(r"`([a-z_-]+)`", cell) for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            rows.update(dict.fromkeys(cells[0], (cells[1], cells[2])))
    assert set(rows) - {"type"} == set(TYPES)
    for type, rule in TYPES.items():
        must, may = rows[type]
        if type not in ("grant", "lease"):
            assert rule.required <= set(must)
        assert set(rule.optional) == set(may) & set(MEMBERS) - COMMON, type
    for member in MEMBERS:
        assert f"`{member}`" in page, member
    assert TYPES["grant"].required == TYPES["lease"].required == COMMON - {"purpose"}


# -- tree heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HEAD["heads"], ids=lambda case: str(case["size"]))
def test_head_vector(case):
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(HEAD["private_key"]))
    verifier = Verifier(name=HEAD["origin"], public=key.public_key().public_bytes_raw())
    head = TreeHead(origin=HEAD["origin"], size=case["size"], root=bytes.fromhex(case["root"]))
    assert verifier.vkey == HEAD["vkey"]
    assert sign_head(head, verifier, key.sign) == case["note"]
    assert open_head(case["note"], HEAD["vkey"]) == head
    frontier = Frontier.from_bytes(bytes.fromhex(case["frontier"]))
    assert (frontier.size, frontier.root()) == (head.size, head.root)

    origin, size, root = plain_open(case["note"], HEAD["vkey"])
    assert (origin, int(size), base64.b64decode(root)) == (HEAD["origin"], case["size"], head.root)
    expected = plain_tree(case["size"]).get_root() if case["size"] else hashlib.sha256().digest()
    assert head.root == expected


def test_proof_vectors():
    log = StoredLog(LEAVES)
    roots = {size: plain_tree(size).get_root() for size in range(1, 9)}
    roots[0] = hashlib.sha256().digest()
    for case in HEAD["inclusion"]:
        index, size, proof = case["index"], case["size"], [bytes.fromhex(value) for value in case["proof"]]
        assert inclusion_proof(index, size, log.read) == proof
        assert plain_tree(size).prove_inclusion(index + 1, size).path[1:] == proof
        verify_inclusion(log.leaves[index], index, size, proof, roots[size])
    for case in HEAD["consistency"]:
        old, size, proof = case["size1"], case["size2"], [bytes.fromhex(value) for value in case["proof"]]
        assert consistency_proof(old, size, log.read) == proof
        verify_consistency(old, size, proof, roots[old], roots[size])


# -- receipts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RECEIPT["receipts"], ids=lambda case: f"{case['index']} of {case['size']}")
def test_receipt_vector(case):
    verified = verify_receipt(case["text"], RECEIPT["vkey"])
    assert (verified.index, verified.head.size) == (case["index"], case["size"])
    assert verified.leaf_hash.hex() == case["leaf_hash"]
    parts = parse_receipt(case["text"])
    assert build_receipt(parts.entry_bytes, parts.index, parts.proof, parts.note) == case["text"]

    front, _, note = case["text"].partition("\n\n")
    magic, extra, index, *proof = front.split("\n")
    assert (magic, index) == ("c2sp.org/tlog-proof@v1", f"index {case['index']}")
    found = hashlib.sha256(b"\x00" + base64.b64decode(extra.split(" ")[1])).digest()
    assert found.hex() == case["leaf_hash"]
    start, stop, sides = 0, case["size"], []
    while stop - start > 1:  # from the root down to the leaf: on which side is the sibling?
        middle = start + (1 << ((stop - start - 1).bit_length() - 1))
        sides.append("right" if case["index"] < middle else "left")
        start, stop = (start, middle) if case["index"] < middle else (middle, stop)
    for side, line in zip(reversed(sides), proof, strict=True):
        sibling = base64.b64decode(line)
        pair = found + sibling if side == "right" else sibling + found
        found = hashlib.sha256(b"\x01" + pair).digest()
    assert base64.b64decode(plain_open(note, RECEIPT["vkey"])[2]) == found


@pytest.mark.parametrize("case", RECEIPT["refused"], ids=lambda case: case["why"])
def test_refused_receipt_vector(case):
    with pytest.raises(IntegrityFailure):
        verify_receipt(case["text"], RECEIPT["vkey"])
