"""Two brokers on one database and one store: equal, and one of them is killed while both are asked (I16)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import urllib3

from broker.client.sdk import Client
from broker.client.settings import load_profile
from broker.client.static_log import verify_static_log
from broker.dev.seaweed import choose_ports
from broker.errors import EXIT_CODE, BrokerError
from broker.runtime import SystemEntropy
from tests import postgres
from tests.e2e.running import PROGRAM, STOP_SECONDS, Stack, User, environment, noise, until, write_tree

pytestmark = pytest.mark.postgres

FILES = {"one.bin": noise(3000, "replica"), "two.bin": noise(70_000, "replicas")}
READERS = 3
PUBLISHED = "public/log/"
ROUNDS = 12


class Replica:
    """A second ``broker serve`` with the settings of a stack, at a port of its own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._port = choose_ports(("http",), entropy=SystemEntropy())["http"]
        self.url = f"http://127.0.0.1:{self._port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._stack.home / "replica.log", "ab") as out:
            self.process = subprocess.Popen(
                [*PROGRAM, "serve"],
                env=environment(
                    BROKER_CONFIG=str(self._stack.home / "broker.toml"),
                    BROKER_PORT=str(self._port),
                    BROKER_PUBLIC_URLS=f"{self.url},{self._stack.url}",
                    **self._log_store(),
                ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self.process
        until(lambda: self._is_ready() or process.poll() is not None, what="the replica")
        assert process.poll() is None, (self._stack.home / "replica.log").read_text()[-2000:]

    def _log_store(self) -> dict[str, str]:
        """It also publishes the log, into the stack's own store."""
        found = {
            "endpoint": self._stack.ready["s3"]["endpoint"],
            "bucket": self._stack.bucket,
            "access_key": self._stack.state["access_key"],
            "secret_key": self._stack.state["secret_key"],
            "prefix": PUBLISHED,
            "every": "1",
        }
        return {f"BROKER_LOG_STORE__{name.upper()}": value for name, value in found.items()}

    def _is_ready(self) -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", f"{self.url}/readyz", retries=False, timeout=5).status == 200
        return False

    def published(self, folder: Path) -> list[str]:
        """The published log, as a mirror takes it: the checkpoint first, then the tiles that are there."""
        with self._stack.s3() as s3:
            pages = s3.get_paginator("list_objects_v2")
            first = s3.get_object(Bucket=self._stack.bucket, Key=f"{PUBLISHED}checkpoint")["Body"].read()
            names = [
                item["Key"]
                for page in pages.paginate(Bucket=self._stack.bucket, Prefix=f"{PUBLISHED}tile/")
                for item in page.get("Contents", [])
            ]
            for name in names:
                data = s3.get_object(Bucket=self._stack.bucket, Key=name)["Body"].read()
                write_tree(folder, {name.removeprefix(PUBLISHED): data})
        write_tree(folder, {"checkpoint": first})
        return names

    def kill(self) -> None:
        """SIGKILL to all of it: as when the machine is gone."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)

    def client_of(self, user: User) -> Client:
        """The SDK with a copy of somebody's profile that talks to this replica."""
        folder = user.profile.with_name(f"{user.name}-there")
        if not folder.exists():
            shutil.copytree(user.profile, folder)
            config = folder / "config.toml"
            config.write_text(config.read_text().replace(self._stack.url, self.url, 1))
        return Client(load_profile(folder))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres.new_database() as found:
        yield postgres.text_of(found)


@pytest.fixture(scope="module")
def own(url: str, new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    stack = new_stack("--workers", "2", "--database-url", url)
    pub = stack.add("pub", "--role", "publisher", "--group", "acme")
    for name in ("ana", "ben", "aud"):
        stack.add(name, "--role", "auditor" if name == "aud" else "engineer", "--group", "acme")
    pub.cli("put", write_tree(tmp_path_factory.mktemp("tree") / "t", FILES), "acme/a@v1")
    return stack


@pytest.fixture(scope="module")
def replica(own: Stack) -> Iterator[Replica]:
    found = Replica(own)
    try:
        found.start()
        yield found
    finally:
        found.kill()


class Readers:
    """Threads that fetch again and again from one replica; what they were given is kept."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.given: list[str] = []
        self.refused = 0
        self._client = client
        self._folder = folder
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(READERS)]
        for thread in self._threads:
            thread.start()

    def _run(self, reader: int) -> None:
        for at in range(ROUNDS):
            dest = self._folder / f"{reader}-{at}"
            try:
                self.given.append(self._client.fetch("acme/a@v1", dest).entry["grant"])
            except BrokerError as exc:
                # Only what says that nobody is there is borne; a wrong byte or proof is not.
                if EXIT_CODE[exc.code] not in (9, 10):
                    self._failures.append(exc)
                self.refused += 1

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        assert not self._failures


def test_a_replica_that_is_killed_harms_neither_the_other_nor_the_record(
    own: Stack, replica: Replica, url: str, tmp_path: Path
) -> None:
    ana, ben = User(name="ana", stack=own), User(name="ben", stack=own)
    with ana.client() as here, replica.client_of(ben) as there:
        both = [Readers(here, tmp_path / "here"), Readers(there, tmp_path / "there")]
        until(lambda: len(both[1].given) > 2, what="reads from the replica")
        replica.kill()
        replica.start()
        for readers in both:
            readers.join()
        there.fetch("acme/a@v1", tmp_path / "after")
    assert both[0].refused == 0
    assert len(both[0].given) == READERS * ROUNDS
    entries = entries_of(url)
    recorded = {entry["grant"]: entry for entry in entries if entry["type"] == "grant"}
    for given in (*both[0].given, *both[1].given):
        assert recorded[given]["artifact"] == "acme/a"
    aud = User(name="aud", stack=own)
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True
    audited = ana.cli("ledger", "audit", "-o", "json", BROKER_CONFIG=str(own.home / "broker.toml")).json()
    assert (audited["ok"], audited["count"]) == (True, 0)


def entries_of(url: str) -> list[dict[str, Any]]:
    """Every entry, whose indices are dense."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT idx, entry FROM ledger_entries ORDER BY idx").fetchall()
    assert [index for index, _ in rows] == list(range(len(rows)))
    return [json.loads(data) for _, data in rows]


def test_a_revocation_holds_on_both_at_once(own: Stack, replica: Replica, tmp_path: Path) -> None:
    ben = User(name="ben", stack=own)
    with replica.client_of(ben) as there:
        there.fetch("acme/a@v1", tmp_path / "before")
        own.admin.cli("admin", "revoke", "--principal", "ben")
        with pytest.raises(BrokerError) as refused:
            there.fetch("acme/a@v1", tmp_path / "after")
    assert EXIT_CODE[refused.value.code] == 4


def test_what_a_replica_publishes_verifies_without_the_broker(
    own: Stack, replica: Replica, tmp_path: Path
) -> None:
    log = own.ready["log"]
    size = len(replica.published(tmp_path / "first"))
    assert size > 0
    assert verify_static_log(tmp_path / "first", log["vkey"]).head.origin == log["origin"]
    own.admin.cli("admin", "principal", "add", "eve")

    def grown() -> bool:
        folder = tmp_path / "again"
        shutil.rmtree(folder, ignore_errors=True)
        replica.published(folder)
        before, now = (
            verify_static_log(tmp_path / name, log["vkey"]).head.size for name in ("first", "again")
        )
        return now > before

    until(grown, what="a newer checkpoint")
