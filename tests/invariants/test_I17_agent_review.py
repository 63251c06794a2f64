"""I17 for the agent and its library: who lacks the secret holds nothing, and no list goes on for ever."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from broker import limits
from broker.client import catalogue
from broker.client.agent import http
from broker.client.agent.http import Answer, Listener, Request
from broker.client.catalogue import Catalogue
from broker.client.sdk import Client
from broker.errors import BrokerError, IntegrityFailure
from tests.unit.client.conftest import Stack, publisher, reader, stack

__all__ = ["publisher", "reader", "stack"]

SECONDS = 10


class Guarded:
    """An endpoint with a secret."""

    def answer(self, request: Request) -> Answer:
        return Answer(status=200 if request.headers.get("authorization") == "Bearer s" else 401)

    def refusal(self, error: BrokerError) -> Answer:
        return Answer(status=500)


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener(Guarded())
    found.start()
    yield found
    found.close()


def connect(listener: Listener, held: contextlib.ExitStack) -> socket.socket:
    return held.enter_context(socket.create_connection((listener.host, listener.port), timeout=SECONDS))


def ask(line: socket.socket, listener: Listener, *more: str) -> bytes:
    head = ["GET / HTTP/1.1", f"Host: 127.0.0.1:{listener.port}", *more, "", ""]
    line.sendall("\r\n".join(head).encode())
    return line.recv(65536)[:12]


KNOWN = "Authorization: Bearer s"


@pytest.mark.parametrize("asks", [False, True])
def test_I17_without_the_secret_nobody_keeps_a_place(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, *, asks: bool
) -> None:
    monkeypatch.setattr(limits, "MAX_AGENT_CONNECTIONS", 4)
    with contextlib.ExitStack() as held:
        known = connect(listener, held)
        assert ask(known, listener, KNOWN) == b"HTTP/1.1 200"
        strangers = [connect(listener, held) for _ in range(3)]
        for line in strangers if asks else ():
            assert ask(line, listener) == b"HTTP/1.1 401"
        late = connect(listener, held)
        assert ask(late, listener, KNOWN) == b"HTTP/1.1 200"
        ended, _, _ = select.select(strangers, [], [], SECONDS)
        assert [line.recv(1) for line in ended] == [b""], "one stranger made room"
        assert ask(known, listener, KNOWN) == b"HTTP/1.1 200", "who showed the secret stays"


def test_I17_a_refused_connection_in_drops_ends(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_LINGER_SECONDS", 0.3)
    with contextlib.ExitStack() as held:
        line = connect(listener, held)
        line.sendall(b"nonsense\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 400")
        line.settimeout(0.02)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() - began < SECONDS:
                line.sendall(b"A")
                time.sleep(0.02)
        assert time.monotonic() - began < SECONDS / 2


def test_I17_a_list_without_an_end_is_not_kept(
    stack: Stack, reader: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = itertools.count()

    def lie(path: str, query: Any = None, **_: Any) -> dict[str, Any]:
        at = next(pages)
        return {"artifacts": [{"artifact": f"acme/a{at}"}], "next_after": f"acme/a{at}"}

    monkeypatch.setattr(catalogue, "MOST_PAGES", 7)
    monkeypatch.setattr(reader._session, "get", lie)
    with pytest.raises(IntegrityFailure, match="does not end"):
        list(Catalogue(reader._session, reader._log).iter_artifacts())
    assert next(pages) == 7
