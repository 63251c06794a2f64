"""A store over HTTP for tests: real ciphertext, real sockets, and every way in which a store goes wrong.

It simulates the world outside: an S3 server that enforces what a presigned URL allows (method, object,
exact Range, create-only, length), and that can be told to fail the next requests in a given way.
"""

from __future__ import annotations

import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.world import MemoryStore


class HttpStore(MemoryStore):
    """The in-memory store of the tests' world, behind a loopback HTTP server."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: deque[str] = deque()
        self.gets: list[tuple[str, str]] = []
        self.puts: list[str] = []
        self.on_get: Any = None
        self.lock = threading.Lock()
        store = self

        class Handler(_Handler):
            home = store

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def _issue(self, kind: str, name: str, what: str, expires: int, now: int) -> tuple[str, int]:
        with self.lock:
            self.issued.append((kind, name, what, now + expires * 1000))
            number = len(self.issued)
        return f"http://{self.host}/b/{name}?n={number}", now + expires * 1000

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    home: HttpStore
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _allowed(self, method: str) -> tuple[str, str] | None:
        parts = urlsplit(self.path)
        kind, name, what, _ = self.home.issued[int(parse_qs(parts.query)["n"][0]) - 1]
        if parts.path != f"/b/{name}" or {"GET": "GET", "PUT": "PUT", "PART": "PUT"}[kind] != method:
            return None
        return kind, what

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        allowed = self._allowed("GET")
        if allowed is None or self.headers["Range"] != allowed[1]:
            self._answer(403)
            return
        name = urlsplit(self.path).path.removeprefix("/b/")
        first, last = (int(n) for n in allowed[1].removeprefix("bytes=").split("-"))
        with self.home.lock:
            self.home.gets.append((name, allowed[1]))
            fault = self.home.faults.popleft() if self.home.faults else None
        if self.home.on_get is not None:
            self.home.on_get(name)
        data = self.home.objects.get(name)
        if data is None:
            self._answer(404)
        elif fault is not None:
            self._fail(fault, data, first, last)
        elif first >= len(data):
            self._answer(416)
        else:
            body = data[first : last + 1]
            self._answer(206, body, Content_Range=f"bytes {first}-{first + len(body) - 1}/{len(data)}")

    def _fail(self, fault: str, data: bytes, first: int, last: int) -> None:
        body = data[first : last + 1]
        if fault.isdigit():
            self._answer(int(fault), b"<Error/>", Location="http://127.0.0.1:1/elsewhere")
        elif fault == "whole":
            self._answer(200, data)
        elif fault == "wrong-range":
            self._answer(206, body, Content_Range=f"bytes {first + 1}-{last + 1}/{len(data)}")
        elif fault == "short-range":
            self._answer(206, body[:-1], Content_Range=f"bytes {first}-{last - 1}/{len(data)}")
        elif fault in ("cut", "cut-head"):
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            if fault == "cut":
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "chunked":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        elif fault == "two-lengths":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Length", str(len(body) + 1))
            self.end_headers()
            self.wfile.write(body)
        elif fault == "extra":
            self._answer(206, body, Content_Range=f"bytes {first}-{last}/{len(data)}")
            self.wfile.write(b"HTTP/1.1 206 stray bytes of an answer that nobody asked for")
        elif fault == "endless-head":
            self.wfile.write(b"HTTP/1.1 206 OK\r\n" + b"x-a: b\r\n" * 20_000)
            self.close_connection = True
        elif fault == "junk":
            self.wfile.write(b"220 smtp.example ESMTP\r\n\r\n")
            self.close_connection = True
        else:
            raise AssertionError(fault)

    def do_PUT(self) -> None:
        allowed = self._allowed("PUT")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.home.lock:
            fault = self.home.faults.popleft() if self.home.faults else None
        name = urlsplit(self.path).path.removeprefix("/b/")
        if fault == "lost-answer":
            self._store(allowed, name, data)
            self.close_connection = True
        elif fault is not None:
            self._answer(int(fault))
        elif allowed is None:
            self._answer(403)
        else:
            self._answer(self._store(allowed, name, data))

    def _store(self, allowed: tuple[str, str] | None, name: str, data: bytes) -> int:
        if allowed is None:
            return 403
        kind, what = allowed
        with self.home.lock:
            self.home.puts.append(name)
            if kind == "PART":
                upload, _, number = what.partition(":")
                self.home.multiparts[upload][int(number)] = data
                return 200
            if len(data) != int(what) or self.headers["If-None-Match"] != "*":
                return 403
            if name in self.home.objects:
                return 412
            self.home.objects[name] = data
            return 200
