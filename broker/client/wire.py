"""HTTP to the broker: one request, one bounded answer, and problem documents as our own errors.

Redirects are never followed: a proof is made for one URL, and a token goes to one server.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3

from broker import __version__, limits
from broker.canonical import Json, parse_json_object
from broker.errors import (
    BrokerError,
    ClockSkew,
    Denied,
    IntegrityFailure,
    MalformedRequest,
    NonceRequired,
    RateLimited,
    Unreachable,
    find_error_class,
)

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 60.0
MAX_ANSWER: Final = 32 * limits.MIB
"""Bytes of an answer, unless the call declares its own limit."""
MAX_PROBLEM: Final = 256 * limits.KIB
_MAX_SHOWN: Final = 1000
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A complete answer: status, headers in lower case, and the bytes of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Json:
        """The body as a JSON object.

        Raises:
            Unreachable: It is not one: what answered is not the broker.
        """
        try:
            return parse_json_object(self.body)
        except MalformedRequest as exc:
            raise Unreachable("the server's answer is not JSON", why="is the URL that of a broker?") from exc

    def text(self) -> str:
        """The body as text.

        Raises:
            Unreachable: It is not UTF-8.
        """
        try:
            return self.body.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise Unreachable("the server's answer is not text") from exc


class Wire:
    """Connections to one server, kept alive and shared by any number of threads."""

    def __init__(self, server: str) -> None:
        self._base = server
        self._origin = urlsplit(server)
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=8,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
            headers={"User-Agent": f"model-access-broker/{__version__}"},
        )

    def url_of(self, path: str) -> str:
        """The absolute URL of an encoded path, as proofs name it."""
        return self._base + path

    def send(
        self, method: str, path: str, *, query: str, headers: Mapping[str, str], body: bytes, max_size: int
    ) -> Answer:
        """One request and its whole answer, whatever its status.

        Raises:
            Unreachable: No connection, or it broke before the answer was whole. Whether the server
                saw the request is not known.
            IntegrityFailure: The answer is larger than ``max_size``.
        """
        response = self._open(method, path, query=query, headers=headers, body=body)
        limit = max_size if response.status < 300 else MAX_PROBLEM
        try:
            data = response.read(limit + 1, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            response.close()
            raise self._unreachable(exc) from exc
        if len(data) > limit:
            response.close()
            raise IntegrityFailure("the server's answer is larger than any that this call has")
        response.release_conn()
        return Answer(status=response.status, headers=_lower(response.headers), body=data)

    def stream(
        self, method: str, path: str, *, query: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[Answer, Iterator[bytes]]:
        """One request; the body of a good answer comes in chunks of at most 256 KiB as it arrives.

        Raises:
            Unreachable: As for :meth:`send`; also while the chunks are read.
        """
        response = self._open(method, path, query=query, headers=headers, body=body)
        headers_found = _lower(response.headers)
        if response.status >= 300:
            data = response.read(MAX_PROBLEM, decode_content=False)
            response.close()
            return Answer(status=response.status, headers=headers_found, body=data), iter(())
        return Answer(status=response.status, headers=headers_found, body=b""), self._chunks(response)

    def _chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            yield from response.stream(256 * limits.KIB, decode_content=False)
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise self._unreachable(exc) from exc
        finally:
            response.close()

    def _open(
        self, method: str, path: str, *, query: str, headers: Mapping[str, str], body: bytes
    ) -> urllib3.BaseHTTPResponse:
        url = self._base + path + (f"?{query}" if query else "")
        merged = {**self._pool.headers, **headers, "Accept-Encoding": "identity"}
        try:
            return self._pool.request(
                method,
                url,
                body=body if body or method in ("POST", "PUT", "PATCH") else None,
                headers=merged,
                preload_content=False,
                redirect=False,
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise self._unreachable(exc) from exc

    def _unreachable(self, exc: Exception) -> Unreachable:
        # The library's own text may hold the whole URL with its query: only the kind of failure is kept.
        kind = type(exc).__name__
        if isinstance(exc, urllib3.exceptions.SSLError):
            kind = "its TLS certificate is not accepted"
        return Unreachable(
            f"the broker at {self._origin.scheme}://{self._origin.netloc} does not answer",
            why=kind,
            next="check the server's URL and that it is running",
        )

    def close(self) -> None:
        """Close every idle connection."""
        self._pool.clear()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


# -- problems -----------------------------------------------------------------------------------------


def error_of(answer: Answer, *, now: int) -> BrokerError:
    """The error that a problem document, or an OAuth error, stands for.

    What the server says is shown to a person, so control characters are taken out and it is cut.

    Args:
        now: This machine's clock, milliseconds since 1970: names the difference when the clocks disagree.

    Source: RFC 9457, RFC 6749 section 5.2.
    """
    problem = _parse_problem(answer)
    code = _shown(problem.get("code") or problem.get("error")) or ""
    kind = find_error_class(code, answer.status)
    what = _shown(problem.get("detail") or problem.get("error_description") or problem.get("title"))
    what = what or f"the server answered {answer.status}"
    why, advice = _shown(problem.get("why")), _shown(problem.get("next"))
    if kind.code == "internal" and problem.get("request_id"):
        why = f"the server's log has it under {_shown(problem['request_id'])}"
    if issubclass(kind, Denied):
        return kind(what, why=why, next=advice, policies=_policies(problem.get("policies")))
    if issubclass(kind, RateLimited):
        return kind(what, why=why, next=advice, retry_after=_retry_after(answer, problem))
    if issubclass(kind, NonceRequired):
        return kind(what, nonce=answer.headers.get("dpop-nonce", ""), why=why, next=advice)
    if issubclass(kind, ClockSkew):
        return kind(what, why=_skew(answer, now) or why, next=advice or "set this machine's clock")
    return kind(what, why=why, next=advice)


def _parse_problem(answer: Answer) -> Json:
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _shown(value: Any) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    return "".join("?" if unicodedata.category(ch) in _UNSAFE else ch for ch in value[:_MAX_SHOWN])


def _policies(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(shown for shown in map(_shown, value[: limits.MAX_POLICIES]) if shown)


def _retry_after(answer: Answer, problem: Json) -> int:
    value = problem.get("retry_after") or answer.headers.get("retry-after") or 1
    text = str(value)
    return min(int(text), 3600) if text.isascii() and text.isdigit() else 1


def _skew(answer: Answer, now: int) -> str | None:
    try:
        server = parsedate_to_datetime(answer.headers["date"])
        seconds = round(now / 1000 - server.timestamp())
    except (KeyError, ValueError, TypeError):
        return None
    side = "ahead of" if seconds > 0 else "behind"
    return f"this machine's clock is {abs(seconds)} s {side} the server's"
