"""A real HTTP server over a world, as a process of its own: ``python -m tests.web_server FOLDER PORT``.

It tells its caller, in ``FOLDER/admin.json``, what a client of the world needs to sign requests.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flask import Flask

from broker import jose
from broker.web.app import create_app
from broker.web.server import ServerOptions, serve
from tests.world import ROOT, Person, World

IO_TIMEOUT = 1


@dataclass
class RunningServer:
    """The server under test: raw bytes in, raw bytes out."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    log: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> Person:
        found = json.loads((self.folder / "admin.json").read_text())
        return Person(id=found["id"], key=jose.PrivateKey.from_jwk(found["key"]), token=found["token"])

    def say(self, data: bytes) -> bytes:
        """Everything that the server answers to these bytes until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as line:
            # It may answer before it has read everything.
            with suppress(BrokenPipeError, ConnectionResetError):
                line.sendall(data)
            return b"".join(_chunks(line))

    def ask(self, target: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
        """One request whose line and headers are sent exactly as given."""
        lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
        return self.say("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def _chunks(line: socket.socket) -> Iterator[bytes]:
    try:
        while chunk := line.recv(65536):
            yield chunk
    except ConnectionResetError:
        return


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body_of(answer: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(folder: Path, *, workers: int = 1) -> Iterator[RunningServer]:
    """A server that listens; stopped at the end."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.web_server", str(folder), str(port), str(workers)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    log: list[str] = []
    listening = threading.Event()
    reader = threading.Thread(target=_read_log, args=(process, log, listening.set), daemon=True)
    reader.start()
    try:
        assert listening.wait(30), "\n".join(log)
        yield RunningServer(port=port, folder=folder, process=process, log=log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        assert process.stderr is not None
        process.stderr.close()


def _read_log(process: subprocess.Popen[bytes], log: list[str], listening: Callable[[], None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        log.append(line.decode("utf-8", "replace").rstrip())
        if "Listening at" in log[-1]:
            listening()


def main() -> None:
    folder, port, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def make_app() -> Flask:
        world = World(folder)
        house = world.with_settings(public_urls=(f"http://127.0.0.1:{port}",))
        admin = world.admin
        (folder / "admin.json").write_text(
            json.dumps({"id": admin.id, "key": admin.key.to_jwk(), "token": admin.token})
        )
        return create_app(house)

    serve(
        make_app,
        ServerOptions(host="127.0.0.1", port=port, workers=workers, threads=4, io_timeout=IO_TIMEOUT),
    )


if __name__ == "__main__":
    main()
