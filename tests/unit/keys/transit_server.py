"""A transit engine on loopback, which can be told to misbehave in ways that a real one does not."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_INFO = {
    "type": "aes256-gcm96",
    "supports_encryption": True,
    "derived": False,
    "exportable": False,
    "allow_plaintext_backup": False,
    "min_decryption_version": 1,
}


class TransitServer(ThreadingHTTPServer):
    """One key named ``k``, one version of it, one AppRole.

    Attributes:
        secret: The transit key.
        binds: Whether it takes account of associated data, as servers of old did not.
        info: What it says of its key.
        tokens: The tokens that it accepts.
        lease: Seconds that it gives to a token.
        next: What it answers first, instead of the truth: (status, body, headers).
        seen: (method, path) of every request.
        headers: Headers of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secret = os.urandom(32)
        self.binds = True
        self.info: dict[str, Any] = dict(KEY_INFO)
        self.tokens = {"good-token"}
        self.lease = 3600
        self.next: deque[tuple[int, bytes, dict[str, str]]] = deque()
        self.seen: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, path: str) -> int:
        return sum(1 for _, each in self.seen if each == path)

    def answer(self, method: str, path: str, token: str | None, body: dict[str, str]) -> tuple[int, Any]:
        if path == "/v1/auth/approle/login":
            return self._log_in(body)
        if token not in self.tokens:
            return 403, {"errors": ["permission denied"]}
        if (method, path) == ("GET", "/v1/transit/keys/k"):
            return 200, {"data": self.info}
        aad = base64.b64decode(body.get("associated_data", "")) if self.binds else b""
        if path == "/v1/transit/encrypt/k":
            nonce = os.urandom(12)
            sealed = nonce + AESGCM(self.secret).encrypt(nonce, base64.b64decode(body["plaintext"]), aad)
            return 200, {"data": {"ciphertext": "vault:v1:" + base64.b64encode(sealed).decode()}}
        if path == "/v1/transit/decrypt/k":
            return self._decrypt(body["ciphertext"], aad)
        return 404, {"errors": []}

    def _log_in(self, body: dict[str, str]) -> tuple[int, Any]:
        if body != {"role_id": "role", "secret_id": "good-secret-id"}:
            return 400, {"errors": ["invalid role or secret ID"]}
        token = f"token-{os.urandom(8).hex()}"
        self.tokens.add(token)
        return 200, {"auth": {"client_token": token, "lease_duration": self.lease}}

    def _decrypt(self, text: str, aad: bytes) -> tuple[int, Any]:
        sealed = base64.b64decode(text.rpartition(":")[2])
        try:
            key = AESGCM(self.secret).decrypt(sealed[:12], sealed[12:], aad)
        except InvalidTag:
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": base64.b64encode(key).decode()}}


class _Handler(BaseHTTPRequestHandler):
    server: TransitServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path))
        self.server.headers.append(dict(self.headers.items()))
        if self.server.next:
            status, data, headers = self.server.next.popleft()
        else:
            token = self.headers.get("X-Vault-Token")
            status, found = self.server.answer(self.command, self.path, token, json.loads(body or b"{}"))
            data, headers = json.dumps(found).encode(), {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _serve

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def running() -> Iterator[TransitServer]:
    """The server, for the duration of a with-block."""
    server = TransitServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
