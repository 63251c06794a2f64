"""What a store, a network or a disk can do to a download, and what is left of it (I09, I15, I18)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.client import folder as folder_module
from broker.client import transfer
from broker.client.sdk import Client
from broker.errors import (
    DiskFull,
    GrantRevoked,
    IntegrityFailure,
    Interrupted,
    StoreUnavailable,
    Unreachable,
    UsageError,
)
from tests.unit.client.conftest import MIB, Stack, make_tree, restored, tree

BIG = os.urandom(6 * MIB + 321)
FILES = {"big.bin": BIG, "small.txt": b"hello"}
REF = "acme/faults@v1"


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _published(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    publisher = shared_stack.add("first", roles=("publisher", "engineer"), groups=("acme",))
    publisher.publish(make_tree(tmp_path_factory.mktemp("src"), FILES), REF, extent_size=MIB)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.001)


def partials(out: Path) -> list[str]:
    return sorted(p.name for p in (out / ".broker/partial").glob("*"))


@pytest.mark.parametrize("fault", ["cut", "cut-head", "503", "500", "junk", "429"])
def test_passing_trouble_is_retried(stack: Stack, reader: Client, tmp_path: Path, fault: str) -> None:
    stack.store.faults.extend([fault] * 3)
    reader.fetch(REF, tmp_path / "out", jobs=2)
    assert tree(tmp_path / "out") == FILES


def test_stray_bytes_after_an_answer_never_become_data(stack: Stack, reader: Client, tmp_path: Path) -> None:
    stack.store.faults.extend(["extra"] * 4)
    reader.fetch(REF, tmp_path / "out", jobs=1)
    assert tree(tmp_path / "out") == FILES


@pytest.mark.parametrize(
    "fault", ["wrong-range", "short-range", "whole", "416", "chunked", "two-lengths", "endless-head"]
)
def test_another_answer_than_was_asked_for_is_refused(
    stack: Stack, reader: Client, tmp_path: Path, fault: str
) -> None:
    stack.store.faults.extend([fault] * 50)
    with pytest.raises(IntegrityFailure):
        reader.fetch(REF, tmp_path / "out", jobs=1)
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize("fault", ["301", "307", "404", "400"])
def test_redirects_and_refusals_end_it(stack: Stack, reader: Client, tmp_path: Path, fault: str) -> None:
    stack.store.faults.extend([fault] * 50)
    with pytest.raises(StoreUnavailable):
        reader.fetch(REF, tmp_path / "out", jobs=1)
    assert tree(tmp_path / "out") == {}


def test_a_store_that_stays_away_is_unreachable_and_resumable(
    stack: Stack, reader: Client, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    served = threading.Semaphore(3)

    def fail_after_three(name: str) -> None:
        if not served.acquire(blocking=False):
            stack.store.faults.append("503")

    stack.store.on_get = fail_after_three
    with pytest.raises(Unreachable):
        reader.fetch(REF, out, jobs=1)
    stack.store.on_get = None
    stack.store.faults.clear()
    assert "big.bin" not in tree(out)
    found = reader.fetch(REF, out)
    assert 0 < found.fetched_bytes < found.bytes
    assert tree(out) == FILES
    assert partials(out) == []


def test_a_resumed_run_believes_no_state_file(stack: Stack, reader: Client, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stack.store.on_get = _interrupt_after(4)
    with pytest.raises(Interrupted):
        reader.fetch(REF, out, jobs=1)
    stack.store.on_get = None
    [partial] = partials(out)
    with (out / ".broker/partial" / partial).open("r+b") as file:
        file.seek(10)
        file.write(b"tampered")
    # A state that claims everything is only a hint as well.
    with (out / ".broker/state").open("a") as state:
        state.write("".join(f"0 {index}\n" for index in range(20)) + "7 7\njunk\n0")
    reader.fetch(REF, out)
    assert tree(out) == FILES


def _interrupt_after(count: int) -> Callable[[str], None]:
    left = [count]

    def on_get(name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            import _thread

            _thread.interrupt_main()

    return on_get


def test_ctrl_c_leaves_a_resumable_state(stack: Stack, reader: Client, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stack.store.on_get = _interrupt_after(3)
    with pytest.raises(Interrupted):
        reader.fetch(REF, out, jobs=1)
    stack.store.on_get = None
    found = reader.fetch(REF, out)
    assert found.fetched_bytes < found.bytes
    assert tree(out) == FILES


@pytest.mark.parametrize("place", [0, 5, 41, 500_000, -1])
def test_a_tampered_object_leaves_nothing(stack: Stack, reader: Client, tmp_path: Path, place: int) -> None:
    out = tmp_path / "out"
    name = max(stack.store.objects, key=lambda n: len(stack.store.objects[n]))
    data = bytearray(stack.store.objects[name])
    data[place] ^= 1
    stack.store.objects[name] = bytes(data)
    with pytest.raises(IntegrityFailure, match=r"big\.bin is not what its publisher signed"):
        reader.fetch(REF, out, jobs=3)
    assert "big.bin" not in tree(out)
    assert partials(out) in ([], ["000001"])


def test_swapped_extents_and_files_are_refused(stack: Stack, reader: Client, tmp_path: Path) -> None:
    name = max(stack.store.objects, key=lambda n: len(stack.store.objects[n]))
    data, size = stack.store.objects[name], MIB + 40 + 2 * 16
    stack.store.objects[name] = data[size : 2 * size] + data[:size] + data[2 * size :]
    with pytest.raises(IntegrityFailure):
        reader.fetch(REF, tmp_path / "out")


def test_a_truncated_object_is_refused(stack: Stack, reader: Client, tmp_path: Path) -> None:
    name = max(stack.store.objects, key=lambda n: len(stack.store.objects[n]))
    stack.store.objects[name] = stack.store.objects[name][:-1]
    with pytest.raises(IntegrityFailure):
        reader.fetch(REF, tmp_path / "out")
    assert "big.bin" not in tree(tmp_path / "out")


def test_expired_urls_are_leased_again(stack: Stack, reader: Client, tmp_path: Path) -> None:
    stack.store.faults.extend(["403", "403"])
    found = reader.fetch(REF, tmp_path / "out", jobs=1)
    assert tree(tmp_path / "out") == FILES
    assert found.leases > 1


def test_urls_that_never_work_end_it(stack: Stack, reader: Client, tmp_path: Path) -> None:
    stack.store.faults.extend(["403"] * 200)
    with pytest.raises(StoreUnavailable, match="refuses every URL"):
        reader.fetch(REF, tmp_path / "out", jobs=2)


def test_revoking_the_grant_stops_it_in_the_middle(stack: Stack, reader: Client, tmp_path: Path) -> None:
    stack.apply(lease_window=MIB)
    admin = stack.client(stack.world.admin, "admin")
    done = threading.Event()

    def revoke(name: str) -> None:
        if not done.is_set():
            done.set()
            row = [row for row in _entries(stack) if row["type"] == "grant"][-1]
            admin.admin.revoke("grant", row["grant"])

    stack.store.on_get = revoke
    with pytest.raises(GrantRevoked):
        reader.fetch(REF, tmp_path / "out", jobs=1)
    assert "big.bin" not in tree(tmp_path / "out")


def _entries(stack: Stack) -> list[dict[str, Any]]:
    return [stack.world.entry(index) for index in range(stack.world.size())]


def test_only_listed_stores_are_contacted(stack: Stack, reader: Client, tmp_path: Path) -> None:
    stack.store.host = f"localhost:{stack.store.server.server_address[1]}"
    with pytest.raises(IntegrityFailure, match="does not list"):
        reader.fetch(REF, tmp_path / "out")
    assert stack.store.gets == []


def test_a_full_disk_keeps_what_is_done(
    stack: Stack, reader: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int, offset: int, size: int) -> None:
        if size > MIB:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_module.os, "posix_fallocate", no_room)
    with pytest.raises(DiskFull):
        reader.fetch(REF, tmp_path / "out", jobs=1)
    monkeypatch.undo()
    reader.fetch(REF, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


def test_nothing_is_written_through_symlinks(reader: Client, publisher: Client, tmp_path: Path) -> None:
    publisher.publish(make_tree(tmp_path / "s2", {"sub/f": b"data"}), "acme/nested@v1")
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").symlink_to(outside)
    for force in (False, True):
        with pytest.raises(UsageError, match="symlink"):
            reader.fetch("acme/nested@v1", out, force=force)
    assert list(outside.iterdir()) == []
    (out / "sub").unlink()
    (out / "sub").mkdir()
    (out / "sub/f").symlink_to(outside / "target")
    with pytest.raises(UsageError):
        reader.fetch("acme/nested@v1", out)
    reader.fetch("acme/nested@v1", out, force=True)
    assert not (outside / "target").exists()
    assert (out / "sub/f").read_bytes() == b"data"
    assert not (out / "sub/f").is_symlink()


def test_state_behind_a_symlink_is_refused(reader: Client, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (out / ".broker").symlink_to(outside)
    with pytest.raises(UsageError):
        reader.fetch(REF, out)
    assert list(outside.iterdir()) == []


def test_two_downloads_into_one_folder(stack: Stack, reader: Client, tmp_path: Path) -> None:
    seen: list[BaseException] = []

    def second(name: str) -> None:
        stack.store.on_get = None
        try:
            reader.fetch(REF, tmp_path / "out")
        except UsageError as exc:
            seen.append(exc)

    stack.store.on_get = second
    reader.fetch(REF, tmp_path / "out", jobs=1)
    assert len(seen) == 1
    assert tree(tmp_path / "out") == FILES
