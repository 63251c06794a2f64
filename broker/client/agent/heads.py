"""What an agent's endpoint takes for a request: the head of one, parsed strictly, and the guards before it.

The guards keep web pages out, which can make a browser of this machine send requests to loopback: a page
cannot name the endpoint by its address (DNS rebinding needs a name), and a browser says where a request
comes from. Everything that is not exactly a request of a tool is refused with a bare status.

**Source**: RFC 9112 (syntax and framing; section 3.2.2: a whole URL as target), RFC 9110 section 7.2 (Host),
Fetch section 3.1 (``Origin``), W3C Fetch Metadata section 2 (``Sec-Fetch-*``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker import limits

MAX_HEAD: Final = limits.MAX_REQUEST_LINE + limits.MAX_HEADERS + 4
"""Bytes of a request line and its headers, with the line ends between and after them."""
_LINE_RE: Final = re.compile(rb"([A-Z]{1,16}) (?:http://([0-9.:\[\]]+))?(/[!-~]*) HTTP/1\.([01])")
"""Method, authority (when the target is a whole URL, as AWS's own runtime sends it), path and query."""
_FIELD_RE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([ \t!-~\x80-\xff]*)")
_LENGTH_RE: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_BODILESS: Final = ("GET", "HEAD")


class Refused(Exception):
    """A request that no app sees; the answer is the status alone. Never leaves the agent."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that passed the guards. What may hold a secret stays out of its repr (I11)."""

    method: str
    """In capitals, as sent."""
    raw_path: str
    """As sent, still encoded: ASCII that begins with ``/``, without the query."""
    query: str = field(repr=False)
    """As sent, still encoded; "" when there is none."""
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case, each of them once."""
    body: bytes = field(default=b"", repr=False)
    """Of a POST, at most ``limits.MAX_AGENT_BODY`` bytes; the body of any other method is never read."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A parsed head: the request without its body, and what follows from it for the connection."""

    request: Request
    body_size: int
    """Bytes of body that are to be read: 0 unless it is a POST."""
    waits: bool
    """The sender waits for ``100 Continue`` before it sends the body."""
    closes: bool
    """The connection ends after the answer."""
    unread: bool
    """A body follows that nobody reads."""


def parse_head(data: bytes, *, port: int) -> Head:
    """The head of a request to the endpoint at ``port``; ``data`` ends before the empty line.

    Raises:
        Refused: It is too long (414, 431), of another HTTP version (505), not a request (400), for
            another host (421), from a web page (403), or has a body that is not taken (400, 411, 413).
    """
    line, _, rest = data.partition(b"\r\n")
    if len(line) > limits.MAX_REQUEST_LINE:
        raise Refused(414)
    if len(rest) > limits.MAX_HEADERS:
        raise Refused(431)
    found = _LINE_RE.fullmatch(line)
    if found is None or b"#" in found[3]:
        raise Refused(400)
    if found[4] != b"1":
        raise Refused(505)
    headers = _parse_fields(rest)
    _check_source(headers, port)
    if found[2] is not None and found[2].decode("ascii") != headers["host"]:
        raise Refused(421)
    path, _, query = found[3].decode("ascii").partition("?")
    return _frame(Request(method=found[1].decode("ascii"), raw_path=path, query=query, headers=headers))


def _parse_fields(data: bytes) -> dict[str, str]:
    lines = data.split(b"\r\n") if data else []
    if len(lines) > limits.MAX_HEADER_FIELDS:
        raise Refused(431)
    headers: dict[str, str] = {}
    for line in lines:
        found = _FIELD_RE.fullmatch(line)
        name = found[1].decode("ascii").lower() if found else ""
        # Two headers of one name are two stories about one request: which one was checked?
        if found is None or name in headers:
            raise Refused(400)
        headers[name] = found[2].strip(b" \t").decode("latin-1")
    return headers


def _check_source(headers: Mapping[str, str], port: int) -> None:
    if headers.get("host") not in (f"127.0.0.1:{port}", f"[::1]:{port}"):
        raise Refused(421)
    if "origin" in headers or any(name.startswith("sec-") for name in headers):
        raise Refused(403)


def _frame(request: Request) -> Head:
    headers = request.headers
    length, encoding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and (encoding is not None or not _LENGTH_RE.fullmatch(length)):
        raise Refused(400)
    size = int(length or 0)
    some = size > 0 or encoding is not None
    if some and request.method in _BODILESS:
        raise Refused(400)
    if request.method == "POST" and encoding is not None:
        raise Refused(411)
    if request.method == "POST" and size > limits.MAX_AGENT_BODY:
        raise Refused(413)
    taken = request.method == "POST"
    options = {word.strip().lower() for word in headers.get("connection", "").split(",")}
    return Head(
        request=request,
        body_size=size if taken else 0,
        waits=headers.get("expect", "").lower() == "100-continue",
        closes="close" in options or (some and not taken),
        unread=some and not taken,
    )
