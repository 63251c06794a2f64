"""Real receivers of forwarded entries: syslog over TCP and TLS, and a webhook, each a server on loopback."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import standardwebhooks
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from syslog_rfc5424_parser import SyslogMessage

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="


def wait_for(condition: Callable[[], Any], *, seconds: float = 20.0) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited for too long"
        threading.Event().wait(0.005)
    return found


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A certificate authority of a test, and what it signs."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Files of a certificate for ``name`` (a host name or an address), and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            host: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            host = x509.DNSName(name)
        made = (
            _builder(name, key)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.SubjectAlternativeName([host]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        paths[1].chmod(0o600)
        return paths


def make_authority(folder: Path) -> Authority:
    """A new authority with its certificate in ``folder/ca.pem``."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        _builder("test authority", key)
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return Authority(folder=folder, key=key, certificate=made)


def _builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )


class SyslogServer:
    """A syslog receiver: counts octets as RFC 6587 has it, and parses with somebody else's grammar.

    Attributes:
        messages: Every message, in the order of arrival.
    """

    def __init__(self, *, certificate: tuple[Path, Path] | None = None, port: int = 0) -> None:
        self.messages: list[SyslogMessage] = []
        self.connections: list[socket.socket] = []
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def require_certificate(self, ca_file: Path) -> None:
        """Take no sender without a certificate of this authority."""
        assert self._context is not None
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(ca_file)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The JSON objects that came."""
        return [json.loads(message.msg) for message in list(self.messages)]

    @property
    def indices(self) -> list[int]:
        """Indices of the entries that came."""
        return [each["index"] for each in self.entries]

    def reset(self) -> None:
        """End every connection without a word, as a program that dies."""
        while self.connections:
            with suppress(OSError):
                socket.socket.shutdown(self.connections.pop(), socket.SHUT_RDWR)

    def close(self) -> None:
        # A thread that waits in accept() keeps the port: wake it.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            self.connections.append(connection)
            with connection, connection.makefile("rb") as stream:
                while frame := _frame(stream):
                    self.messages.append(SyslogMessage.parse(frame.decode("ascii")))
                if isinstance(connection, ssl.SSLSocket):
                    connection.unwrap()


def _frame(stream: Any) -> bytes:
    size = b""
    while (digit := stream.read(1)) != b" ":
        if not digit:
            return b""
        if not digit.isdigit():
            return b""
        size += digit
    data: bytes = stream.read(int(size))
    return data if len(data) == int(size) else b""


class WebhookServer(ThreadingHTTPServer):
    """A webhook's receiver that verifies with the reference library of Standard Webhooks.

    Attributes:
        bodies: The messages that it took, in their order.
        ids: Ids of every message that came, taken or not.
        answers: What it says to the next requests, one each: a status, or something to do instead.
    """

    daemon_threads = True

    def __init__(self, *, certificate: tuple[Path, Path] | None = None, port: int = 0) -> None:
        self.verifier = standardwebhooks.Webhook(SECRET)
        self.bodies: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.paths: list[str] = []
        self.answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = []
        super().__init__(("127.0.0.1", port), _Webhook)
        self.scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/hooks/ledger?team=soc"

    @property
    def indices(self) -> list[int]:
        """Indices of the entries that it took."""
        return [event["index"] for body in list(self.bodies) for event in body["data"]["events"]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Webhook(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebhookServer

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        self.server.ids.append(self.headers["webhook-id"])
        answer = self.server.answers.pop(0) if self.server.answers else 204
        if not isinstance(answer, int):
            answer(self)
            return
        if 200 <= answer < 300:
            verified = self.server.verifier.verify(data, dict(self.headers.items()))
            self.server.bodies.append(verified)
        self.reply(answer)

    def reply(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def webhook(**options: Any) -> Iterator[WebhookServer]:
    """A webhook's receiver for the duration of a with-block."""
    made = WebhookServer(**options)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
