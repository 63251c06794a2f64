"""What the client believes of the log: forks, rollbacks, false receipts (I18)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.canonical import b64url
from broker.client.trust import LogMemory, check_entry
from broker.errors import Denied, IntegrityFailure, RollbackDetected, Unreachable
from broker.ledger import entry, merkle, note, receipt

ORIGIN = "test.example/log"


class Log:
    """A log that signs what it likes: the server that a client has to defend itself against."""

    def __init__(self, names: Sequence[str], key: Ed25519PrivateKey | None = None) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.verifier = note.Verifier(name=ORIGIN, public=self.key.public_key().public_bytes_raw())
        self.entries = [
            entry.build_entry(
                salt=bytes(16), time=0, type="group", group=name, parents=[], principal="user:ana"
            )
            for name in names
        ]
        self.leaves = [merkle.leaf_hash(data) for data in self.entries]

    def read(self, level: int, start: int, stop: int) -> list[bytes]:
        assert level == 0
        return self.leaves[start:stop]

    def head(self, size: int) -> str:
        root = merkle.root_of(self.leaves[:size])
        return note.sign_head(
            note.TreeHead(origin=ORIGIN, size=size, root=root), self.verifier, self.key.sign
        )

    def receipt(self, index: int, size: int) -> str:
        proof = merkle.inclusion_proof(index, size, self.read)
        return receipt.build_receipt(self.entries[index], index, proof, self.head(size))

    def proof(self, older: int, newer: int) -> list[str]:
        return [b64url(node) for node in merkle.consistency_proof(older, newer, self.read)]


@pytest.fixture
def log() -> Log:
    return Log([f"g{i}" for i in range(12)])


def memory(folder: Path, log: Log, find_proof: Any = None) -> LogMemory:
    return LogMemory(folder, vkey=log.verifier.vkey, find_proof=find_proof or log.proof)


def test_a_head_moves_forward_and_never_back(tmp_path: Path, log: Log) -> None:
    seen = memory(tmp_path, log)
    assert seen.have() is None
    assert seen.accept(log.receipt(2, 5)).index == 2
    assert seen.have() == log.head(5)
    seen.accept(log.receipt(6, 8), have=log.head(5), consistency=log.proof(5, 8))
    assert seen.have() == log.head(8)
    # Somebody else moved it meanwhile: an older head that is consistent is fine and changes nothing.
    seen.accept(log.receipt(5, 6), have=log.head(5), consistency=log.proof(5, 6))
    assert seen.have() == log.head(8)
    assert memory(tmp_path, log).have() == log.head(8)


def test_a_fork_is_found_and_the_head_kept(tmp_path: Path, log: Log) -> None:
    seen = memory(tmp_path, log)
    seen.accept(log.receipt(2, 8))
    fork = Log([f"g{i}" for i in range(6)] + ["x", "y", "z", "a", "b", "c"], log.key)
    for size in (6, 8, 10):
        with pytest.raises(RollbackDetected, match="does not extend"):
            seen.accept(fork.receipt(2, size), have=log.head(8), consistency=fork.proof(min(8, size), size))
        if size > 6:
            with pytest.raises(RollbackDetected):
                memory(tmp_path, log, fork.proof).accept(fork.receipt(2, size))
    assert seen.have() == log.head(8)


def test_a_rollback_is_found(tmp_path: Path, log: Log) -> None:
    seen = memory(tmp_path, log)
    seen.accept(log.receipt(2, 8))
    with pytest.raises(RollbackDetected):
        seen.accept(log.receipt(2, 7), have=log.head(8), consistency=[])


@pytest.mark.parametrize(
    "consistency", [[], ["x"], None, "text", ["A" * 43] * 3, ["A" * 43] * 500, [1, 2]], ids=range(7)
)
def test_a_wrong_consistency_proof_is_refused(tmp_path: Path, log: Log, consistency: Any) -> None:
    seen = memory(tmp_path, log)
    seen.accept(log.receipt(2, 5))
    with pytest.raises(RollbackDetected):
        seen.accept(log.receipt(6, 8), have=log.head(5), consistency=consistency)
    assert seen.have() == log.head(5)


def test_an_unlinked_head_needs_its_own_proof(tmp_path: Path, log: Log) -> None:
    memory(tmp_path, log).accept(log.receipt(2, 5))

    def refuse(older: int, newer: int) -> list[str]:
        raise Denied("no")

    def away(older: int, newer: int) -> list[str]:
        raise Unreachable("away")

    with pytest.raises(IntegrityFailure, match="does not show"):
        memory(tmp_path, log, refuse).accept(log.receipt(2, 8))
    with pytest.raises(Unreachable):
        memory(tmp_path, log, away).accept(log.receipt(2, 8))
    assert memory(tmp_path, log).have() == log.head(5)
    memory(tmp_path, log).accept(log.receipt(2, 8))
    assert memory(tmp_path, log).have() == log.head(8)


def test_another_logs_receipt_is_refused(tmp_path: Path, log: Log) -> None:
    other = Log(["a", "b"])
    with pytest.raises(IntegrityFailure):
        memory(tmp_path, log).accept(other.receipt(0, 2))
    for text in (None, 7, "", "c2sp.org/tlog-proof@v1\n"):
        with pytest.raises(IntegrityFailure):
            memory(tmp_path, log).accept(text)
    assert memory(tmp_path, log).have() is None


def test_a_damaged_treehead_is_not_forgotten_silently(tmp_path: Path, log: Log) -> None:
    seen = memory(tmp_path, log)
    seen.accept(log.receipt(2, 5))
    (tmp_path / "treehead").write_text("something else\n")
    with pytest.raises(IntegrityFailure, match="not a tree head"):
        seen.have()
    assert (tmp_path / "treehead").read_text() == "something else\n"


def test_in_memory_it_is_as_strict_and_writes_nothing(tmp_path: Path, log: Log) -> None:
    seen = LogMemory(None, vkey=log.verifier.vkey, find_proof=log.proof)
    assert seen.have() is None
    seen.accept(log.receipt(2, 5))
    seen.accept(log.receipt(6, 8), have=log.head(5), consistency=log.proof(5, 8))
    assert seen.have() == log.head(8)
    fork = Log([f"g{i}" for i in range(6)] + ["x", "y", "z", "a", "b", "c"], log.key)
    with pytest.raises(RollbackDetected) as caught:
        seen.accept(fork.receipt(2, 10), have=log.head(8), consistency=fork.proof(8, 10))
    assert log.head(8).strip() in str(caught.value.next), "the evidence is told, as no file has it"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "folder"])
def test_a_seed_counts_as_seen_until_something_newer_is(tmp_path: Path, log: Log, kept: bool) -> None:
    (tmp_path / "..data").write_text(log.head(5))
    (tmp_path / "seed").symlink_to("..data")
    (tmp_path / "kept").mkdir()

    def fresh(by: Log = log) -> LogMemory:
        folder = tmp_path / "kept" if kept else None
        return LogMemory(folder, vkey=log.verifier.vkey, find_proof=by.proof, seed=tmp_path / "seed")

    assert fresh().have() == log.head(5)
    fork = Log(["x"] + [f"g{i}" for i in range(1, 12)], log.key)
    with pytest.raises(RollbackDetected):
        fresh(fork).accept(fork.receipt(2, 8))
    seen = fresh()
    seen.accept(log.receipt(6, 8), have=log.head(5), consistency=log.proof(5, 8))
    assert seen.have() == log.head(8)
    assert fresh().have() == log.head(8 if kept else 5)
    (tmp_path / "..data").write_text("something else\n")
    if not kept:
        with pytest.raises(IntegrityFailure, match="not a tree head"):
            fresh().have()


def test_entries_are_compared_exactly() -> None:
    found = {"type": "grant", "lease": 0, "principal": "user:ana"}
    check_entry(found, {"type": "grant", "lease": 0, "purpose": None})
    for expected in (
        {"type": "lease"},
        {"lease": False},
        {"lease": "0"},
        {"purpose": "x"},
        {"principal": None},
        {"principal": "user:anä"},
    ):
        with pytest.raises(IntegrityFailure) as caught:
            check_entry(found, expected)
        assert f"member {next(iter(expected))} " in str(caught.value.why)
