"""``broker witness serve`` as others run it: over HTTP, killed with SIGKILL again and again, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from broker.ledger import cosign
from broker.runtime import SystemClock, SystemEntropy
from broker.witness.keys import create_key
from broker.witness.server import MAX_CONNECTIONS, WitnessServer
from broker.witness.service import WitnessService
from broker.witness.state import WitnessState, origin_hash
from tests.e2e.running import PROGRAM, environment
from tests.witness_log import SmallLog

KILLS = 4


class Program:
    """The witness as a process."""

    def __init__(self, folder: Path, log: SmallLog) -> None:
        self._folder, self._log = folder, log
        self.vkey = self._run("key", "--name", "witness.example/w1", "--out", "key", "-o", "json")["vkey"]
        self.url = ""

    def _run(self, *words: str) -> dict[str, str]:
        done = subprocess.run(
            [*PROGRAM, "witness", *words],
            cwd=self._folder,
            env=environment(),
            capture_output=True,
            check=True,
        )
        found: dict[str, str] = json.loads(done.stdout)
        return found

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        words = ["serve", "--key", "key", "--state", "state", "--log", self._log.verifier.vkey, "-o", "jsonl"]
        process = subprocess.Popen(
            [*PROGRAM, "witness", *words],
            cwd=self._folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            self.url = json.loads(process.stdout.readline())["url"]
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def ask(self, old: int, size: int, log: SmallLog | None = None) -> urllib3.BaseHTTPResponse:
        body = (log or self._log).request(old, size)
        return urllib3.request("POST", f"{self.url}/add-checkpoint", body=body, retries=False, timeout=20)


@pytest.fixture
def log() -> SmallLog:
    return SmallLog()


@pytest.fixture
def program(tmp_path: Path, log: SmallLog) -> Program:
    return Program(tmp_path, log)


def test_a_witness_that_is_killed_never_goes_back(program: Program, log: SmallLog) -> None:
    told = 0
    for _ in range(KILLS):
        with program.running() as process:
            known = program.ask(told, told)
            old = told if known.status == 200 else int(known.data)
            # What it told is kept; a head that it kept and could not tell any more is newer.
            assert old >= told
            for size in range(old + 1, old + 6):
                assert program.ask(size - 1, size).status == 200
                told = size
            threading.Timer(0.01, lambda: os.kill(process.pid, signal.SIGKILL)).start()
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                for size in range(told + 1, told + 10_000):
                    assert program.ask(size - 1, size).status == 200
                    told = size
            process.wait(20)
    with program.running() as process:
        fork = SmallLog(fork="other")
        assert program.ask(told, told + 3, fork).status in (409, 422)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_it_speaks_http_as_the_specification_has_it(program: Program, log: SmallLog) -> None:
    with program.running() as process:
        first = program.ask(0, 5)
        assert first.status == 200
        merged = cosign.merge(log.signed(5), cosign.parse_response(first.data))
        assert list(cosign.cosignatures(merged, [cosign.parse_cosigner(program.vkey)])) == [program.vkey]
        conflict = program.ask(0, 9)
        assert (conflict.status, conflict.headers["Content-Type"], conflict.data) == (
            409, "text/x.tlog.size", b"5\n",
        )  # fmt: skip
        shown = urllib3.request("GET", f"{program.url}/{origin_hash(log.verifier.name)}/checkpoint")
        assert shown.data.decode() == merged
        for method, path, status in (("GET", "/", 404), ("POST", "/", 404), ("GET", "/add-checkpoint", 404)):
            assert urllib3.request(method, program.url + path, body=b"", retries=False).status == status
        large = urllib3.request("POST", f"{program.url}/add-checkpoint", body=bytes(10**6), retries=False)
        assert large.status == 413
        _keep_silent(program, process)


def _keep_silent(program: Program, process: subprocess.Popen[str]) -> None:
    """Connections that say nothing are bounded, and do not keep it from stopping."""
    host, port = program.url.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(MAX_CONNECTIONS + 8)]
    try:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        for line in silent:
            line.close()


def test_whoever_sends_byte_by_byte_is_cut_off(
    log: SmallLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.witness.server.REQUEST_SECONDS", 0.5)
    key = create_key(tmp_path / "key", name="w.example", entropy=SystemEntropy())
    state = WitnessState(tmp_path / "state")
    service = WitnessService(key=key, logs=[log.verifier], state=state, clock=SystemClock())
    server = WitnessServer(service)
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
            line.settimeout(0.05)
            sent, ended = 0, False
            while not ended and sent < 400:
                line.sendall(b"o")
                sent += 1
                with contextlib.suppress(TimeoutError):
                    ended = line.recv(1) == b""
            assert ended
    except (BrokenPipeError, ConnectionResetError):
        pass  # cut off in the middle of a send: that is what is wanted
    finally:
        server.close()
