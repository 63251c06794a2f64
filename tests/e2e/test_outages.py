"""What is down is said, nothing is released meanwhile, and everything is there afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.running import (
    MIB,
    Stack,
    User,
    claimed,
    command_of,
    is_running,
    noise,
    port_of,
    read_tree,
    until,
    write_tree,
)
from tests.e2e.wire import grant_body, sign

FILES = {"a.bin": noise(3 * MIB, "outage"), "b.txt": b"b"}


@pytest.fixture(scope="module")
def own(new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    found = new_stack("--workers", "2", BROKER_LEASE_WINDOW=str(4 * MIB))
    found.add("pub", "--role", "publisher", "--group", "acme").cli(
        "put",
        write_tree(tmp_path_factory.mktemp("outage") / "t", FILES),
        "acme/a@v1",
        "--extent-size",
        "1MiB",
    )
    found.add("aud", "--role", "auditor")
    return found


@pytest.fixture
def pub(own: Stack) -> User:
    return User(name="pub", stack=own)


@contextmanager
def without_store(own: Stack) -> Iterator[None]:
    """The S3 server is gone and its supervisor does not notice; then everything is started again."""
    assert own.process is not None
    (weed,) = [pid for pid in own.pids if "weed" in command_of(pid).partition(" ")[0]]
    own.process.send_signal(signal.SIGSTOP)
    os.kill(weed, signal.SIGKILL)
    until(lambda: not is_listening(port_of(own.ready["s3"]["endpoint"])), what="the end of the store")
    try:
        yield
    finally:
        own.kill()
        own.start()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Somebody else holds the database's only place for a writer."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


def test_without_the_store_it_is_9_and_resumes(own: Stack, pub: User, tmp_path: Path) -> None:
    with without_store(own):
        done = pub.cli("get", "acme/a@v1", tmp_path / "out", expect=9)
        assert "Traceback" not in done.err
        assert "next:" in done.err
        assert not (tmp_path / "out" / "a.bin").exists()
        write_tree(tmp_path / "more", {"c.bin": b"c"})
        pub.cli("put", tmp_path / "more", "acme/b@v1", expect=9)
        assert pub.cli("ls", "acme").out.count("acme/") == 1
    pub.cli("get", "acme/a@v1", tmp_path / "out")
    assert read_tree(tmp_path / "out") == FILES
    pub.cli("put", tmp_path / "more", "acme/b@v1")


def test_without_the_broker_it_is_9(own: Stack, pub: User, tmp_path: Path) -> None:
    assert own.stop() == 0
    done = pub.cli("get", "acme/a@v1", tmp_path / "out", expect=9)
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
    own.start()
    pub.cli("get", "acme/a@v1", tmp_path / "out")


def test_I01_without_a_place_in_the_ledger_nothing_is_released(own: Stack, pub: User) -> None:
    with pub.client() as client:
        client.whoami()
        signed = sign(client, "POST", "/v1/grants", grant_body("acme/a@v1"))
        size = own.size()
        with locked(own.database):
            answer = signed.send()
            assert answer.status == 503
            assert answer.json()["code"] == "ledger_unavailable"
            assert b"lease" not in answer.body
            assert b"Amz" not in answer.body
            assert own.size() == size
        # The refusal used nothing up: the very same request is good once the ledger takes it.
        assert signed.send().status in (200, 401)


def test_a_read_goes_on_when_the_ledger_does(own: Stack, pub: User, tmp_path: Path) -> None:
    """The client waits a short time for a writer that is stuck."""
    pub.cli("ls")
    with locked(own.database):
        child = pub.begin("get", "acme/a@v1", tmp_path / "out")
        # It has asked once and waits: that is in the server's log.
        log = own.home / "server.log"
        before = log.read_text().count('"status": 503')
        until(lambda: log.read_text().count('"status": 503') > before, what="a refusal", seconds=40)
        assert child.poll() is None
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, out + err
    assert read_tree(tmp_path / "out") == FILES


def test_a_restart_keeps_everything_and_interrupts_nothing_for_good(own: Stack, tmp_path: Path) -> None:
    big = {"big.bin": noise(64 * MIB, "restart")}
    pub, aud = User(name="pub", stack=own), User(name="aud", stack=own)
    pub.cli("put", write_tree(tmp_path / "t", big), "acme/big@v1", "--extent-size", "1MiB")
    size, ready = own.size(), dict(own.ready)
    child = pub.begin("get", "acme/big@v1", tmp_path / "out", "-j", "1")
    try:
        until(lambda: claimed(tmp_path / "out") > 8 or child.poll() is not None, what="some extents")
        child.send_signal(signal.SIGSTOP)
        pids = own.pids
        assert own.stop() == 0
        assert not [command_of(pid) for pid in pids if is_running(pid)]
        for port in (port_of(ready["url"]), port_of(ready["s3"]["endpoint"])):
            assert not is_listening(port)
        assert not (own.home / "ready.json").exists()
        own.start()
        child.send_signal(signal.SIGCONT)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, out + err
    finally:
        child.kill()
        child.communicate()
    assert read_tree(tmp_path / "out") == big
    assert {k: v for k, v in own.ready.items() if k != "pid"} == {
        k: v for k, v in ready.items() if k != "pid"
    }
    assert own.size() > size
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True
    pub.cli("get", "acme/a@v1", tmp_path / "again")
    assert read_tree(tmp_path / "again") == FILES


def test_it_listens_on_loopback_only(own: Stack) -> None:
    inodes = set()
    for pid in own.pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    link = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if link.startswith("socket:["):
                        inodes.add(link[8:-1])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].partition(":")[0])
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert len(listening) >= 2
    assert set(listening) <= loopback
