"""A log in a folder: written only if it is what was signed, and refused however well it was forged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from broker.client.static_log import CHECKPOINT, LogWriter, open_folder, verify_static_log
from broker.errors import IntegrityFailure, UsageError
from broker.ledger import merkle
from broker.ledger.note import TreeHead, sign_head
from tests.unit.ledger.samples import KEY, ORIGIN, OTHER_VERIFIER, VERIFIER

ENTRIES = [b"entry %d" % index for index in range(300)]


def signed(entries: list[bytes]) -> tuple[str, TreeHead]:
    root = merkle.root_of(merkle.leaf_hash(entry) for entry in entries)
    head = TreeHead(origin=ORIGIN, size=len(entries), root=root)
    return sign_head(head, VERIFIER, KEY.sign), head


def write(folder: Path, entries: list[bytes], *, of: list[bytes] | None = None) -> Path:
    """A folder of these entries, under the head of ``of``."""
    open_folder(folder)
    writer = LogWriter(folder)
    for at in range(0, len(entries), 77):
        writer.add(entries[at : at + 77])
    writer.finish(*signed(entries if of is None else of))
    return folder


@pytest.mark.parametrize("size", [0, 1, 256, 300])
def test_a_log_is_written_and_verified(tmp_path: Path, size: int) -> None:
    folder = write(tmp_path / "log", ENTRIES[:size])
    seen: list[tuple[int, bytes]] = []
    found = verify_static_log(
        folder,
        VERIFIER.vkey,
        on_entries=(lambda start, entries: seen.extend(enumerate(entries, start))) if size else None,
    )
    assert found.head == signed(ENTRIES[:size])[1]
    assert seen == list(enumerate(ENTRIES[:size]))


def test_a_forged_log_that_agrees_with_itself_is_refused(tmp_path: Path) -> None:
    # Every tile follows from the entries: only the signed root says that these are not the entries.
    forged = [*ENTRIES[:7], b"another", *ENTRIES[8:]]
    folder = write(tmp_path / "forged", forged)
    shutil.copy(write(tmp_path / "log", ENTRIES) / CHECKPOINT, folder / CHECKPOINT)
    with pytest.raises(IntegrityFailure, match="root"):
        verify_static_log(folder, VERIFIER.vkey)
    shutil.rmtree(folder / "tile" / "entries")
    with pytest.raises(IntegrityFailure, match="root"):
        verify_static_log(folder, VERIFIER.vkey)


def test_hashes_alone_are_a_log_whose_entries_nobody_sees(tmp_path: Path) -> None:
    folder = write(tmp_path / "log", ENTRIES)
    shutil.rmtree(folder / "tile" / "entries")
    assert verify_static_log(folder, VERIFIER.vkey).entries is False
    with pytest.raises(IntegrityFailure, match="no entries"):
        verify_static_log(folder, VERIFIER.vkey, on_entries=lambda start, entries: None)


@pytest.mark.parametrize("entries", [ENTRIES[:-1], [*ENTRIES, b"more"], [b"x", *ENTRIES[1:]]])
def test_what_was_not_signed_gets_no_checkpoint(tmp_path: Path, entries: list[bytes]) -> None:
    with pytest.raises(IntegrityFailure):
        write(tmp_path / "log", entries, of=ENTRIES)
    with pytest.raises(UsageError):
        verify_static_log(tmp_path / "log", VERIFIER.vkey)


def test_a_log_of_another_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityFailure):
        verify_static_log(write(tmp_path / "log", ENTRIES), OTHER_VERIFIER.vkey)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError):
        open_folder(tmp_path)
    with pytest.raises(UsageError):
        open_folder(tmp_path / "file")
