"""A log in a folder, verified by one process and by several: the same verdict, and the same first fault."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.client import verifying
from broker.client.static_log import LogWriter, verify_static_log
from broker.errors import IntegrityFailure
from broker.ledger import merkle, note

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
VERIFIER = note.Verifier(name="log.example/verified", public=KEY.public_key().public_bytes_raw())
ENTRIES = [b"entry %d " % at + hashlib.sha256(b"%d" % at).digest() for at in range(1400)]


def write(folder: Path, size: int) -> Path:
    folder.mkdir(parents=True)
    writer = LogWriter(folder)
    writer.add(ENTRIES[:size])
    root = merkle.root_of(map(merkle.leaf_hash, ENTRIES[:size]))
    head = note.TreeHead(origin=VERIFIER.name, size=size, root=root)
    writer.finish(note.sign_head(head, VERIFIER, KEY.sign), head)
    return folder


@pytest.fixture(params=["one", "many"])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(verifying, "MANY", 0 if request.param == "many" else 1 << 60)
    monkeypatch.setattr(verifying.os, "sched_getaffinity", lambda _: {0, 1, 2})
    return str(request.param)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512, 1023, 1280, 1400])
def test_whole_logs_of_every_length_hold(processes: str, tmp_path: Path, size: int) -> None:
    folder = write(tmp_path / "log", size)
    assert verify_static_log(folder, VERIFIER.vkey).head.size == size
    shutil.rmtree(folder / "tile" / "entries", ignore_errors=True)
    assert verify_static_log(folder, VERIFIER.vkey).entries is False


def test_a_changed_byte_is_found_and_named(processes: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "log", len(ENTRIES))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) >= 13
    for path in files:
        good = path.read_bytes()
        path.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
        with pytest.raises(IntegrityFailure) as one:
            verify_static_log(folder, VERIFIER.vkey)
        # Told entry by entry it is the same verdict.
        with pytest.raises(IntegrityFailure):
            verify_static_log(folder, VERIFIER.vkey, on_entries=lambda *_: None)
        if path.name != "checkpoint":
            number = path.relative_to(folder / "tile").parts[1].removesuffix(".p")
            assert number in one.value.what or "root" in one.value.what
        path.unlink()
        with pytest.raises(IntegrityFailure if path.name != "checkpoint" else Exception):
            verify_static_log(folder, VERIFIER.vkey)
        path.write_bytes(good)
    verify_static_log(folder, VERIFIER.vkey)


def test_the_first_of_several_faults_is_the_one_that_is_named(processes: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "log", len(ENTRIES))
    for name in ("004", "001", "003"):
        (folder / "tile" / "0" / name).write_bytes(bytes(8192))
    with pytest.raises(IntegrityFailure, match="tile/0/001"):
        verify_static_log(folder, VERIFIER.vkey)


def test_a_process_that_dies_says_nothing_of_the_log(
    processes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "log", len(ENTRIES))
    monkeypatch.setattr(verifying.sys, "executable", "/bin/false")
    assert verify_static_log(folder, VERIFIER.vkey).head.size == len(ENTRIES)
    (folder / "tile" / "entries" / "002").write_bytes(b"\0\0" * 256)
    with pytest.raises(IntegrityFailure, match="tile/0/002"):
        verify_static_log(folder, VERIFIER.vkey)
