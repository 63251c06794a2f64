"""HTTP/1.1 on loopback for the agent's endpoints: guards, limits, threads, and whole answers or none.

An answer has its length before its first byte, so a body that ends early is seen to: when reading fails
in mid-body the connection is broken, never ended politely (I09). Bytes go from the reader's buffers to
the socket as they are.

**Source**: RFC 9112 (framing, section 6.3; persistence, section 9.3), RFC 9110 (9.3.2: HEAD).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from itertools import chain
from typing import Any, Final, NoReturn, Protocol

from broker import limits
from broker.client.agent.heads import MAX_HEAD, Head, Refused, Request, parse_head
from broker.errors import BrokerError, InternalError, UsageError
from broker.ports import Clock
from broker.runtime import SystemClock

__all__ = ["Answer", "App", "Listener", "Request"]

LOOPBACK: Final = ("127.0.0.1", "::1")
_LOG: Final = logging.getLogger("broker.agent")
_CHUNK: Final = 64 * limits.KIB
_STOP_SECONDS: Final = 5.0
_LINGER_SECONDS: Final = 5.0
"""In all: somebody who sends drops would otherwise hold the connection for days."""
_POLL_SECONDS: Final = 0.1
_RESET: Final = struct.pack("ii", 1, 0)
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
_BODILESS: Final = (204, 304)
_UNKNOWN: Final = (401, 403)
"""What both endpoints say to whoever lacks the secret, and in part to others."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an app answers.

    Args:
        headers: Without the framing (``Content-Length``, ``Connection``, ``Transfer-Encoding``) and ``Date``.
        body: The whole body, or pieces of it in order. The first piece is read before the head is
            sent, so what fails there still becomes the app's refusal.
        length: Bytes of the body. Needed with pieces; an answer to HEAD has the length that GET would have,
            and no body is sent for it.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | Iterator[memoryview] = field(default=b"", repr=False)
    length: int | None = None


class App(Protocol):
    """What an endpoint serves. Called from many threads."""

    def answer(self, request: Request) -> Answer:
        """The answer to a request that passed the guards. The secret is the app's first question.

        Raises:
            BrokerError: The request is refused; :meth:`refusal` says it in the app's own language.
        """

    def refusal(self, error: BrokerError) -> Answer:
        """How this endpoint says an error."""


class Listener:
    """One endpoint: a socket on loopback, and the threads that serve its connections.

    Raises:
        UsageError: The host is not ``127.0.0.1`` or ``::1``, or the address is taken.
    """

    def __init__(
        self, app: App, *, host: str = "127.0.0.1", port: int = 0, clock: Clock | None = None
    ) -> None:
        if host not in LOOPBACK:
            raise UsageError("the agent listens on loopback only", next="use 127.0.0.1 or ::1")
        try:
            self._server = _Server(app, host, port, clock or SystemClock())
        except (OSError, OverflowError) as exc:
            raise UsageError("the agent cannot listen there", why=type(exc).__name__) from exc
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="agent-listener", daemon=True
        )

    def start(self) -> None:
        """Take connections, in threads of its own."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether connections are taken: False before the start, after the close, and after a failure."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Take no more connections and break those that are open. Returns when their threads ended."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(_STOP_SECONDS)
        self._server.server_close()
        self._server.break_connections()


class _Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, app: App, host: str, port: int, clock: Clock) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.app = app
        self.clock = clock
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._strangers: dict[socket.socket, None] = {}
        super().__init__((host, port), _Connection)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or 503 when there are as many as there may be.

        Whoever lacks the secret takes no place away: the oldest connection that has not shown it, and
        on which nothing is being answered, makes room.
        """
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="agent", daemon=True
        )
        with self._lock:
            full = len(self._open) >= limits.MAX_AGENT_CONNECTIONS
            ousted = next(iter(self._strangers), None) if full else None
            if ousted is not None:
                full = False
                del self._strangers[ousted]
            if not full:
                self._open[request] = thread
                self._strangers[request] = None
        if ousted is not None:
            with contextlib.suppress(OSError):
                ousted.shutdown(socket.SHUT_RDWR)
        if not full:
            try:
                thread.start()
                return
            except RuntimeError:
                # The machine has no thread left, which is for us to bear and not for the caller to see.
                with self._lock:
                    del self._open[request], self._strangers[request]
        with contextlib.suppress(OSError):
            request.settimeout(0)
            request.send(_BUSY)
        self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One connection less; the endpoint goes on."""
        del request, client_address
        _LOG.error("a connection could not be taken: %s", type(sys.exception()).__name__)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception as exc:
            _log_bug(exc)
        finally:
            with self._lock:
                self._open.pop(request, None)
                self._strangers.pop(request, None)
            with contextlib.suppress(OSError):
                request.close()

    def keep(self, line: socket.socket, *, known: bool) -> None:
        """Whether a connection keeps its place: its user has shown the secret, or is being answered."""
        with self._lock:
            self._strangers.pop(line, None)
            if not known:
                self._strangers[line] = None

    def break_connections(self) -> None:
        """Wake every thread with an end of its connection and wait for it."""
        with self._lock:
            found = dict(self._open)
        for line in found:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in found.values():
            thread.join(max(0.0, deadline - time.monotonic()))


class _Broken(Exception):
    """The connection is of no use any more."""


class _Connection(socketserver.BaseRequestHandler):
    """One connection: requests one after the other."""

    server: _Server
    request: socket.socket

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = bytearray()
        self._known = False

    def handle(self) -> None:
        with contextlib.suppress(_Broken, OSError):
            while self._serve_one():
                pass

    def _serve_one(self) -> bool:
        try:
            head = self._read_head()
            if head is None:
                return False
            request = self._with_body(head)
        except Refused as refused:
            _LOG.info("refused before the endpoint looked at it: %d", refused.status)
            self._send(Answer(status=refused.status), method="GET", closes=True)
            self._linger()
            return False
        self.server.keep(self.request, known=True)
        self._reply(request, closes=head.closes)
        self.server.keep(self.request, known=self._known)
        if head.unread:
            self._linger()
        return not head.closes

    # -- in -----------------------------------------------------------------------------------------------

    def _read_head(self) -> Head | None:
        """The next head; None when the connection ended, or was idle for too long, before it began."""
        deadline = time.monotonic() + (limits.IO_TIMEOUT if self._held else limits.AGENT_IDLE)
        began = bool(self._held)
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > MAX_HEAD:
                raise Refused(431 if b"\r\n" in self._held[: limits.MAX_REQUEST_LINE + 2] else 414)
            if not self._receive(deadline):
                return None
            if not began:
                began, deadline = True, time.monotonic() + limits.IO_TIMEOUT
        data = bytes(self._held[:end])
        del self._held[: end + 4]
        return parse_head(data, port=self.server.port)

    def _with_body(self, head: Head) -> Request:
        if head.waits and head.body_size > len(self._held):
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = time.monotonic() + limits.IO_TIMEOUT
        while len(self._held) < head.body_size:
            if not self._receive(deadline):
                raise _Broken
        body = bytes(self._held[: head.body_size])
        del self._held[: head.body_size]
        return replace(head.request, body=body)

    def _receive(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        self.request.settimeout(left)
        try:
            chunk = self.request.recv(_CHUNK)
        except TimeoutError:
            return False
        self._held += chunk
        return bool(chunk)

    def _linger(self) -> None:
        """Read away some of what was refused: closing on unread bytes would reset the refusal, too.

        Source: RFC 9112 section 9.6.
        """
        self.request.shutdown(socket.SHUT_WR)
        left, deadline = limits.MAX_AGENT_LINGER, time.monotonic() + _LINGER_SECONDS
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            self.request.settimeout(min(1.0, seconds))
            chunk = self.request.recv(_CHUNK)
            if not chunk:
                return
            left -= len(chunk)

    # -- out ----------------------------------------------------------------------------------------------

    def _reply(self, request: Request, *, closes: bool) -> None:
        answer, pieces = self._begin(request)
        self._known = self._known or answer.status not in _UNKNOWN
        try:
            self._send(answer, method=request.method, closes=closes)
            if pieces is not None:
                self._stream(pieces, _length_of(answer))
        finally:
            # The tool may be gone: nothing is read ahead for nobody.
            if isinstance(answer.body, Generator):
                answer.body.close()

    def _begin(self, request: Request) -> tuple[Answer, Iterator[memoryview] | None]:
        """The answer and the pieces to send after it; what fails before the first of them is a refusal."""
        app = self.server.app
        try:
            answer = app.answer(request)
            if isinstance(answer.body, bytes) or request.method == "HEAD":
                return answer, None
            first = next(answer.body, None)
            return answer, chain(() if first is None else (first,), answer.body)
        except BrokerError as exc:
            _LOG.info("%s refused: %s", request.method, exc.code)
            return app.refusal(exc), None
        except Exception as exc:
            _log_bug(exc)
            return app.refusal(InternalError("the agent failed", why="its log names the place")), None

    def _send(self, answer: Answer, *, method: str, closes: bool) -> None:
        whole = answer.body if isinstance(answer.body, bytes) else b""
        sent = b"" if method == "HEAD" or answer.status in _BODILESS else whole
        self.request.settimeout(limits.AGENT_SEND_TIMEOUT)
        self.request.sendall(self._format_head(answer, closes=closes) + sent)

    def _format_head(self, answer: Answer, *, closes: bool) -> bytes:
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        fields = [*answer.headers, ("Date", formatdate(self.server.clock.now() / 1000, usegmt=True))]
        if answer.status not in _BODILESS:
            fields.append(("Content-Length", str(_length_of(answer))))
        if closes:
            fields.append(("Connection", "close"))
        for name, value in fields:
            if not value.isprintable():
                raise InternalError(f"the answer's header {name} is not one line of text")
            lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _stream(self, pieces: Iterator[memoryview], length: int) -> None:
        left = length
        try:
            for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise InternalError("a body is longer than it was said to be")
                self.request.sendall(piece)
            if left:
                raise InternalError("a body is shorter than it was said to be")
        except BrokerError as exc:
            _LOG.warning("a body was broken off: %s: %s", exc.code, exc.what)
            self._reset()
        except OSError:
            raise
        except Exception as exc:
            _log_bug(exc)
            self._reset()

    def _reset(self) -> NoReturn:
        """End the connection so that nobody takes what was sent for the whole."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise _Broken


def _length_of(answer: Answer) -> int:
    if answer.length is not None:
        return answer.length
    if isinstance(answer.body, bytes):
        return len(answer.body)
    raise InternalError("a body in pieces has no length")


def _log_bug(exc: Exception) -> None:
    # The place alone: the text of an exception may hold what was sent (I11).
    place = "".join(traceback.format_tb(exc.__traceback__))
    _LOG.error("a bug: %s at\n%s", type(exc).__name__, place)
