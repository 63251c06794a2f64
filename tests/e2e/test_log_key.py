"""The change of the log's key, step by step as docs/operations/log-keys.md has it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import urllib3

from broker.dev.seaweed import choose_ports
from broker.ledger import note
from broker.runtime import SystemEntropy
from tests.e2e.running import PROGRAM, STOP_SECONDS, Stack, User, environment, until


class Broker:
    """``broker serve`` over a stack's database and store, with log keys of its own choice."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        port = choose_ports(("http",), entropy=SystemEntropy())["http"]
        self.url = f"http://127.0.0.1:{port}"
        self.settings = {
            "BROKER_CONFIG": str(stack.home / "broker.toml"),
            "BROKER_PORT": str(port),
            "BROKER_PUBLIC_URLS": f"{self.url},{stack.url}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def sign_with(self, key: Path, *also: Path) -> None:
        self.settings |= {"BROKER_KEYS__LOG": str(key), "BROKER_KEYS__LOG_ALSO": ",".join(map(str, also))}

    def start(self) -> None:
        with open(self._stack.home / "serve.log", "ab") as out:
            self._process = subprocess.Popen(
                [*PROGRAM, "serve"],
                env=environment(**self.settings),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self._process
        until(lambda: self._is_ready() or process.poll() is not None, what="the broker")
        assert process.poll() is None, (self._stack.home / "serve.log").read_text()[-2000:]

    def _is_ready(self) -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", f"{self.url}/readyz", retries=False, timeout=5).status == 200
        return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(STOP_SECONDS)

    def restart(self, key: Path, *also: Path) -> None:
        self.stop()
        self.sign_with(key, *also)
        self.start()

    def here(self, user: User) -> Path:
        """The user's profile, talking to this broker."""
        config = user.profile / "config.toml"
        config.write_text(config.read_text().replace(self._stack.url, self.url, 1))
        return user.profile

    def refused(self) -> str:
        done = subprocess.run(
            [*PROGRAM, "serve"],
            env=environment(**self.settings),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2, done.stderr
        return done.stderr


def test_the_log_goes_on_under_another_key(new_stack: Callable[..., Stack], tmp_path: Path) -> None:
    stack = new_stack("--workers", "1")
    ana, ben = stack.add("ana", "--role", "engineer"), stack.add("ben", "--role", "engineer")
    aud = stack.add("aud", "--role", "auditor")
    broker = Broker(stack)
    try:
        change_the_key(stack, broker, (ana, ben, aud), tmp_path)
    finally:
        broker.stop()


def change_the_key(stack: Stack, broker: Broker, users: tuple[User, User, User], folder: Path) -> None:
    ana, ben, aud = users
    former_file, new_file = stack.home / "keys" / "log.json", folder / "log-2.json"
    former = str(stack.ready["log"]["vkey"])
    for user in users:
        broker.here(user)
    broker.restart(former_file)
    for user in users:
        user.cli("ledger", "checkpoint")
    old_receipt = folder / "old.tlog-proof"
    old_receipt.write_text(aud.cli("ledger", "prove", "1").out)

    made = stack.admin.cli("admin", "keys", "create-log", new_file, "-o", "json", **broker.settings).json()
    new = made["vkey"]
    assert new.split("+")[0] == former.split("+")[0]
    assert new_file.stat().st_mode & 0o777 == 0o600
    # The new key alone, or first, before the log names it: no start.
    broker.stop()
    broker.sign_with(new_file, former_file)
    assert "does not name the key" in broker.refused()
    broker.restart(former_file, new_file)
    stack.admin.cli("admin", "keys", "rotate-log", **broker.settings)
    told = ana.cli("ledger", "checkpoint")
    assert "key was changed" in told.err
    assert f'vkey = "{new}"' in (ana.profile / "config.toml").read_text()

    broker.restart(new_file, former_file)
    ana.cli("ledger", "checkpoint")
    broker.restart(new_file)
    # Ben slept all the while: the log leads from his key to the one of today. Nobody else's log does.
    saved = shutil.copytree(ben.profile, folder / "saved")
    ben.cli("ledger", "checkpoint")
    assert f'vkey = "{new}"' in (ben.profile / "config.toml").read_text()
    head = (ben.profile / "treehead").read_text()
    assert note.open_head(head, new).size > note.open_head((saved / "treehead").read_text(), former).size
    verdict = aud.cli("ledger", "verify", "--full", "-o", "json").json()
    assert verdict["ok"] is True, verdict
    # What the former key signed verifies on, and the log says which keys it had.
    assert aud.cli("ledger", "verify-receipt", old_receipt, "-o", "json").json()["index"] == 1
    aud.cli("ledger", "verify-receipt", old_receipt, "--vkey", new, expect=6)
    rows = aud.cli("ledger", "search", "type:key-rotation", "-o", "json").json()["entries"]
    assert len(rows) == 1
    broker.stop()
    broker.sign_with(former_file)
    assert "goes on under a key" in broker.refused()
