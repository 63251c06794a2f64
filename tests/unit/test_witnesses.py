"""Witnesses over HTTP: a real server answers what a witness should not, and what it should."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from broker import limits, witnesses
from broker.errors import ConfigurationError, Unavailable
from broker.witnesses import HttpWitness

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """One witness; the requests that it got, and what it answers to the next ones."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.reply: Answer = lambda handler: say(handler, 200, b"fine\n")
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/prefix/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, body))
        self.server.reply(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_the_answer_is_handed_on_as_it_is(server: Server) -> None:
    witness = HttpWitness(server.url)
    found = witness.add_checkpoint(b"old 0\n\nnote")
    assert (found.status, found.body) == (200, b"fine\n")
    server.reply = lambda handler: say(handler, 409, b"7\n", Content_Type="Text/X.TLog.Size; charset=utf-8")
    found = witness.add_checkpoint(b"again")
    assert (found.status, found.kind, found.body) == (409, "text/x.tlog.size", b"7\n")
    assert server.requests == [
        ("/prefix/add-checkpoint", b"old 0\n\nnote"),
        ("/prefix/add-checkpoint", b"again"),
    ]


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.reply = lambda handler: say(handler, 307, b"", Location=server.url)
    with pytest.raises(Unavailable) as refused:
        HttpWitness(server.url).add_checkpoint(b"x")
    assert refused.value.why == "it redirects"
    assert len(server.requests) == 1


def test_an_endless_answer_is_cut(server: Server) -> None:
    size = limits.MAX_WITNESS_ANSWER + 1
    server.reply = lambda handler: say(handler, 200, bytes(size))
    with pytest.raises(Unavailable) as refused:
        HttpWitness(server.url).add_checkpoint(b"x")
    assert "larger than" in str(refused.value.why)


def test_an_answer_that_takes_too_long_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WITNESS_SECONDS", 0)
    with pytest.raises(Unavailable) as refused:
        HttpWitness(server.url).add_checkpoint(b"x")
    assert refused.value.why == "it took too long to answer"


def test_nobody_there_and_half_an_answer(server: Server) -> None:
    def break_off(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    server.reply = break_off
    with pytest.raises(Unavailable):
        HttpWitness(server.url).add_checkpoint(b"x")
    with pytest.raises(Unavailable):
        HttpWitness("http://127.0.0.1:1/").add_checkpoint(b"x")


def test_a_url_has_one_form() -> None:
    assert witnesses.check_witness_url("https://w.example/a/") == "https://w.example/a"
    assert witnesses.check_witness_url("http://127.0.0.1:8/") == "http://127.0.0.1:8"
    assert witnesses.check_witness_url("http://[::1]:8") == "http://[::1]:8"


@pytest.mark.parametrize(
    "url",
    [
        "http://w.example/",
        "ftp://w.example",
        "https://u:p@w.example",
        "https://w.example/?a",
        "https://w.example/#a",
        "https://w.example:x/",
        "https:///a",
        "x",
        "https://w.example/ä",
    ],
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="witness's URL"):
        HttpWitness(url)
