"""What can go wrong while publishing: files that move, stores that fail, runs that are cut off."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.client import sending
from broker.client.sdk import Client
from broker.client.uploads import UploadJournal
from broker.errors import Conflict, InvalidRequest, StoreUnavailable, Unreachable, UsageError
from tests.unit.client.conftest import MIB, Stack, make_tree, restored, tree

BIG = os.urandom(17 * MIB + 5)
FILES = {"big.bin": BIG, "a.txt": b"alpha", "list.bin": os.urandom(2 * MIB)}
ARTIFACT = "acme/puts"


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture
def ref() -> str:
    """A version of the test's own."""
    return f"{ARTIFACT}@v{next(_NUMBER)}"


_NUMBER = itertools.count()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "FIRST_PAUSE", 0.001)


def check(reader: Client, ref: str, out: Path, files: dict[str, bytes] = FILES) -> None:
    reader.fetch(ref, out)
    assert tree(out) == files


@pytest.mark.parametrize("fault", ["503", "403", "lost-answer"])
def test_passing_trouble_is_retried(
    stack: Stack, publisher: Client, reader: Client, ref: str, tmp_path: Path, fault: str
) -> None:
    stack.store.faults.extend([fault] * 3)
    publisher.publish(make_tree(tmp_path / "src", FILES), ref, extent_size=MIB)
    check(reader, ref, tmp_path / "out")


def test_a_run_that_was_cut_off_resumes(
    stack: Stack, publisher: Client, reader: Client, ref: str, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "src", FILES)
    _fail_after(stack, 3)
    with pytest.raises(Unreachable):
        publisher.publish(source, ref, extent_size=MIB, jobs=1)
    stack.store.faults.clear()
    sent = list(stack.store.puts)
    publisher.publish(source, ref, extent_size=MIB)
    assert len(stack.store.puts) < 2 * len(sent) + 5
    check(reader, ref, tmp_path / "out")
    assert list((publisher.profile.folder / "uploads").iterdir()) == []


def _fail_after(stack: Stack, count: int) -> None:
    class Faults:
        left = count

        def __bool__(self) -> bool:
            self.left -= 1
            return self.left < 0

        def popleft(self) -> str:
            return "503"

        def clear(self) -> None:
            self.left = 10**9

        def extend(self, faults: Any) -> None:
            del faults

    stack.store.faults = Faults()  # type: ignore[assignment]


def test_content_that_changed_between_runs_is_sent_anew(
    stack: Stack, publisher: Client, reader: Client, ref: str, tmp_path: Path
) -> None:
    """The store holds parts of the old content; they must not end up in the version (I20)."""
    source = make_tree(tmp_path / "src", FILES)
    _fail_after(stack, 4)
    with pytest.raises(Unreachable):
        publisher.publish(source, ref, extent_size=MIB, jobs=1)
    stack.store.faults.clear()
    changed = {path: bytes(len(data)) for path, data in FILES.items()}
    make_tree(source, changed)
    publisher.publish(source, ref, extent_size=MIB)
    check(reader, ref, tmp_path / "out", changed)


def test_a_lost_journal_means_a_new_upload(
    stack: Stack, publisher: Client, reader: Client, ref: str, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "src", FILES)
    _fail_after(stack, 4)
    with pytest.raises(Unreachable):
        publisher.publish(source, ref, extent_size=MIB, jobs=1)
    stack.store.faults.clear()
    for path in (publisher.profile.folder / "uploads").iterdir():
        path.unlink()
    publisher.publish(source, ref, extent_size=MIB)
    check(reader, ref, tmp_path / "out")


def test_a_store_that_takes_nothing(stack: Stack, publisher: Client, ref: str, tmp_path: Path) -> None:
    stack.store.faults.extend(["403"] * 500)
    with pytest.raises(StoreUnavailable):
        publisher.publish(make_tree(tmp_path / "src", FILES), ref)


def test_a_file_that_changes_while_it_is_read(publisher: Client, ref: str, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "src", FILES)

    def touch(step: Any) -> None:
        (source / "big.bin").write_bytes(os.urandom(len(BIG)))

    with pytest.raises(Conflict, match="changed while it was read"):
        publisher.publish(source, ref, extent_size=MIB, jobs=1, on_progress=touch)


def test_bytes_that_change_without_a_trace_are_noticed(publisher: Client, ref: str, tmp_path: Path) -> None:
    """Same size, inode and time: only the comparison of the two passes can tell."""
    source = make_tree(tmp_path / "src", {"a.bin": bytes(9 * MIB), "b.bin": bytes(9 * MIB)})
    times = os.stat(source / "b.bin")
    done: list[str] = []

    def edit(step: Any) -> None:
        if not done:
            done.append(step.path)
            with (source / "b.bin").open("r+b") as file:
                file.seek(8 * MIB + 10)
                file.write(b"x")
            with (source / "a.bin").open("r+b") as file:
                file.seek(8 * MIB + 10)
                file.write(b"x")
            for name in ("a.bin", "b.bin"):
                os.utime(source / name, ns=(times.st_atime_ns, os.stat(source / name).st_mtime_ns))

    listed = publisher.profile
    assert listed is not None
    with pytest.raises(Conflict, match="changed"):
        publisher.publish(source, ref, extent_size=MIB, jobs=1, on_progress=edit)


@pytest.mark.parametrize(
    "make",
    [
        lambda root: (root / "link").symlink_to(root / "a.txt"),
        lambda root: (root / "loop").symlink_to(root),
        lambda root: os.mkfifo(root / "pipe"),
        lambda root: (root / "A.TXT").write_bytes(b""),
        lambda root: (root / "new\nline").write_bytes(b""),
        lambda root: (root / "back\\slash").write_bytes(b""),
    ],
    ids=["symlink", "folder-symlink", "fifo", "case", "newline", "backslash"],
)
def test_what_cannot_be_published(publisher: Client, ref: str, tmp_path: Path, make: Any) -> None:
    source = make_tree(tmp_path / "src", {"a.txt": b"a"})
    make(source)
    with pytest.raises((UsageError, InvalidRequest)):
        publisher.publish(source, ref)


@pytest.mark.parametrize("ref", ["acme/llama", "acme/llama@v1/path", "acme/llama@sha256:" + "0" * 64])
def test_a_publisher_names_a_version(publisher: Client, tmp_path: Path, ref: str) -> None:
    with pytest.raises((UsageError, InvalidRequest)):
        publisher.publish(make_tree(tmp_path / "src", {"a": b"a"}), ref)


def test_empty_and_missing_folders(publisher: Client, ref: str, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError):
            publisher.publish(path / "x" if path == tmp_path else path, ref)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file"):
        publisher.publish(tmp_path / "empty", ref)


def test_the_state_of_a_download_is_not_published(publisher: Client, reader: Client, tmp_path: Path) -> None:
    publisher.publish(make_tree(tmp_path / "src", {"a.txt": b"a"}), "acme/one@v1")
    reader.fetch("acme/one@v1", tmp_path / "out")
    made = publisher.publish(tmp_path / "out", "acme/two@v1")
    assert made.files == 1


def test_a_journal_says_only_what_must_hold(publisher: Client) -> None:
    a, b, place = b"a" * 32, b"b" * 32, (0, 1)
    journal = UploadJournal(publisher.profile, "u_x")
    assert not journal.holds(place, a)
    journal.begin(place, a)
    assert journal.holds(place, a), "whatever the store holds was made from a"
    journal.begin(place, b)
    assert not journal.holds(place, a), "it may be either"
    assert not journal.holds(place, b)
    journal.finish(place, b)
    assert journal.holds(place, b)
    journal.close(done=False)
    again = UploadJournal(publisher.profile, "u_x")
    assert again.holds(place, b)
    assert not again.holds(place, a)
    again.close(done=True)
    assert not (publisher.profile.folder / "uploads/u_x.jsonl").exists()
