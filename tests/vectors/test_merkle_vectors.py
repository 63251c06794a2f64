"""Merkle hashes and proofs against sources that are not ours.

Sources: the test tree of Certificate Transparency (RFC 6962 test data of its reference
implementation); inclusion and consistency proofs, good and hostile, of transparency-dev/merkle
(read from outside the repository); and pymerkle, an independent implementation.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pymerkle
import pytest

from broker.errors import IntegrityFailure
from broker.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tests.unit.ledger.samples import StoredLog

VECTORS = Path(os.environ.get("BROKER_VECTORS") or Path(__file__).parents[3] / "shared" / "vectors")
TESTDATA = VECTORS / "merkle" / "testdata"
INCLUSION = sorted(TESTDATA.glob("inclusion/**/*.json"))
CONSISTENCY = sorted(TESTDATA.glob("consistency/**/*.json"))

outside = pytest.mark.skipif(
    not TESTDATA.is_dir(),
    reason="the proofs of transparency-dev/merkle are not here: set BROKER_VECTORS to their folder",
)

C2SP_ACCEPTS = {"additional/size1-is-zero-and-size2-is-not-zero.json"}
"""Where we follow C2SP witnesses and that project does not: the empty proof from the empty tree."""

CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def unpack(value: str | None) -> bytes:
    return base64.b64decode(value or "")


def test_roots_of_the_certificate_transparency_tree():
    leaves = [leaf_hash(entry) for entry in CT_LEAVES]
    for size, root in enumerate(CT_ROOTS):
        assert root_of(leaves[:size]).hex() == root
        assert Frontier().extend(leaves[:size])[0].root().hex() == root


def test_proofs_of_the_certificate_transparency_tree():
    log = StoredLog(CT_LEAVES)
    expected = {
        (0, 8): ["96a296d2", "5f083f0a", "6b47aaf2"],
        (5, 8): ["bc1a0643", "ca854ea1", "d37ee418"],
        (2, 3): ["fac54203"],
        (1, 5): ["6e340b9c", "5f083f0a", "bc1a0643"],
    }
    for (index, size), hashes in expected.items():
        assert [value.hex()[:8] for value in inclusion_proof(index, size, log.read)] == hashes
    expected = {
        (1, 8): ["96a296d2", "5f083f0a", "6b47aaf2"],
        (6, 8): ["0ebc5d34", "ca854ea1", "d37ee418"],
        (2, 5): ["5f083f0a", "bc1a0643"],
    }
    for (old, size), hashes in expected.items():
        assert [value.hex()[:8] for value in consistency_proof(old, size, log.read)] == hashes


@outside
def test_the_outside_vectors_are_all_there():
    assert (len(INCLUSION), len(CONSISTENCY)) == (98, 98)


@outside
@pytest.mark.parametrize("file", INCLUSION, ids=lambda file: str(file.relative_to(TESTDATA)))
def test_outside_inclusion_proof(file):
    case = json.loads(file.read_text())
    proof = [unpack(value) for value in case["proof"] or []]
    given = (unpack(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, unpack(case["root"]))
    if case["wantErr"]:
        with pytest.raises(IntegrityFailure):
            verify_inclusion(*given)
    else:
        verify_inclusion(*given)


@outside
@pytest.mark.parametrize("file", CONSISTENCY, ids=lambda file: str(file.relative_to(TESTDATA)))
def test_outside_consistency_proof(file):
    case = json.loads(file.read_text())
    proof = [unpack(value) for value in case["proof"] or []]
    given = (case["size1"], case["size2"], proof, unpack(case["root1"]), unpack(case["root2"]))
    if str(file.relative_to(TESTDATA / "consistency")) in C2SP_ACCEPTS:
        assert case["wantErr"]
        assert (given[0], proof, given[3]) == (0, [], EMPTY_ROOT)
        verify_consistency(*given)
    elif case["wantErr"]:
        with pytest.raises(IntegrityFailure):
            verify_consistency(*given)
    else:
        verify_consistency(*given)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 255, 256, 257, 300])
def test_pymerkle_computes_the_same_roots_and_proofs(size):
    entries = [f"entry {at}".encode() for at in range(300)]
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in entries:
        tree.append_entry(entry)
    log = StoredLog(entries)
    root = tree.get_root(size)
    assert root == root_of(log.leaves[:size])
    for index in range(0, size, 13):
        # pymerkle counts leaves from one and begins the path with the leaf itself.
        theirs = tree.prove_inclusion(index + 1, size).path
        assert theirs == [log.leaves[index], *inclusion_proof(index, size, log.read)]
        verify_inclusion(theirs[0], index, size, theirs[1:], root)
    for old in range(1, size, 13):
        ours = consistency_proof(old, size, log.read)
        verify_consistency(old, size, ours, tree.get_root(old), root)
