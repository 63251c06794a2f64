"""Members of a dataclass as column values, and back.

Both directions are strict: what a database cannot hold the same way everywhere is refused before it
is written, and a stored value of another type than its column's was not written by the broker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_type_hints

from broker.canonical import MAX_SAFE_INTEGER, canonical_bytes, parse_json, sha256_digest
from broker.errors import InternalError, InvalidRequest, MalformedRequest


class UnreadableError(Exception):
    """A stored value that its column's kind never takes. Stays inside this package."""


def is_storable(value: object) -> bool:
    """Whether a search value can be in a column at all: no NUL or lone surrogate, no huge integer."""
    if isinstance(value, str):
        return "\0" not in value and (value.isascii() or _is_utf8(value))
    if isinstance(value, int):
        return abs(value) <= MAX_SAFE_INTEGER
    return True


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _expect(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise InternalError(f"a row member is {type(value).__name__} where {kind.__name__} is expected")
    if not is_storable(value):
        raise InvalidRequest("a text holds a NUL or half a character, or a number is 2^53 or more")
    return value


def _stored(kind: type[Any], raw: Any) -> Any:
    if type(raw) is not kind:
        raise UnreadableError
    return raw


def _flag_to_column(value: Any) -> int:
    return int(_expect(bool, value))


def _flag_from_column(raw: Any) -> bool:
    if type(raw) is not int or raw not in (0, 1):
        raise UnreadableError
    return bool(raw)


def _text_to_column(value: Any) -> str:
    # Nearly every value: a plain text needs no closer look.
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    return str(_expect(str, value))


@lru_cache(maxsize=4096)
def _texts_to_column(value: Any) -> str:
    return canonical_bytes([_expect(str, item) for item in _expect(tuple, value)]).decode("utf-8")


def _texts_from_column(raw: Any) -> tuple[str, ...]:
    try:
        found = parse_json(_stored(str, raw).encode("utf-8"))
    except (MalformedRequest, UnicodeEncodeError) as exc:
        raise UnreadableError from exc
    if not isinstance(found, list) or any(type(item) is not str for item in found):
        raise UnreadableError
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How values of one member type are stored.

    Attributes:
        to_column: Value -> column value. Raises InternalError for another type, InvalidRequest for a
            value that cannot be stored.
        from_column: Column value -> value. Raises UnreadableError.
        covered: Value -> the JSON value that the row's MAC covers.
    """

    to_column: Callable[[Any], Any]
    from_column: Callable[[Any], Any]
    covered: Callable[[Any], Any] = lambda value: value


def _plain(kind: type[Any], covered: Callable[[Any], Any] = lambda value: value) -> Kind:
    return Kind(
        to_column=lambda value: _expect(kind, value),
        from_column=lambda raw: _stored(kind, raw),
        covered=covered,
    )


KINDS: Final[dict[Any, Kind]] = {
    str: Kind(to_column=_text_to_column, from_column=lambda raw: _stored(str, raw)),
    int: _plain(int),
    # A digest, whatever the size: a manifest of 64 MiB is not spelled out to be covered.
    bytes: _plain(bytes, sha256_digest),
    bool: Kind(to_column=_flag_to_column, from_column=_flag_from_column),
    tuple[str, ...]: Kind(to_column=_texts_to_column, from_column=_texts_from_column, covered=list),
}
"""Member type -> how it is stored."""


def member_types(row: type[Any]) -> dict[str, tuple[Any, bool]]:
    """Name -> (type without ``None``, whether it may be None) of a dataclass's members, in order."""
    # Names in annotations are those of the module: a member called ``bytes`` does not hide the type.
    hints = get_type_hints(row, localns={})
    return {field.name: _without_none(hints[field.name]) for field in fields(row)}


def _without_none(hint: Any) -> tuple[Any, bool]:
    others = [part for part in get_args(hint) if part is not NoneType]
    return (others[0], True) if isinstance(hint, UnionType) else (hint, False)
