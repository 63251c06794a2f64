"""From the WSGI environment to a signed request: the exact bytes, or a refusal.

What was signed and what is routed and parsed must be one and the same, whatever stands in front, so
everything with two readings is refused here: a path in another than its canonical encoding, a header
that came twice, a body whose length is not said, an encoded body.

**Source**: PEP 3333; RFC 9110, RFC 9112 section 6, RFC 9449 section 4.3.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, unquote_to_bytes

from broker import limits
from broker.errors import (
    InvalidProof,
    InvalidRequest,
    InvalidToken,
    MalformedRequest,
    NotAuthenticated,
    TooLarge,
    UnsupportedMediaType,
)
from broker.identity.proof import check_raw_path, encode_path
from broker.services.authn import SignedRequest

Environ = Mapping[str, Any]

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

_CHUNK: Final = 64 * limits.KIB
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_.-]+")
_AUTHORIZATION: Final = re.compile(r"(?i:DPoP) ([^ ]+)")
_CHARSET: Final = re.compile(r"(?:\s*;\s*charset=\"?utf-8\"?)?\s*", re.IGNORECASE)


# -- the line and the headers ---------------------------------------------------------------------------


def read_target(environ: Environ) -> tuple[str, bytes]:
    """(path, query) exactly as they came over the wire: the path still encoded, the query without ``?``.

    Raises:
        MalformedRequest: Another form than ``/path?query``; a path that is not the canonical encoding of
            what it decodes to; or the server routed something else than it received.
        TooLarge: More than ``limits.MAX_URL`` bytes.
    """
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw is None:
        raw = _rebuild_target(environ)
    if len(raw) > limits.MAX_URL:
        raise TooLarge(f"the URL of a request has at most {limits.MAX_URL} bytes")
    if not raw.startswith("/") or "#" in raw or not raw.isascii():
        raise MalformedRequest("the target of a request is a path and a query")
    path, _, query = raw.partition("?")
    check_raw_path(path)
    routed = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1")
    if unquote_to_bytes(path) != routed or environ.get("SCRIPT_NAME") or query != environ["QUERY_STRING"]:
        raise MalformedRequest("the request was received as one target and routed as another")
    return path, query.encode("ascii")


def _rebuild_target(environ: Environ) -> str:
    # A server that hides the raw target: only the one canonical spelling can have been signed.
    try:
        path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8")
    except UnicodeError as exc:
        raise MalformedRequest("the path of the request is not UTF-8") from exc
    query = environ.get("QUERY_STRING", "")
    return encode_path(path) + (f"?{query}" if query else "")


def check_headers(environ: Environ) -> None:
    """Nothing about the headers has two readings.

    Raises:
        TooLarge: Together more than ``limits.MAX_HEADERS`` bytes.
        MalformedRequest: ``Host`` twice, or a ``Transfer-Encoding``: bodies come with their length.
        UnsupportedMediaType: A ``Content-Encoding``: the body's bytes are what is signed.
    """
    size = sum(len(name) + len(str(value)) for name, value in environ.items() if name.startswith("HTTP_"))
    if size > limits.MAX_HEADERS:
        raise TooLarge(f"the headers of a request have at most {limits.MAX_HEADERS} bytes")
    if re.search(r"[,\s]", environ.get("HTTP_HOST", "")):
        raise MalformedRequest("the request has more than one Host header")
    if "HTTP_TRANSFER_ENCODING" in environ:
        raise MalformedRequest("a body is sent with Content-Length, not with Transfer-Encoding")
    if "HTTP_CONTENT_ENCODING" in environ:
        raise UnsupportedMediaType("a body is sent as it is, without Content-Encoding")


def find_access_token(environ: Environ) -> str | None:
    """The token of ``Authorization: DPoP <token>``, or None when there is no such header.

    Servers join a repeated header with commas; a token has none, so a repetition is refused (I08).

    Raises:
        NotAuthenticated: Another scheme.
        InvalidToken: What follows the scheme cannot be one token.
    """
    value = environ.get("HTTP_AUTHORIZATION")
    if value is None:
        return None
    match = _AUTHORIZATION.fullmatch(value)
    if match is None:
        raise NotAuthenticated(
            "the request carries no access token that this server takes",
            why="header Authorization: DPoP <token>",
        )
    token = match[1]
    if len(token) > limits.MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise InvalidToken("the Authorization header does not hold one access token")
    return token


def find_proof(environ: Environ) -> str | None:
    """The value of the one ``DPoP`` header, or None when there is none.

    Raises:
        InvalidProof: It was sent twice, or cannot be a proof.
    """
    value = environ.get("HTTP_DPOP")
    if value is None:
        return None
    if len(value) > limits.MAX_PROOF or not _TOKEN.fullmatch(value):
        raise InvalidProof("the DPoP header does not hold one proof")
    return str(value)


def find_network(environ: Environ, *, behind_proxy: bool) -> str:
    """The caller's IP address as far as it is known, else the empty string.

    Args:
        behind_proxy: The operator says that one trusted proxy stands in front: then the last hop of
            ``X-Forwarded-For`` is what that proxy saw. Else the header is what anybody may write.
    """
    text = environ.get("REMOTE_ADDR") or ""
    if behind_proxy:
        text = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return "" if "%" in text else str(mapped or address)


def is_local(environ: Environ, *, behind_proxy: bool) -> bool:
    """Whether the caller is on this machine; what any proxy passed on is not."""
    if not behind_proxy and ("HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ):
        return False
    network = find_network(environ, behind_proxy=behind_proxy)
    return bool(network) and ipaddress.ip_address(network).is_loopback


# -- the body -------------------------------------------------------------------------------------------


def read_body(environ: Environ, *, most: int) -> bytes:
    """The exact bytes of the body.

    Raises:
        TooLarge: It is announced with more than ``most`` bytes; nothing of it is read.
        MalformedRequest: Its length is not a number, or it ends before that.
    """
    text = environ.get("CONTENT_LENGTH") or "0"
    if not _LENGTH.fullmatch(text):
        raise MalformedRequest("Content-Length is not a number")
    left = int(text)
    if left > most:
        raise TooLarge(f"the body of this request has at most {most} bytes")
    chunks: list[bytes] = []
    while left:
        chunk = _read_chunk(environ, min(left, _CHUNK))
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _read_chunk(environ: Environ, size: int) -> bytes:
    try:
        chunk: bytes = environ["wsgi.input"].read(size)
    except OSError as exc:
        raise MalformedRequest("the body of the request did not arrive") from exc
    if not chunk:
        raise MalformedRequest("the body of the request ends before its Content-Length")
    return chunk


def check_media_type(environ: Environ, wanted: str, body: bytes) -> None:
    """The body is of the type that the route takes. A body that is not there has no type.

    Raises:
        UnsupportedMediaType: It is of another.
    """
    value = environ.get("CONTENT_TYPE") or ""
    if not body and not value:
        return
    # DELETE rarely has a body, so clients leave its type out.
    if not value and environ["REQUEST_METHOD"] == "DELETE":
        return
    kind, rest = value[: len(wanted)], value[len(wanted) :]
    if kind.lower() != wanted or not _CHARSET.fullmatch(rest):
        raise UnsupportedMediaType(f"the body of this request is {wanted}")


def read_signed_request(
    environ: Environ, *, token: bool, media_type: str, most: int, behind_proxy: bool
) -> SignedRequest:
    """One request that has to be signed. Nothing of its body is read before its credentials are there.

    Args:
        token: Whether an access token is needed beside the proof.
        media_type: What the body is, when there is one.
        most: Limit of the body in bytes.
        behind_proxy: See :func:`find_network`.

    Raises:
        NotAuthenticated: A credential is missing, or cannot be one.
        MalformedRequest, TooLarge, UnsupportedMediaType: As the other functions of this module.
    """
    raw_path, query = read_target(environ)
    access_token = find_access_token(environ) if token else None
    if token and access_token is None:
        _refuse_anonymous("the request carries no access token", "header Authorization: DPoP <token>")
    proof = find_proof(environ)
    if proof is None:
        _refuse_anonymous("the request carries no proof", "every request is signed: header DPoP (RFC 9449)")
    body = read_body(environ, most=most)
    check_media_type(environ, media_type, body)
    return SignedRequest(
        method=environ["REQUEST_METHOD"],
        raw_path=raw_path,
        query=query,
        body=body,
        proof=proof,
        access_token=access_token,
        network=find_network(environ, behind_proxy=behind_proxy),
    )


def _refuse_anonymous(what: str, why: str) -> NoReturn:
    raise NotAuthenticated(what, why=why, next="broker login")


# -- queries and forms ----------------------------------------------------------------------------------


def parse_pairs(data: bytes) -> dict[str, str]:
    """A query or form as a mapping; each name at most once.

    Raises:
        MalformedRequest: Not ``name=value&...`` in percent-encoded UTF-8, or a name twice.
        TooLarge: More than ``limits.MAX_PAIRS`` of them.
    """
    if not data:
        return {}
    if data.count(b"&") >= limits.MAX_PAIRS:
        raise TooLarge(f"more than {limits.MAX_PAIRS} parameters")
    try:
        pairs = parse_qsl(data.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError as exc:
        raise MalformedRequest("the parameters are not name=value pairs") from exc
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedRequest("a parameter is given twice")
    return found


def parse_index(text: str) -> int:
    """A number in a path, as the ledger's indices are written: decimal, without sign or leading zero.

    Raises:
        InvalidRequest: It is something else.
    """
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", text):
        raise InvalidRequest("an index is a whole number")
    return int(text)
