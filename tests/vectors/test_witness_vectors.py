"""docs/formats/vectors/witness.json, which was made without this project's code."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import IntegrityFailure
from broker.ledger import cosign, note, quorum
from broker.ledger.entry import build_entry
from broker.ledger.merkle import leaf_hash
from broker.ledger.receipt import build_receipt, verify_receipt
from broker.runtime import SystemClock
from broker.witness.keys import read_key
from broker.witness.service import WitnessService
from broker.witness.state import WitnessState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats" / "vectors" / "witness.json"
VECTORS: dict[str, Any] = json.loads(PAGE.read_text())
KEYS = {name: cosign.parse_cosigner(item["vkey"]) for name, item in VECTORS["witnesses"].items()}
TIME = 1_767_225_600


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(VECTORS["key_file"])
    path.chmod(0o600)
    return path


def test_a_cosignature_is_made_as_it_is_written_there(key_file: Path) -> None:
    own = read_key(key_file)
    text = note.open_note(VECTORS["head"], [VECTORS["log"]["vkey"]])
    assert own.public == KEYS["a"]
    assert cosign.signed_message(text, TIME).decode() == VECTORS["message"]
    assert cosign.cosign(text, own.public, own.private.sign, TIME) == VECTORS["lines"]["a"]


def test_the_cosigned_head_has_all_of_them() -> None:
    assert cosign.merge(VECTORS["head"], list(VECTORS["lines"].values())) == VECTORS["cosigned"]
    found = cosign.cosignatures(VECTORS["cosigned"], KEYS.values())
    assert found == {key.vkey: TIME for key in KEYS.values()}


def test_requests_and_answers_have_that_form(key_file: Path, tmp_path: Path) -> None:
    asked = cosign.parse_request(VECTORS["request"].encode())
    assert cosign.build_request(3, asked.proof, VECTORS["head"]).decode() == VECTORS["request"]
    assert cosign.parse_response(VECTORS["answer"].encode()) == (VECTORS["lines"]["a"],)
    witness = WitnessService(
        key=read_key(key_file),
        logs=[note.parse_vkey(VECTORS["log"]["vkey"])],
        state=WitnessState(tmp_path / "state"),
        clock=SystemClock(),
    )
    assert witness.add_checkpoint(VECTORS["requests_from_nothing"].encode()).status == 200
    assert witness.add_checkpoint(VECTORS["request"].encode()).status == 200


def test_the_policy_is_satisfied_by_those_sets_and_no_others() -> None:
    policy = quorum.parse_policy(VECTORS["policy"])
    for count in range(len(KEYS) + 1):
        for names in itertools.combinations(sorted(KEYS), count):
            merged = cosign.merge(VECTORS["head"], [VECTORS["lines"][name] for name in names])
            if list(names) in VECTORS["satisfied_by"]:
                assert policy.check(merged).size == 7
            else:
                assert list(names) in VECTORS["not_satisfied_by"]
                with pytest.raises(IntegrityFailure):
                    policy.check(merged)


def test_a_receipt_holds_under_a_policy_only_with_its_quorum() -> None:
    vkey, policy = VECTORS["log"]["vkey"], quorum.parse_policy(VECTORS["policy"])
    data = build_entry(type="genesis", time=0, salt=bytes(16), origin="log.example/one", vkey=vkey)
    head = note.TreeHead(origin="log.example/one", size=1, root=leaf_hash(data))
    log = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"log").digest())
    signed = note.sign_head(head, note.parse_vkey(vkey), log.sign)
    witness = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"witness a").digest())
    other = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"witness b").digest())
    text = note.head_text(head)
    lines = [
        cosign.cosign(text, KEYS["a"], witness.sign, TIME),
        cosign.cosign(text, KEYS["b"], other.sign, TIME),
    ]
    for count, holds in ((0, False), (1, False), (2, True)):
        receipt = build_receipt(data, 0, [], cosign.merge(signed, lines[:count]))
        assert verify_receipt(receipt, vkey).index == 0
        if holds:
            assert verify_receipt(receipt, vkey, policy=policy).index == 0
        else:
            with pytest.raises(IntegrityFailure):
                verify_receipt(receipt, vkey, policy=policy)
