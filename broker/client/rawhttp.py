"""A minimal HTTP/1.1 client for the data plane: one socket, no copies, nothing that is not needed.

Bytes of a body land straight in the caller's buffer. Only hosts of the profile are contacted, http only
on loopback, redirects never followed, and an answer must be exactly the range that was asked for.

**Source**: RFC 9112 (framing), RFC 9110 sections 14.4 and 15.3.7 (Content-Range, 206).
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from broker import __version__, limits
from broker.client.settings import is_loopback
from broker.errors import BrokerError, IntegrityFailure, StoreUnavailable, Unavailable, Unreachable

CONNECT_TIMEOUT: Final = 10.0
IDLE_TIMEOUT: Final = 30.0
"""Seconds without a byte after which a connection counts as broken."""
_DRAIN: Final = 64 * limits.KIB
_STATUS_RE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?")
_HEADER_RE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*?)[ \t]*")
_LENGTH_RE: Final = re.compile(r"0|[1-9][0-9]{0,15}")


class UrlExpired(BrokerError):
    """The store no longer takes this URL; a fresh lease has one that it takes. Never leaves the client."""

    code = "unavailable"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A presigned URL, taken apart. It stays out of every repr (I11)."""

    secure: bool
    host: str
    port: int
    netloc: str
    path: str = field(repr=False)

    @property
    def address(self) -> tuple[bool, str, int]:
        """What a kept-alive connection is good for."""
        return self.secure, self.host, self.port


def parse_target(url: str, store_hosts: Sequence[str]) -> Target:
    """The parts of a URL that the profile allows.

    Raises:
        IntegrityFailure: Its host is not one of the profile's stores, or it is not a URL that can be sent
            as it is. The URL is not repeated.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise IntegrityFailure("a lease holds something that is not a URL") from exc
    plain = url.isascii() and url.isprintable() and " " not in url and "@" not in parts.netloc
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise IntegrityFailure("a lease holds something that is not a URL of a store")
    secure = parts.scheme == "https"
    default = 443 if secure else 80
    shown = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    allowed = {f"{shown}:{port or default}"} | ({shown} if port in (None, default) else set[str]())
    if not allowed & set(store_hosts):
        raise IntegrityFailure(
            f"a lease names a store that this profile does not list: {shown}:{port or default}",
            next="if it is right, add it to store_hosts in the profile's config.toml",
        )
    if not secure and not is_loopback(parts.hostname):
        raise IntegrityFailure("a lease names a store over http beyond this machine")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure=secure, host=parts.hostname, port=port or default, netloc=parts.netloc, path=path)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Connection:
    """One connection to one store. Not shared between threads; :meth:`abort` may come from another."""

    def __init__(self, target: Target) -> None:
        self.address = target.address
        self._socket = self._connect(target)
        self._held = bytearray()
        self.reusable = True

    def _connect(self, target: Target) -> socket.socket:
        try:
            plain = socket.create_connection((target.host, target.port), timeout=CONNECT_TIMEOUT)
        except OSError as exc:
            raise _broken(exc) from exc
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found = _tls().wrap_socket(plain, server_hostname=target.host) if target.secure else plain
            found.settimeout(IDLE_TIMEOUT)
        except ssl.SSLCertVerificationError as exc:
            plain.close()
            raise StoreUnavailable("the store's TLS certificate is not accepted") from exc
        except OSError as exc:
            plain.close()
            raise _broken(exc) from exc
        return found

    def abort(self) -> None:
        """Wake whoever reads or writes here with an error. Safe from any thread, any time."""
        self.reusable = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.reusable = False
        with contextlib.suppress(OSError):
            self._socket.close()

    # -- GET ----------------------------------------------------------------------------------------------

    def get_range(self, target: Target, byte_range: str, *, start: int, length: int) -> None:
        """Ask for a range; after this, exactly ``length`` bytes can be read with :meth:`read_into`.

        Args:
            target: Of this connection's address.
            byte_range: The value of the ``Range`` header, exactly as the URL's signature covers it.
            start: First byte of that range.
            length: Bytes of that range.

        Raises:
            UrlExpired: The store refuses the URL (403).
            IntegrityFailure: The answer is another range, or the object ends before it.
            StoreUnavailable: The object is not there, or the answer is none that a range request has.
            Unreachable: The connection broke, or the store has trouble; trying again may help.
        """
        self._send(_request("GET", target, {"Range": byte_range}))
        status, headers = self._read_head()
        if status != 206:
            self.reusable = False
            raise _refusal(status)
        if "transfer-encoding" in headers or headers.get("content-encoding", "identity") != "identity":
            raise IntegrityFailure("the store's answer is encoded where plain bytes were asked for")
        found = headers.get("content-range", "").partition("/")[0]
        if found != f"bytes {start}-{start + length - 1}" or headers.get("content-length") != str(length):
            self.reusable = False
            raise IntegrityFailure("the store answered with another range than was asked for")

    def read_into(self, view: memoryview) -> None:
        """Fill the whole buffer from the body.

        Raises:
            Unreachable: The connection broke first.
        """
        size = len(view)
        at = min(len(self._held), size)
        if at:
            view[:at] = self._held[:at]
            del self._held[:at]
        try:
            while at < size:
                got = self._socket.recv_into(view[at:])
                if not got:
                    raise ConnectionError("closed by the store")
                at += got
        except OSError as exc:
            self.reusable = False
            raise _broken(exc) from exc

    # -- PUT ----------------------------------------------------------------------------------------------

    def put(
        self, target: Target, headers: Mapping[str, str], pieces: Iterable[memoryview], *, size: int
    ) -> int:
        """Send a body of ``size`` bytes; returns the status when it is 200, 204 or 412 (already there).

        Raises:
            UrlExpired: The store refuses the URL (403).
            StoreUnavailable: The store refuses the object for good.
            Unreachable: The connection broke, or the store has trouble; trying again may help.
        """
        try:
            self._send(_request("PUT", target, {**headers, "Content-Length": str(size)}))
            sent = 0
            for piece in pieces:
                self._socket.sendall(piece)
                sent += len(piece)
            if sent != size:
                self.reusable = False
                raise Unavailable("a part came out with another size than it was planned with")
        except OSError as exc:
            self.reusable = False
            # A store that refuses early answers before the body is through, and closes.
            with contextlib.suppress(BrokerError):
                return self._finish_put()
            raise _broken(exc) from exc
        return self._finish_put()

    def _finish_put(self) -> int:
        status, headers = self._read_head()
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not _LENGTH_RE.fullmatch(length) or int(length) > _DRAIN:
            self.reusable = False
        else:
            self.read_into(memoryview(bytearray(int(length))))
        if status in (200, 201, 204, 412):
            return status
        self.reusable = False
        raise _refusal(status)

    # -- framing --------------------------------------------------------------------------------------------

    def _send(self, head: bytes) -> None:
        try:
            self._socket.sendall(head)
        except OSError as exc:
            self.reusable = False
            raise _broken(exc) from exc

    def _read_head(self) -> tuple[int, dict[str, str]]:
        end = self._fill_until(b"\r\n\r\n")
        head = bytes(self._held[:end])
        del self._held[: end + 4]
        line, *rest = head.split(b"\r\n")
        match = _STATUS_RE.fullmatch(line)
        if match is None:
            self.reusable = False
            raise Unreachable("the store does not speak HTTP/1.1")
        headers = self._parse_headers(rest)
        if headers.get("connection", "").lower() == "close" or line.startswith(b"HTTP/1.0"):
            self.reusable = False
        return int(match[1]), headers

    def _parse_headers(self, lines: list[bytes]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for line in lines:
            match = _HEADER_RE.fullmatch(line)
            name = match[1].decode("ascii").lower() if match else ""
            # A second length or range would leave open which one counts.
            if match is None or (name in headers and name in ("content-length", "content-range")):
                self.reusable = False
                raise IntegrityFailure("the store's answer has malformed or repeated headers")
            headers[name] = match[2].decode("latin-1")
        return headers

    def _fill_until(self, mark: bytes) -> int:
        while True:
            end = self._held.find(mark)
            if end >= 0:
                return end
            if len(self._held) > limits.MAX_HEADERS:
                self.reusable = False
                raise IntegrityFailure("the store's answer has more headers than any can have")
            try:
                more = self._socket.recv(16 * limits.KIB)
            except OSError as exc:
                self.reusable = False
                raise _broken(exc) from exc
            if not more:
                self.reusable = False
                raise _broken(ConnectionError("closed by the store"))
            self._held += more


def _request(method: str, target: Target, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"{method} {target.path} HTTP/1.1",
        f"Host: {target.netloc}",
        f"User-Agent: model-access-broker/{__version__}",
        "Accept-Encoding: identity",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise IntegrityFailure("a URL or header of a lease has a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _broken(exc: Exception) -> Unreachable:
    kind = "it was too slow" if isinstance(exc, TimeoutError) else type(exc).__name__
    return Unreachable(
        "the object store does not answer", why=kind, next="the same command again resumes what is done"
    )


def _refusal(status: int) -> BrokerError:
    if status == 403:
        return UrlExpired("the store does not take this URL any more")
    if status == 404:
        return StoreUnavailable("the store lacks an object of this version")
    if status == 416:
        return IntegrityFailure("an object is shorter than its publisher signed")
    if status == 200:
        return IntegrityFailure("the store answered with a whole object where a range was asked for")
    if 300 <= status < 400:
        return StoreUnavailable("the store redirects; redirects are not followed")
    if status in (408, 429) or status >= 500:
        return Unreachable(f"the object store has trouble: it answered {status}")
    return StoreUnavailable(f"the object store refuses the request: it answered {status}")


class ConnectionCache:
    """The kept-alive connections of one thread; :meth:`abort` may come from another."""

    def __init__(self) -> None:
        self._open: dict[tuple[bool, str, int], Connection] = {}

    def take(self, target: Target) -> Connection:
        """A connection to the target's store: the one that is open, else a new one.

        Raises:
            Unreachable: It cannot be made.
        """
        found = self._open.pop(target.address, None)
        if found is not None and found.reusable:
            self._open[target.address] = found
            return found
        if found is not None:
            found.close()
        # Listed before it is looked at again: an abort from now on finds it.
        fresh = self._open[target.address] = Connection(target)
        return fresh

    def drop(self, target: Target) -> None:
        """Close the connection to this store: what is on it is not known."""
        found = self._open.pop(target.address, None)
        if found is not None:
            found.close()

    def abort(self) -> None:
        """Wake the owner with an error, whatever it waits for."""
        for connection in list(self._open.values()):
            connection.abort()

    def close(self) -> None:
        """Close everything."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()
