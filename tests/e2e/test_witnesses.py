"""Two witnesses, a broker that asks them, and readers who demand both: each of them a process (I18)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from broker.client import cosigned, session
from broker.client.cosigned import FILE
from broker.client.grants import GrantClient, Granted
from broker.client.sdk import Client
from broker.client.settings import load_profile
from broker.errors import IntegrityFailure, LedgerUnavailable
from broker.ledger import quorum, receipt
from broker.names import parse_ref
from tests.e2e.running import PROGRAM, STOP_SECONDS, Stack, User, environment, noise, until, write_tree

REF = "acme/witnessed@v1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One process that listens at a port of its own; stopped, killed, started again."""

    def __init__(self, folder: Path, name: str, *words: object, **env: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        self._words, self._env = words, env
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, path: str) -> None:
        with open(self.log, "ab") as out:
            process = subprocess.Popen(
                [*PROGRAM, *map(str, self._words)],
                env=environment(**self._env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._process = process
        until(lambda: self.ask(path) or process.poll() is not None, what=self.log.name)
        assert process.poll() is None, self.log.read_text()[-2000:]

    def ask(self, path: str) -> tuple[int, str] | None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            found = urllib3.request("GET", f"{self.url}{path}", retries=False, timeout=5)
            return found.status, found.data.decode()
        return None

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)


class Witness(Server):
    """``broker witness serve`` with a key and a state of its own."""

    def __init__(self, folder: Path, name: str, log: str) -> None:
        key = folder / f"{name}.key"
        made = subprocess.run(
            [*PROGRAM, "witness", "key", "--out", str(key), "--name", f"{name}.example/witness"],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        self.vkey = next(word for word in made.stdout.split() if word.startswith(f"{name}.example/witness+"))
        super().__init__(
            folder, name, "witness", "serve", "--key", key, "--state", folder / name, "--log", log
        )
        self._words = (*self._words, "--port", self.port)


class Setting:
    """The witnesses, and the policy that demands both."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self.stack = stack
        self.folder = folder
        with stack.admin.client() as client:
            self.vkey = client.profile.vkey
        self.witnesses = [Witness(folder, name, self.vkey) for name in ("north", "south")]
        lines = [f"log {self.vkey}"]
        lines += [f"witness {w.log.stem} {w.vkey} {w.url}/" for w in self.witnesses]
        self.policy = folder / "witnesses.txt"
        self.policy.write_text("\n".join([*lines, "group both all north south", "quorum both", ""]))
        self.brokers: list[Server] = []

    def broker(self, name: str, **env: str) -> Server:
        """``broker serve`` beside the stack, on its database, with the witnesses."""
        made = Server(
            self.folder,
            name,
            "serve",
            BROKER_CONFIG=str(self.stack.home / "broker.toml"),
            BROKER_WITNESS_POLICY=str(self.policy),
            BROKER_WITNESS_MAX_LAG="1",
            BROKER_WORKERS="1",
            **env,
        )
        made._env.update(BROKER_PORT=str(made.port), BROKER_PUBLIC_URLS=f"{made.url},{self.stack.url}")
        self.brokers.append(made)
        made.start(path="/readyz")
        return made

    def client_of(self, user: User, broker: Server) -> Client:
        """The SDK with a copy of somebody's profile, which talks to that broker and has the policy."""
        folder = self.folder / f"{user.name}-{broker.port}"
        shutil.copytree(user.profile, folder)
        config = folder / "config.toml"
        config.write_text(config.read_text().replace(self.stack.url, broker.url, 1))
        shutil.copy(self.policy, folder / FILE)
        return Client(load_profile(folder))

    def covers(self, broker: Server, index: int) -> bool:
        """Whether both witnesses signed a head with that entry in it."""
        status, text = broker.ask("/ledger/cosigned") or (0, "")
        return status == 200 and quorum.parse_policy(self.policy.read_text()).check(text).size > index


@pytest.fixture(scope="module")
def setting(stack: Stack, pub: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    tree = write_tree(tmp_path_factory.mktemp("tree") / "t", {"one.bin": noise(3000, "witnessed")})
    pub.cli("put", tree, REF)
    made = Setting(tmp_path_factory.mktemp("witnesses"), stack)
    try:
        for witness in made.witnesses:
            witness.start(path="/")
        yield made
    finally:
        for server in (*made.witnesses, *made.brokers):
            server.kill()


@pytest.fixture(autouse=True)
def demand_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers demand what the witnesses signed at once, instead of a minute later; they ask once."""
    monkeypatch.setattr(cosigned, "MAX_LAG_MS", 0)
    monkeypatch.setattr(session, "ATTEMPTS", 1)


def begin(client: Client) -> tuple[GrantClient, Granted]:
    grants = GrantClient(client._session, client._log)
    return grants, grants.request_grant(client.ask_of(parse_ref(REF)))


def test_a_lease_goes_on_with_both_witnesses_and_not_without(
    setting: Setting, ana: User, aud: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = setting.broker("witnessed")
    with setting.client_of(ana, broker) as client:
        grants, granted = begin(client)
        first = granted.receipt.index
        until(lambda: setting.covers(broker, first), what="both witnesses")
        lease = grants.request_lease(granted, ((0, 0, 0),))
        until(lambda: setting.covers(broker, lease.receipt.index), what="both witnesses")
        grants.report_completion(granted, files=1, bytes=3000, extents=1)

        setting.witnesses[1].kill()
        grants, granted = begin(client)

        def is_refused() -> bool:
            try:
                grants.request_lease(granted, ((0, 0, 0),))
            except IntegrityFailure:
                return False  # the client is stricter than the broker, for this second
            except LedgerUnavailable as exc:
                return exc.what == "the ledger's newest entries are not cosigned"
            raise AssertionError("a lease without the quorum")

        until(is_refused, what="a broker that refuses")
        setting.witnesses[1].start(path="/")
        until(lambda: setting.covers(broker, granted.receipt.index), what="both witnesses again")
        grants.request_lease(granted, ((0, 0, 0),))
    assert "a witness signs again" in until(
        lambda: (text := broker.log.read_text()) and "signs again" in text and text, what="the log"
    )

    # Whoever has the policy verifies a receipt without the broker.
    proven = tmp_path / "receipt.tlog-proof"
    proven.write_bytes(aud.cli("ledger", "prove", first, BROKER_URL=broker.url).data)
    aud.cli("ledger", "verify-receipt", proven, "--witness-policy", setting.policy)

    # An auditor with the policy wants the whole log to agree with what the witnesses signed.
    monkeypatch.setattr(cosigned, "MAX_LAG_MS", 60_000)
    with setting.client_of(aud, broker) as client:
        assert client.ledger.verify().ok
        # The stack's own server has no witnesses: there is nothing that would satisfy the policy.
        config = client.profile.folder / "config.toml"
        config.write_text(config.read_text().replace(broker.url, setting.stack.url, 1))
        with Client(load_profile(client.profile.folder)) as elsewhere:
            found = elsewhere.ledger.verify()
    assert not found.ok
    assert "has the quorum of the profile's witness policy" in found.problems[-1]
    plain = receipt.parse_receipt(granted.lease.receipt_text).note
    with pytest.raises(IntegrityFailure, match="not cosigned"):
        quorum.parse_policy(setting.policy.read_text()).check(plain)


def test_a_witness_that_saw_more_stops_a_broker_on_an_old_database(
    setting: Setting, stack: Stack, ana: User, tmp_path: Path
) -> None:
    old = tmp_path / "old.db"
    with (
        contextlib.closing(sqlite3.connect(stack.database)) as a,
        contextlib.closing(sqlite3.connect(old)) as b,
    ):
        a.backup(b)
    broker = setting.broker("now")
    with setting.client_of(ana, broker) as client:
        _, granted = begin(client)
    until(lambda: setting.covers(broker, granted.receipt.index), what="both witnesses")
    broker.kill()
    empty = tmp_path / "heads"
    empty.mkdir()
    back = setting.broker("back", BROKER_DATABASE_URL=f"sqlite:///{old}", BROKER_TREE_HEADS=str(empty))
    until(lambda: "ROLLBACK DETECTED" in back.log.read_text(), what="the alarm")
    until(lambda: (back.ask("/readyz") or (0,))[0] == 503, what="a broker that is not ready")
    assert "a witness has seen another ledger than this one" in back.log.read_text()
