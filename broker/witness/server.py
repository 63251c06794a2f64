"""The witness over HTTP/1.1: two routes, small bodies, bounded connections and times.

It speaks plain HTTP; beyond one machine a TLS proxy stands before it. Who asks needs no credentials: what
counts is the log's signature on what is asked.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from broker.errors import BrokerError, ConfigurationError, UsageError
from broker.ledger.cosign import MAX_REQUEST
from broker.witness.service import Reply, WitnessService

ADD: Final = "/add-checkpoint"
MAX_CONNECTIONS: Final = 64
"""Connections at a time; one more is closed at once."""
REQUEST_SECONDS: Final = 20.0
"""From one answer to the next request's end: whoever is idle or slow for longer is cut off."""
_CHECKPOINT: Final = "/checkpoint"
_POLL_SECONDS: Final = 0.1
_LOG: Final = logging.getLogger("broker.witness")


class WitnessServer:
    """Serves a witness from threads of its own.

    Args:
        service: What decides.
        host: Address to listen on.
        port: 0 for any free one.

    Raises:
        UsageError: The address is taken, or is none.
    """

    def __init__(self, service: WitnessService, *, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            self._server = _Server(service, host, port)
        except (OSError, OverflowError) as exc:
            raise UsageError("the witness cannot listen there", why=str(exc)) from exc
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="witness", daemon=True
        )

    def start(self) -> None:
        """Take connections."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether connections are taken."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Take no more connections; what is being answered is answered."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, service: WitnessService, host: str, port: int) -> None:
        self.service = service
        self.stopping = False
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self.begin(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)
            self._room.release()

    def begin(self, request: socket.socket) -> None:
        """A connection's time for its next request begins."""
        with self._lock:
            self._open[request] = time.monotonic()

    def service_actions(self) -> None:
        """Called again and again while it serves: cut off who takes too long, byte by byte or silent."""
        self._cut_off(time.monotonic() - REQUEST_SECONDS, socket.SHUT_RDWR)

    def shutdown(self) -> None:
        self.stopping = True
        super().shutdown()
        # Whoever is idle waits to send what will not be answered: their reading side ends now.
        self._cut_off(time.monotonic(), socket.SHUT_RD)

    def _cut_off(self, before: float, how: int) -> None:
        with self._lock:
            found = [line for line, since in self._open.items() if since <= before]
        for line in found:
            with contextlib.suppress(OSError):
                line.shutdown(how)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One connection less; the witness goes on."""
        del request, client_address
        _LOG.exception("a connection failed")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "broker-witness"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def do_POST(self) -> None:
        if self.path != ADD:
            self._refuse(404, "there is only add-checkpoint here")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or "Transfer-Encoding" in self.headers:
            self._refuse(411, "a request needs its Content-Length")
        elif len(length) > 7 or int(length) > MAX_REQUEST:
            self._refuse(413, f"a request has at most {MAX_REQUEST} bytes")
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self._send(self._decide(body))
            else:
                self.close_connection = True

    def do_GET(self) -> None:
        hashed = self.path.removeprefix("/").removesuffix(_CHECKPOINT)
        if f"/{hashed}{_CHECKPOINT}" != self.path:
            self._refuse(404, "there is nothing here")
            return
        try:
            self._send(self.server.service.checkpoint(hashed))
        except BrokerError as exc:
            self._fail(exc)

    def _decide(self, body: bytes) -> Reply:
        try:
            return self.server.service.add_checkpoint(body)
        except ConfigurationError as exc:
            _LOG.error("nothing was cosigned: %s (%s)", exc.what, exc.why)
            return Reply(status=500, body=b"this witness cannot keep its state\n")

    def _fail(self, exc: BrokerError) -> None:
        _LOG.error("a checkpoint cannot be shown: %s (%s)", exc.what, exc.why)
        self._send(Reply(status=500, body=b"this witness cannot read its state\n"))

    def _refuse(self, status: int, why: str) -> None:
        # Its body was not read: the connection is of no use any more.
        self.close_connection = True
        self._send(Reply(status=status, body=f"{why}\n".encode()))

    def _send(self, reply: Reply) -> None:
        if self.server.stopping:
            self.close_connection = True
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)
        self.server.begin(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """One line for each answer, without what was sent."""
        _LOG.info("%s %s", self.address_string(), format % args)
