"""``broker://`` through fsspec: folders out of manifests, verified bytes, and errors that callers know."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fsspec.callbacks import Callback

from broker.client import shared_library
from broker.client.fs import BrokerFileSystem
from broker.client.os_errors import (
    BrokerFileError,
    BrokerFileNotFound,
    BrokerFileRefused,
    BrokerFileUnreachable,
)
from broker.client.range_runs import Wanted, runs_of
from broker.client.sdk import Client
from broker.errors import ConfigurationError, Denied, IntegrityFailure, NotFound, Unavailable
from broker.names import parse_ref
from tests.unit.client.conftest import MIB, Stack, make_tree, restored

ROOT = Path(__file__).resolve().parents[3]
BIG = os.urandom(9 * MIB + 77)
LINES = b"".join(b"line %d\n" % number for number in range(5000))
FILES = {
    "big.bin": BIG,
    "config.json": b"{}",
    "empty": b"",
    "a/b/deep.txt": b"deep",
    "a/lines.txt": LINES,
    "with space [x].txt": b"odd",
}
ART = "acme/fs"
REF = f"{ART}@v1"


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module")
def first(shared_stack: Stack) -> Client:
    return shared_stack.add("first", roles=("publisher", "engineer"), groups=("acme",))


@pytest.fixture(scope="module", autouse=True)
def _published(first: Client, tmp_path_factory: pytest.TempPathFactory) -> None:
    first.publish(make_tree(tmp_path_factory.mktemp("src"), FILES), REF, extent_size=4 * MIB)


def fs_of(client: Client, **options: Any) -> BrokerFileSystem:
    return BrokerFileSystem(profile_dir=client.profile.folder, **options)


@pytest.fixture
def fs(stack: Stack, first: Client) -> BrokerFileSystem:
    return fs_of(first)


# -- looking ----------------------------------------------------------------------------------------------


def test_every_level_is_a_folder(fs: BrokerFileSystem) -> None:
    assert fs.ls("broker://", detail=False) == ["acme"]
    assert fs.ls("", detail=True) == [{"name": "acme", "size": 0, "type": "directory"}]
    found = {item["name"]: item for item in fs.ls("broker://acme")}
    assert found[ART]["type"] == "directory"
    assert found[ART]["kind"] == "checkpoint"
    names = ["a", "big.bin", "config.json", "empty", "with space [x].txt"]
    assert sorted(fs.ls(REF, detail=False)) == [f"{REF}/{name}" for name in names]
    assert sorted(fs.ls(f"broker://{REF}/", detail=False)) == [f"{REF}/{name}" for name in names]
    assert sorted(fs.ls(f"{REF}/a", detail=False)) == [f"{REF}/a/b", f"{REF}/a/lines.txt"]
    assert fs.ls(f"{REF}/a/b/deep.txt", detail=False) == [f"{REF}/a/b/deep.txt"]


def test_what_is_known_of_a_file(fs: BrokerFileSystem, first: Client) -> None:
    version = first.info(REF)
    info = fs.info(f"broker://{REF}/big.bin")
    file = next(file for file in version.manifest.files if file.path == "big.bin")
    assert info == {
        "name": f"{REF}/big.bin",
        "size": len(BIG),
        "type": "file",
        "sha256": file.sha256.hex(),
        "version": "v1",
        "manifest": version.digest,
        "mtime": fs.created(f"{REF}/big.bin").timestamp(),
    }
    assert fs.size(f"{REF}/empty") == 0
    assert fs.info(f"{REF}/a")["type"] == "directory"
    assert fs.ukey(f"{REF}/big.bin") == file.sha256.hex()
    assert fs.checksum(f"{REF}/big.bin") == int(file.sha256.hex(), 16)
    assert fs.ukey(REF) == version.digest
    assert fs.modified(REF) == fs.created(f"{REF}/empty") < datetime.now(tz=UTC)
    with pytest.raises(IsADirectoryError):
        fs.created("acme")


def test_find_glob_walk_and_du(fs: BrokerFileSystem) -> None:
    assert fs.find(REF) == sorted(f"{REF}/{path}" for path in FILES)
    assert fs.find(f"{REF}/a", withdirs=True) == [
        f"{REF}/a",
        f"{REF}/a/b",
        f"{REF}/a/b/deep.txt",
        f"{REF}/a/lines.txt",
    ]
    assert fs.glob(f"{REF}/**/*.txt") == sorted(f"{REF}/{path}" for path in FILES if path.endswith(".txt"))
    assert fs.glob(f"broker://{ART}@v1/*.json") == [f"{REF}/config.json"]
    assert fs.glob("acme/f*") == [ART]
    assert [root for root, _, _ in fs.walk(REF)] == [REF, f"{REF}/a", f"{REF}/a/b"]
    assert fs.du(REF) == sum(map(len, FILES.values()))
    assert fs.find(f"{REF}/absent") == []
    assert fs.glob("acme/absent/*") == []


def test_absent_things(fs: BrokerFileSystem) -> None:
    for path in (
        "nobody",
        "acme/absent",
        f"{ART}@v9",
        f"{REF}/absent",
        f"{REF}/big.bin/x",
        "No Name/x",
        "a/b@/c",
    ):
        assert not fs.exists(path)
        assert not fs.isfile(path)
        assert not fs.isdir(path)
        for look in (fs.info, fs.ls, fs.open, fs.cat):
            with pytest.raises(BrokerFileNotFound) as caught:
                look(path)
            assert caught.value.code == "not_found"
            assert isinstance(caught.value.__cause__, NotFound)
            assert caught.value.errno == errno.ENOENT
    for folder in ("", "acme", ART, REF, f"{REF}/a"):
        assert fs.isdir(folder)
        assert not fs.isfile(folder)
        if folder:
            with pytest.raises(IsADirectoryError):
                fs.open(folder)


def test_newest_and_named_versions(stack: Stack, first: Client, tmp_path: Path) -> None:
    artifact = "acme/moving"
    first.publish(make_tree(tmp_path / "one", {"x": b"one", "old": b""}), f"{artifact}@one")
    first.publish(make_tree(tmp_path / "two", {"x": b"two2"}), f"{artifact}@two")
    fs = fs_of(first)
    digest = first.info(f"{artifact}@one").digest
    assert fs.cat(f"{artifact}/x") == b"two2"
    assert fs.cat(f"{artifact}@one/x") == fs.cat(f"{artifact}@{digest}/x") == b"one"
    assert fs.info(f"{artifact}/x")["version"] == "two"
    assert fs.ls(artifact, detail=False) == [f"{artifact}/x"]
    assert fs.ls(f"{artifact}@{digest}", detail=False) == [
        f"{artifact}@{digest}/old",
        f"{artifact}@{digest}/x",
    ]
    assert {item["name"]: item["version"] for item in fs.ls("acme")}[artifact] == "two"


def test_an_artifact_without_a_version_is_not_listed(stack: Stack, first: Client) -> None:
    assert all(item["version"] for item in fs_of(first).ls("acme"))


# -- reading ----------------------------------------------------------------------------------------------


def test_whole_files_and_slices(fs: BrokerFileSystem) -> None:
    assert {path: fs.cat_file(path) for path in fs.find(REF)} == {f"{REF}/{p}": d for p, d in FILES.items()}
    two = [f"{REF}/empty", f"{REF}/a/b/deep.txt"]
    assert fs.cat(two) == {two[0]: b"", two[1]: b"deep"}
    assert fs.cat_file(f"{REF}/big.bin", 5, 25) == BIG[5:25]
    assert fs.cat_file(f"{REF}/big.bin", -7) == BIG[-7:]
    assert fs.cat_file(f"{REF}/big.bin", -9, -2) == BIG[-9:-2]
    assert fs.cat_file(f"{REF}/big.bin", len(BIG) - 2, len(BIG) + 90) == BIG[-2:]
    assert fs.cat_file(f"{REF}/big.bin", 9, 3) == b""
    assert fs.head(f"{REF}/big.bin", 10) == BIG[:10]
    assert fs.tail(f"{REF}/big.bin", 10) == BIG[-10:]
    assert fs.read_text(f"{REF}/a/b/deep.txt") == "deep"
    assert fs.read_block(f"{REF}/a/lines.txt", 3, 9, delimiter=b"\n") == b"line 1\n"


def test_an_open_file(fs: BrokerFileSystem) -> None:
    with fs.open(f"{REF}/big.bin") as file:
        assert (file.size, file.tell(), file.mode) == (len(BIG), 0, "rb")
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert file.seek(4 * MIB - 3) == 4 * MIB - 3
        assert file.read(7) == BIG[4 * MIB - 3 : 4 * MIB + 4]
        buffer = bytearray(1000)
        assert file.readinto(buffer) == 1000
        assert buffer == BIG[4 * MIB + 4 : 4 * MIB + 1004]
        assert file.seek(-3, io.SEEK_END) == len(BIG) - 3
        assert file.readinto(memoryview(buffer)[:10]) == 3
        assert buffer[:3] == BIG[-3:]
        assert file.read() == b""
        assert file.info()["sha256"] == fs.info(f"{REF}/big.bin")["sha256"]
        with pytest.raises(ValueError, match="before start"):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.readinto(buffer)
    with fs.open(f"{REF}/empty") as file:
        assert file.read() == b""
        assert file.readinto(buffer) == 0


@pytest.mark.parametrize("cache", ["none", "readahead", "bytes", "blockcache", "all", "mmap"])
def test_fsspecs_own_caches_work_too(fs: BrokerFileSystem, cache: str) -> None:
    with fs.open(f"{REF}/big.bin", cache_type=cache, block_size=MIB) as file:
        for at, size in ((0, 10), (5 * MIB - 5, 10), (MIB, 2 * MIB), (len(BIG) - 4, 4)):
            file.seek(at)
            assert file.read(size) == BIG[at : at + size]
        buffer = bytearray(20)
        file.seek(7)
        assert file.readinto(buffer) == 20
        assert buffer == BIG[7:27]


def test_lines_and_text(fs: BrokerFileSystem) -> None:
    with fs.open(f"{REF}/a/lines.txt") as file:
        assert list(file) == LINES.splitlines(keepends=True)
    with fs.open(f"{REF}/a/lines.txt", "r", encoding="ascii") as file:
        assert file.read() == LINES.decode()
    with fs.open(f"{REF}/big.bin") as file:
        assert file.readline() == io.BytesIO(BIG).readline()


def test_many_ranges_at_once(fs: BrokerFileSystem, stack: Stack) -> None:
    wanted = [(at, at + 50) for at in range(8 * MIB, 0, -MIB // 2)]
    paths = [f"{REF}/big.bin"] * len(wanted)
    found = fs.cat_ranges(paths, [low for low, _ in wanted], [high for _, high in wanted])
    assert found == [BIG[low:high] for low, high in wanted]
    mixed = fs.cat_ranges(
        [f"{REF}/a/b/deep.txt", f"{REF}/absent", f"broker://{REF}/big.bin"], [1, 0, -4], [3, 9, None]
    )
    assert mixed[0] == b"ee"
    assert isinstance(mixed[1], FileNotFoundError)
    assert mixed[2] == BIG[-4:]
    assert fs.cat_ranges([f"{REF}/big.bin"] * 2, 0, 4) == [BIG[:4]] * 2
    near = [(700, 900), (0, 10), (5, 500), (10, 12), (899, 3 * MIB), (70_000, 70_001)]
    found = fs.cat_ranges([f"{REF}/big.bin"] * 6, [low for low, _ in near], [high for _, high in near])
    assert found == [BIG[low:high] for low, high in near]
    assert fs.cat_ranges([], [], []) == []
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{REF}/absent"], 0, 4, on_error="raise")
    with pytest.raises(ValueError, match="lengths"):
        fs.cat_ranges([f"{REF}/big.bin"], [0, 1], [2, 3])


def test_ranges_that_are_close_are_one_read() -> None:
    ref, other = parse_ref(f"{REF}/x"), parse_ref(f"{REF}/y")
    spans = [(ref, 90, 95), (ref, 0, 10), (ref, 5, 60), (other, 12, 15), (ref, 10, 20), (ref, 200, 210)]
    wanted = [Wanted(ref=r, start=low, stop=high, place=at) for at, (r, low, high) in enumerate(spans)]
    runs = [[item.place for item in run] for run in runs_of(wanted, 30)]
    assert runs == [[1, 2, 4, 0], [5], [3]]
    far = [Wanted(ref=ref, start=at * 10 * MIB, stop=at * 10 * MIB + 9 * MIB, place=at) for at in range(3)]
    assert [len(run) for run in runs_of(far, MIB)] == [1, 1, 1], "what is put together is bounded"


def test_copies(fs: BrokerFileSystem, tmp_path: Path) -> None:
    class Seen(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.total = 0

        def relative_update(self, inc: int = 1) -> None:
            self.total += inc

    seen = Seen()
    fs.get_file(f"{REF}/big.bin", str(tmp_path / "new" / "copy"), callback=seen)
    assert (tmp_path / "new" / "copy").read_bytes() == BIG
    assert (seen.size, seen.total) == (len(BIG), len(BIG))
    into = io.BytesIO()
    fs.get_file(f"{REF}/a/lines.txt", into)
    assert into.getvalue() == LINES
    fs.get(f"{REF}/", str(tmp_path / "all"), recursive=True)
    found = {
        path.relative_to(tmp_path / "all").as_posix(): path.read_bytes()
        for path in (tmp_path / "all").rglob("*")
        if path.is_file()
    }
    assert found == FILES


def test_the_purpose_is_recorded(stack: Stack, first: Client) -> None:
    size = stack.world.size()
    assert fs_of(first, purpose="training", jobs=2).cat(f"{REF}/config.json") == b"{}"
    entries = [stack.world.entry(index) for index in range(size, stack.world.size())]
    assert [entry["purpose"] for entry in entries if entry["type"] == "grant"] == ["training"]


# -- refusals ---------------------------------------------------------------------------------------------


def test_errors_are_those_that_callers_know() -> None:
    """Callers catch the system's own classes; ours are told apart from them by their code alone."""
    assert issubclass(BrokerFileNotFound, FileNotFoundError)
    assert issubclass(BrokerFileRefused, PermissionError)
    assert issubclass(BrokerFileUnreachable, ConnectionError)
    for kind in (BrokerFileNotFound, BrokerFileRefused, BrokerFileUnreachable):
        assert issubclass(kind, BrokerFileError)
        again = pickle.loads(pickle.dumps(kind(errno.EIO, "text", "path")))
        assert (type(again), again.errno, again.filename) == (kind, errno.EIO, "path")


def test_a_denial_is_a_permission_error(stack: Stack) -> None:
    auditor = stack.add("oscar", roles=("auditor",))
    fs = fs_of(auditor)
    assert fs.isfile(f"{REF}/config.json"), "auditors may look"
    with pytest.raises(BrokerFileRefused) as caught, fs.open(f"{REF}/config.json") as file:
        file.read()
    assert caught.value.code == "denied"
    assert caught.value.errno == errno.EACCES
    assert isinstance(caught.value.__cause__, Denied)
    assert [type(item) for item in fs.cat_ranges([f"{REF}/config.json"], 0, 1)] == [type(caught.value)]


def test_what_is_not_visible_does_not_exist(stack: Stack) -> None:
    outsider = fs_of(stack.add("olga"))
    assert outsider.ls("") == []
    assert not outsider.exists(f"{REF}/config.json")


def test_an_outage_is_not_an_empty_folder(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fs_of(stack.add("uma", groups=("acme",)))
    assert fs.exists(REF)
    monkeypatch.setattr("broker.client.session.FIRST_PAUSE", 0.001)
    monkeypatch.setattr(stack, "_wsgi", _unavailable)
    looks: list[Callable[[str], object]] = [fs.exists, fs.isfile, fs.isdir, fs.glob, fs.find, fs.ls, fs.cat]
    looks.append(lambda path: list(fs.walk(path)))
    for look in looks:
        with pytest.raises(BrokerFileUnreachable) as caught:
            look("acme/*/absent*" if look == fs.glob else f"{ART}@v1x/absent")
        assert caught.value.code == "unavailable"
        assert isinstance(caught.value.__cause__, Unavailable)


def _unavailable(environ: object, start: Callable[..., object]) -> list[bytes]:
    start("503 Service Unavailable", [("Content-Type", "application/problem+json")])
    return [json.dumps({"code": "unavailable", "detail": "closed for today"}).encode()]


def test_tampered_bytes_are_never_handed_out(stack: Stack, first: Client, tmp_path: Path) -> None:
    fs = fs_of(first, purpose="a reader that has nothing in memory")
    name = next(name for name, data in stack.store.objects.items() if len(data) > 9 * MIB)
    data = bytearray(stack.store.objects[name])
    data[-9] ^= 1
    stack.store.objects[name] = bytes(data)
    with pytest.raises(BrokerFileError, match=r"big\.bin") as caught:
        fs.get(f"{REF}/big.bin", str(tmp_path / "copy"))
    assert caught.value.code == "integrity"
    assert isinstance(caught.value.__cause__, IntegrityFailure)
    assert list(tmp_path.iterdir()) == [], "no part of a copy that failed is left"
    with fs.open(f"{REF}/big.bin") as file:
        file.seek(-20, io.SEEK_END)
        buffer = bytearray(20)
        with pytest.raises(OSError, match=r"big\.bin"):
            file.readinto(buffer)
        assert buffer == bytes(20)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("mkdir", ("acme/new",)),
        ("makedirs", ("acme/new",)),
        ("makedir", ("acme/new",)),
        ("mkdirs", ("acme/new",)),
        ("touch", ("acme/new/x",)),
        ("put", ("/tmp/x", "acme/new/x")),
        ("put_file", ("/tmp/x", "acme/new/x")),
        ("upload", ("/tmp/x", "acme/new/x")),
        ("pipe", ("acme/new/x", b"1")),
        ("pipe_file", ("acme/new/x", b"1")),
        ("write_bytes", ("acme/new/x", b"1")),
        ("write_text", ("acme/new/x", "1")),
        ("copy", (f"{REF}/empty", f"{REF}/other")),
        ("cp", (f"{REF}/empty", f"{REF}/other")),
        ("cp_file", (f"{REF}/empty", f"{REF}/other")),
        ("mv", (f"{REF}/empty", f"{REF}/other")),
        ("move", (f"{REF}/empty", f"{REF}/other")),
        ("rename", (f"{REF}/empty", f"{REF}/other")),
        ("rm", (f"{REF}/empty",)),
        ("rm_file", (f"{REF}/empty",)),
        ("rmdir", (REF,)),
        ("delete", (f"{REF}/empty",)),
        ("start_transaction", ()),
        ("open", (f"{REF}/empty", "wb")),
        ("open", (f"{REF}/empty", "ab")),
        ("open", (f"{REF}/empty", "xb")),
        ("open", (f"{REF}/empty", "r+b")),
        ("open", (f"{REF}/empty", "w")),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value[-1:]),
)
def test_every_way_to_write_is_refused(fs: BrokerFileSystem, method: str, values: tuple[Any, ...]) -> None:
    with pytest.raises(BrokerFileError, match="read-only") as caught:
        getattr(fs, method)(*values)
    assert caught.value.errno == errno.EROFS
    assert caught.value.code == "usage"


def test_no_method_that_writes_was_forgotten(fs: BrokerFileSystem) -> None:
    """Whatever else fsspec offers changes nothing: each public method is ours, or reads."""
    reads = {
        "cat", "clear_instance_cache", "current", "disk_usage", "download", "du", "end_transaction",
        "expand_path", "find", "from_dict", "from_json", "get", "get_mapper", "glob", "head",
        "invalidate_cache", "lexists", "listdir", "open", "read_block", "read_bytes", "read_text", "sign",
        "size", "sizes", "stat", "tail", "to_dict", "to_json", "tree", "unstrip_protocol",
    }  # fmt: skip
    inherited = {
        name
        for name in dir(BrokerFileSystem)
        if not name.startswith("_")
        and callable(getattr(BrokerFileSystem, name))
        and not any(name in vars(kind) for kind in (BrokerFileSystem,))
        and name != "transaction_type"
    }
    assert inherited <= reads, f"does it write? {sorted(inherited - reads)}"
    with pytest.raises(OSError, match="read-only"):
        fs.transaction.start()


# -- instances, pickles, processes ------------------------------------------------------------------------


def test_instances_are_kept_by_profile(
    stack: Stack, first: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = stack.add("ines", groups=("acme",))
    assert fs_of(first) is fs_of(first)
    assert fs_of(first) is not fs_of(other)
    assert fs_of(first) is not fs_of(first, purpose="other")
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(first.profile.folder))
    mine = BrokerFileSystem()
    assert mine.cat(f"{REF}/config.json") == b"{}"
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(other.profile.folder))
    assert BrokerFileSystem() is not mine
    assert BrokerFileSystem().cat(f"{REF}/config.json") == b"{}"
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(tmp_path / "absent"))
    nowhere = BrokerFileSystem()
    with pytest.raises(BrokerFileError, match="no profile") as caught:
        nowhere.exists(REF)
    assert caught.value.code == "configuration"
    unused = BrokerFileSystem(purpose="made for nowhere")
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(first.profile.folder))
    with pytest.raises(OSError, match="environment is another"):
        unused.exists(REF)
    with pytest.raises(ConfigurationError):
        fs_of(first, jobs=0)


def test_threads_share_one_library(fs: BrokerFileSystem, first: Client) -> None:
    barrier = threading.Barrier(6)

    def read(at: int) -> bytes:
        barrier.wait(30)
        mine = fs_of(first)
        return mine.cat_file(f"{REF}/big.bin", at * MIB, at * MIB + 100)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, range(6))) == [BIG[at * MIB : at * MIB + 100] for at in range(6)]
    callers = [caller for caller in shared_library._process.libraries if caller == fs._caller]
    assert len(callers) == 1


def test_a_pickle_holds_no_secret(fs: BrokerFileSystem, first: Client) -> None:
    assert fs.cat(f"{REF}/config.json") == b"{}"
    data = pickle.dumps(fs)
    key = json.loads((first.profile.folder / "key.jwk").read_text())
    token = json.loads((first.profile.folder / "token.json").read_text())["access_token"]
    for secret in (key["d"], token):
        assert secret.encode() not in data
    again = pickle.loads(data)
    assert again is fs
    assert again.cat(f"{REF}/config.json") == b"{}"
    assert BrokerFileSystem.from_json(fs.to_json()) is fs


def test_a_pickled_file_stays_in_its_version(
    stack: Stack, first: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.client.library.NAME_KEPT", -1)
    first.publish(make_tree(tmp_path / "one", {"x": b"0123456789"}), "acme/pickled@one")
    with fs_of(first).open("acme/pickled/x") as file:
        assert file.read(4) == b"0123"
        data = pickle.dumps(file)
        first.publish(make_tree(tmp_path / "two", {"x": b"another"}), "acme/pickled@two")
        assert fs_of(first).size("acme/pickled/x") == 7
        with pickle.loads(data) as again:
            assert again.tell() == 4
            assert again.read() == b"456789"
        assert file.read() == b"456789"


def test_a_forked_child_starts_anew(fs: BrokerFileSystem) -> None:
    """The child reads through the same objects, with connections, keys and locks of its own."""
    with fs.open(f"{REF}/big.bin") as file:
        assert file.read(10) == BIG[:10]
        mine = fs._access()
        mine.tree(mine.version(parse_ref(REF)))
        here = shared_library._process
        here.lock.acquire()  # as if another thread was in the middle of it
        try:
            receive, send = os.pipe()
            child = os.fork()
            if child == 0:
                _child(send, fs, file, mine)
            os.close(send)
        finally:
            here.lock.release()
        with open(receive, "rb") as pipe:
            said = pipe.read()
        assert os.waitpid(child, 0)[1] == 0, said.decode()
        assert said == b"ok"
        assert file.read(10) == BIG[10:20], "the parent's own conversation goes on"
        assert fs._access() is mine


def _child(send: int, fs: BrokerFileSystem, file: Any, parents: object) -> None:
    status = 1
    signal.alarm(30)  # a child that waits for a lock of its parent's threads would wait for ever
    try:
        assert fs._access() is not parents
        assert fs._access().library is not parents.library  # type: ignore[attr-defined]
        assert file.read(10) == BIG[10:20]
        assert fs.cat_file(f"{REF}/big.bin", 5 * MIB, 5 * MIB + 9) == BIG[5 * MIB : 5 * MIB + 9]
        assert fs.ls(REF)
        os.write(send, b"ok")
        status = 0
    except BaseException as exc:
        os.write(send, repr(exc).encode())
    finally:
        os._exit(status)


_FORKING = """
import os, signal, sys
from broker.client.fs import BrokerFileSystem
from broker.client.reading import Reader

# So little room that reading ahead waits, its connections open, in the middle of the file.
Reader.__init__.__kwdefaults__["memory"] = 2 * 2**20
fs = BrokerFileSystem(profile_dir=sys.argv[1])
with fs.open(sys.argv[2]) as file:
    data = [file.read(50_000) for _ in range(40)]  # in order
    if (child := os.fork()) == 0:
        signal.alarm(30)
        assert fs.cat_file(sys.argv[2], 0, 50_000) == data[0]
        sys.exit(0)  # an ordinary end, with all that is done then
    assert os.waitpid(child, 0)[1] == 0
    data.append(file.read())
os.write(1, b"".join(data))
"""


def test_a_forked_child_that_ends_in_order(first: Client) -> None:
    """Its end closes nothing that the parent still uses, and waits for no thread that it does not have."""
    words = (sys.executable, "-c", _FORKING, str(first.profile.folder), f"{REF}/big.bin")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == BIG


def test_the_entry_point_names_the_class() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["fsspec.specs"] == {
        BrokerFileSystem.protocol: f"{BrokerFileSystem.__module__}:{BrokerFileSystem.__name__}"
    }
    assert project["optional-dependencies"]["fsspec"]
