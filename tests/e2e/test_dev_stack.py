"""The embedded stack as a process: starts, is found again, stops, and leaves nothing running."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from broker.client.settings import load_profile

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 15
PROGRAM = """
import sys
from pathlib import Path
from broker.dev.stack import run_dev
from broker.errors import EXIT_CODE, BrokerError
try:
    run_dev(Path(sys.argv[1]), workers=2)
except BrokerError as exc:
    print(exc.what, exc.why, exc.next, file=sys.stderr)
    sys.exit(EXIT_CODE[exc.code])
"""


class Stack:
    """One `broker dev` as a child of the test."""

    def __init__(self, home: Path, *, program: str = PROGRAM, **env: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(home)],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        assert json.loads((self.home / "ready.json").read_text()) == json.loads(line)
        found: dict[str, Any] = json.loads(line)
        return found

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, float]:
        begun = time.monotonic()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors, time.monotonic() - begun


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    for process in psutil.process_iter(["cwd", "environ", "cmdline"]):
        values = (process.info["environ"] or {}).get("BROKER_CONFIG", ""), process.info["cwd"] or ""
        if any(str(tmp_path) in value for value in values):
            process.kill()


def _gone(family: list[psutil.Process], *, timeout: float = STOP_SECONDS) -> bool:
    _, alive = psutil.wait_procs(family, timeout=timeout)
    return not any(_runs(process) for process in alive)


def _runs(process: psutil.Process) -> bool:
    # A zombie runs nothing: it waits for the machine's first process to take note of its end.
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_open(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) == 0


def _get(url: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_stack_starts_stops_and_is_found_again(home: Path) -> None:
    first = Stack(home)
    ready = first.ready()
    assert set(ready) == {"url", "pid", "s3", "log", "profiles", "database"}
    assert ready["pid"] == first.process.pid
    assert _get(ready["url"], "/readyz")[0] == 200
    profile = load_profile(Path(ready["profiles"]) / "admin")
    assert (profile.server, profile.vkey) == (ready["url"], ready["log"]["vkey"])
    checkpoint = _get(ready["url"], "/ledger/checkpoint")[1]
    family = first.family()
    assert len(family) >= 4

    status, errors, seconds = first.end()
    assert (status, errors) == (0, "")
    assert seconds < STOP_SECONDS
    assert _gone(family, timeout=0)
    assert not (home / "ready.json").exists()
    assert not _is_open(ready["url"])
    assert not _is_open(ready["s3"]["endpoint"])

    second = Stack(home)
    assert second.ready() | {"pid": 0} == ready | {"pid": 0}
    assert load_profile(Path(ready["profiles"]) / "admin") == profile
    assert load_profile(Path(ready["profiles"]) / "admin").key.jkt == profile.key.jkt
    assert _get(ready["url"], "/ledger/checkpoint")[1] == checkpoint
    family = second.family()
    assert second.end(signal.SIGINT)[:2] == (0, "")
    assert _gone(family, timeout=0)


def test_a_second_stack_in_the_same_home_is_refused(home: Path) -> None:
    first = Stack(home)
    ready = first.ready()
    second = Stack(home)
    _, errors = second.process.communicate(timeout=30)
    assert second.process.returncode == 2
    assert "another broker dev runs" in errors
    assert _get(ready["url"], "/readyz")[0] == 200
    assert json.loads((home / "ready.json").read_text()) == ready
    assert first.end()[0] == 0


def test_children_of_a_killed_stack_end_and_the_next_start_works(home: Path) -> None:
    first = Stack(home)
    ready = first.ready()
    family = first.family()
    first.process.kill()
    first.process.communicate()
    assert _gone(family)
    second = Stack(home)
    assert second.ready()["log"] == ready["log"]
    assert second.end()[0] == 0


@pytest.mark.parametrize("name", ["weed", "broker.web.server"])
def test_a_child_that_dies_stops_the_stack(home: Path, name: str) -> None:
    stack = Stack(home)
    stack.ready()
    family = stack.family()
    victims = [each for each in family if any(name in word for word in each.cmdline())]
    children = psutil.Process(stack.process.pid).children()
    next(each for each in victims if each in children).kill()
    _, errors = stack.process.communicate(timeout=STOP_SECONDS + 5)
    assert stack.process.returncode == 9
    assert "ended by itself" in errors
    assert _gone(family)
    assert not (home / "ready.json").exists()


def test_a_stop_during_the_start_leaves_nothing(home: Path) -> None:
    stack = Stack(home)
    while not (home / "store" / "log" / "out").exists():
        assert stack.process.poll() is None
        time.sleep(0.01)
    family = stack.family()
    status, errors, seconds = stack.end()
    assert (status, errors) == (0, "")
    assert seconds < STOP_SECONDS
    assert _gone(family, timeout=1)
    assert not (home / "ready.json").exists()


def test_a_stop_that_arrives_where_exceptions_are_ignored_is_heeded(home: Path) -> None:
    # Python drops what a function raises that runs after a fork, and with it the signal's exception.
    stop_in_a_fork = """
import os, signal
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
"""
    stack = Stack(home, program=stop_in_a_fork + PROGRAM)
    stack.process.communicate(timeout=60)
    assert stack.process.returncode == 0
    assert not (home / "ready.json").exists()


def test_the_environment_cannot_turn_the_stack_into_something_else(home: Path) -> None:
    stack = Stack(
        home,
        BROKER_MODE="production",
        BROKER_PORT="1",
        BROKER_STORE__BUCKET="other",
        BROKER_DATABASE_URL="sqlite:////nowhere/x.db",
        BROKER_CONFIG="/nowhere/broker.toml",
        BROKER_LEASE_WINDOW=str(2**20),
    )
    assert stack.ready()["database"] == str(home / "broker.db")
    assert stack.end()[0] == 0


def test_I11_no_secret_of_the_stack_is_in_its_output(home: Path) -> None:
    stack = Stack(home)
    ready = stack.ready()
    _, errors, _ = stack.end()
    state = json.loads((home / "dev.json").read_text())
    secrets = [state["secret_key"]]
    for path in (home / "keys").iterdir():
        body = json.loads(path.read_text())
        secrets.append(body.get("key") or body["jwk"]["d"])
        assert path.stat().st_mode & 0o077 == 0
    assert len(secrets) == 6
    said = json.dumps(ready) + errors + (home / "server.log").read_text()
    said += "".join(path.read_text(errors="replace") for path in (home / "store" / "log").iterdir())
    for secret in secrets:
        assert secret not in said
