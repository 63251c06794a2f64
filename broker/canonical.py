"""Objects to signed bytes and back: RFC 8785 JSON, base64url, digests, times.

What is signed or hashed in this project is RFC 8785 JSON with absent fields left out; binary values
are base64url without padding; digests are ``sha256:<64 hex>``; times are RFC 3339 UTC with
milliseconds. Parsers here refuse every other spelling, so that one value has one form.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, cast

import rfc8785

from broker import limits
from broker.errors import MalformedRequest

Json = dict[str, Any]

MAX_SAFE_INTEGER: Final = 2**53 - 1
_TIME: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})\.([0-9]{3})Z")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_B64URL: Final = re.compile(r"[A-Za-z0-9_-]*")


def canonical_bytes(value: object) -> bytes:
    """``value`` as RFC 8785 JSON.

    Raises:
        MalformedRequest: It has no such form (integer of 2^53 or more, NaN, lone surrogate).

    Source: RFC 8785.
    """
    try:
        if _is_plain(value):
            return _PLAIN.encode(value).encode("utf-8")
        return rfc8785.dumps(cast(Any, value))
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as exc:
        raise MalformedRequest("a value has no canonical JSON form", why=type(exc).__name__) from exc


_PLAIN: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False
)
"""Writes what :func:`_is_plain` lets pass exactly as RFC 8785 has it, in a tenth of the time."""


def _is_plain(value: object) -> bool:
    """Whether Python's own encoder writes the canonical form of a value.

    It does for text, safe integers, truth values and nulls in lists and objects whose names are ASCII. What
    it would write in another way: floats, names that sort differently by code units than by code points,
    and names that are no text.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -MAX_SAFE_INTEGER <= cast(int, value) <= MAX_SAFE_INTEGER
    if kind is dict:
        # Every request comes through here some thirty times: texts are not worth a call.
        for name, member in cast(dict[Any, Any], value).items():
            if type(name) is not str or not name.isascii():
                return False
            if type(member) is not str and not _is_plain(member):
                return False
        return True
    if kind is not list and kind is not tuple:
        return False
    return all(type(item) is str or _is_plain(item) for item in cast(list[Any], value))


def drop_absent(value: Json) -> Json:
    """A copy without the members that are ``None``: signed objects omit what is absent."""
    return {name: member for name, member in value.items() if member is not None}


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedRequest("a JSON object has the same member twice")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise MalformedRequest("NaN and Infinity are not JSON")


def _check_depth(value: object, room: int) -> None:
    if room < 0:
        raise MalformedRequest(f"JSON is nested deeper than {limits.MAX_JSON_DEPTH} levels")
    if isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            if room == 0 or type(member) is not str:
                _check_depth(member, room - 1)


def parse_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no duplicate members, no NaN, at most ``limits.MAX_JSON_DEPTH`` deep.

    Raises:
        MalformedRequest: The bytes are not such a text.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as exc:
        raise MalformedRequest("the text is not JSON") from exc
    _check_depth(value, limits.MAX_JSON_DEPTH)
    return value


def parse_json_object(data: bytes) -> Json:
    """Strict JSON whose top level is an object.

    Raises:
        MalformedRequest: It is something else.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise MalformedRequest("the JSON text is not an object")
    return value


def parse_canonical(data: bytes) -> Json:
    """The object that ``data`` is the canonical form of.

    Raises:
        MalformedRequest: Not JSON, not an object, or not in canonical form.
    """
    value = parse_json_object(data)
    if canonical_bytes(value) != data:
        raise MalformedRequest("the JSON text is not in canonical form (RFC 8785)")
    return value


def b64url(data: bytes) -> str:
    """base64url without padding. Source: RFC 4648 section 5."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def parse_b64url(text: str, *, size: int | None = None) -> bytes:
    """The bytes of an unpadded base64url text in its only valid spelling.

    Args:
        size: Exact number of bytes that is expected.

    Raises:
        MalformedRequest: Padding, foreign characters, stray trailing bits, or another size.
    """
    if not isinstance(text, str) or not _B64URL.fullmatch(text):
        raise MalformedRequest("a value is not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as exc:
        raise MalformedRequest("a value is not base64url") from exc
    if b64url(data) != text:
        raise MalformedRequest("a base64url value has stray trailing bits")
    if size is not None and len(data) != size:
        raise MalformedRequest(f"a binary value has {len(data)} bytes where {size} are expected")
    return data


def sha256_digest(data: bytes) -> str:
    """``sha256:<64 hex>`` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_digest(text: str) -> bytes:
    """The 32 bytes of a ``sha256:<hex>`` digest.

    Raises:
        MalformedRequest: Another form.
    """
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise MalformedRequest("a digest is not sha256: and 64 lower-case hex digits")
    return bytes.fromhex(text[7:])


def format_time(ms: int) -> str:
    """RFC 3339 UTC with milliseconds of a time in milliseconds since 1970."""
    when = datetime.fromtimestamp(ms // 1000, tz=UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def parse_time(text: str) -> int:
    """Milliseconds since 1970 of a time as :func:`format_time` writes it.

    Raises:
        MalformedRequest: Another form, or no such time.
    """
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise MalformedRequest("a time is not RFC 3339 UTC with milliseconds")
    year, month, day, hour, minute, second, ms = map(int, found.groups())
    try:
        when = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as exc:
        raise MalformedRequest("a time does not exist") from exc
    return int(when.timestamp()) * 1000 + ms
