"""Syslog over TCP and TLS: one RFC 5424 message for each entry, counted in octets.

Syslog has no acknowledgement. What stands in for one here:

* A delivery counts once the receiver's own kernel has confirmed every byte (``SIOCOUTQ`` is 0), not when
  ours has taken them. What is lost with our kernel's buffers was not delivered, and comes again.
* What the receiver's kernel has and its program never read is lost when that program or machine dies. So
  where a connection ends that was not ended by us, all that was sent in the last :data:`DOUBT_SECONDS` that
  it was seen to live counts as doubtful and is sent again; and where we were killed, so are the newest
  :data:`UNSURE` entries.
* On a planned end we stop sending and wait for the receiver to close: it has read everything then.

A receiver that reads more than :data:`DOUBT_SECONDS` behind and dies can still lose messages: indices are
dense, so it can tell which.

**Source**: RFC 5424; RFC 6587 section 3.4.1 (octet counting); RFC 5425 (TLS); tcp(7) (``SIOCOUTQ``).
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from broker.canonical import format_time
from broker.errors import Unavailable
from broker.outbox import Forwarded

FACILITY: Final = 13
"""Log audit."""
APP_NAME: Final = "model-access-broker"
DOUBT_SECONDS: Final = 30.0
"""How far behind its network a receiver may read."""
UNSURE: Final = 256
_CHUNK: Final = 65_536
_POLL_SECONDS: Final = 0.001
_MAX_POLL_SECONDS: Final = 0.05
_MAX_HOSTNAME: Final = 255
_MAX_SEQUENCE: Final = 2**31 - 1
_MAX_DELIVERIES: Final = 4_096
_READS: Final = 64


class SyslogReceiver:
    """Implements ``outbox.Receiver`` over one connection, opened when there is something to send.

    Args:
        host: Name or address.
        port: TCP port.
        context: For TLS, with the authorities to believe and the host name verified; None sends in clear.
        hostname: Who says that it speaks, in each message.
        version: Of this software, in each message.
        timeout: Seconds that one delivery may take.
        doubt: See :data:`DOUBT_SECONDS`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        context: ssl.SSLContext | None,
        hostname: str,
        version: str,
        timeout: float,
        doubt: float = DOUBT_SECONDS,
    ) -> None:
        self._address: Final = (host, port)
        self._context: Final = context
        self._hostname: Final = hostname
        self._version: Final = version
        self._timeout: Final = timeout
        self._doubt: Final = doubt
        self._socket: socket.socket | None = None
        self._sent: Final[deque[tuple[int, float]]] = deque(maxlen=_MAX_DELIVERIES)
        self._seen = 0.0
        self._doubtful: int | None = None
        self._sequence = 0

    @property
    def unsure(self) -> int:
        """:data:`UNSURE`: a killed sender does not know what was read."""
        return UNSURE

    def deliver(self, messages: Sequence[Forwarded]) -> None:
        """Send these, and wait until the receiver's kernel has confirmed every byte.

        Raises:
            Unavailable: No connection, no TLS with a certificate that holds, or not confirmed in time.
        """
        deadline = time.monotonic() + self._timeout
        connection = self._connected(deadline)
        try:
            self._sent.append((messages[0].index, time.monotonic()))
            for chunk in _chunks(self._frame(message) for message in messages):
                connection.settimeout(_left(deadline))
                connection.sendall(chunk)
            _await_confirmed(connection, deadline)
            if not _is_open(connection):
                raise ConnectionResetError
            self._seen = time.monotonic()
        except (OSError, ValueError) as exc:
            self._drop()
            raise Unavailable("the receiver does not read", why=_why(exc)) from exc

    def doubtful(self) -> int | None:
        """Index of the oldest message that is in doubt since a connection ended; None when none is."""
        if self._socket is not None:
            if _is_open(self._socket):
                self._seen = time.monotonic()
            else:
                self._drop()
        return self._doubtful

    def close(self) -> bool:
        """Stop sending, and wait for the receiver to close; whether it has read everything."""
        connection, self._socket = self._socket, None
        if connection is None:
            return True
        with connection:
            read = _await_end(connection, time.monotonic() + min(self._timeout, 5.0))
        self._sent.clear()
        return read

    def _connected(self, deadline: float) -> socket.socket:
        try:
            return self._open(deadline)
        except ssl.SSLCertVerificationError as exc:
            raise Unavailable("the receiver's certificate does not hold", why=exc.verify_message) from exc
        except (OSError, ValueError) as exc:
            raise Unavailable("the receiver cannot be reached", why=_why(exc)) from exc

    def _open(self, deadline: float) -> socket.socket:
        if self._socket is not None:
            return self._socket
        connection = socket.create_connection(self._address, timeout=_left(deadline))
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_hostname=self._address[0])
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        # What was in doubt comes again over this one: the caller went back for it before it called.
        self._doubtful = None
        self._sent.clear()
        return connection

    def _drop(self) -> None:
        """The connection ended, and not by us."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        # What was sent long before it was seen to live was read by then.
        limit = self._seen - self._doubt
        young = [index for index, sent in self._sent if sent >= limit]
        if young:
            self._doubtful = min(young)
        self._sent.clear()

    def _frame(self, message: Forwarded) -> bytes:
        self._sequence = self._sequence % _MAX_SEQUENCE + 1
        text = syslog_message(
            message, hostname=self._hostname, version=self._version, sequence=self._sequence
        )
        return b"%d %s" % (len(text), text)


def syslog_message(message: Forwarded, *, hostname: str, version: str, sequence: int) -> bytes:
    """One message, in ASCII: the entry's time and type in the header, its JSON object as the text.

    Args:
        message: The entry.
        hostname: Of the originator; at most 255 printable ASCII characters, or ``-``.
        version: Of this software.
        sequence: How many messages this process has sent to this receiver, from 1 to 2^31 - 1.

    **Source**: RFC 5424 sections 6 and 7 (``origin``, ``meta``).
    """
    head = f"<{8 * FACILITY + message.severity}>1 {format_time(message.time)} {hostname} {APP_NAME} -"
    origin = f'[origin software="{APP_NAME}" swVersion="{version}"]'
    data = f'{origin}[meta sequenceId="{sequence}"]'
    # ASCII, so without the byte order mark that UTF-8 text would begin with and that parsers trip over.
    return f"{head} {message.type} {data} ".encode("ascii") + message.body


def syslog_hostname(host: str | None) -> str:
    """A host as a header has it: ``-`` where it is not one that fits.

    **Source**: RFC 5424 section 6.2.4.
    """
    fits = host is not None and 0 < len(host) <= _MAX_HOSTNAME
    return host if host is not None and fits and all("!" <= ch <= "~" for ch in host) else "-"


def _chunks(frames: Iterator[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for frame in frames:
        held += frame
        if len(held) >= _CHUNK:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _unconfirmed(connection: socket.socket) -> int:
    """Bytes that the receiver's kernel has not confirmed yet."""
    found: int = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return found


def _await_confirmed(connection: socket.socket, deadline: float) -> None:
    pause = _POLL_SECONDS
    while _unconfirmed(connection):
        # A connection that was reset has what was not confirmed for ever.
        if not _is_open(connection):
            raise ConnectionResetError
        threading.Event().wait(min(pause, _left(deadline)))
        pause = min(2 * pause, _MAX_POLL_SECONDS)


def _is_open(connection: socket.socket) -> bool:
    """Whether the receiver has not closed. What it says is read away: syslog answers nothing."""
    connection.settimeout(0)
    try:
        for _ in range(_READS):
            if not connection.recv(4096):
                return False
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False  # it talks and talks: that is no syslog receiver


def _await_end(connection: socket.socket, deadline: float) -> bool:
    try:
        connection.settimeout(_left(deadline))
        if isinstance(connection, ssl.SSLSocket):
            return _say_goodbye(connection)
        connection.shutdown(socket.SHUT_WR)
        for _ in range(_READS):
            connection.settimeout(_left(deadline))
            if not connection.recv(4096):
                return True
    except (OSError, ValueError):
        return False
    return False


def _say_goodbye(connection: ssl.SSLSocket) -> bool:
    """Whether the receiver ends after our close_notify: so it has read everything before that."""
    try:
        connection.unwrap()
    except (ConnectionError, TimeoutError):
        return False
    except OSError as exc:
        # Many end without a close_notify of their own: GnuTLS in rsyslog, for one.
        return isinstance(exc, ssl.SSLEOFError) or exc.errno == 0
    return True


def _why(exc: BaseException) -> str:
    """The error without addresses or text of the other side."""
    return getattr(exc, "strerror", None) or type(exc).__name__
