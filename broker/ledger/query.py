"""Ledger queries: the text that auditors type, as values that only ever are data (I04).

``actor:ana artifact:acme/llama-7b decision:deny since:24h "free text"``: terms are separated by
spaces and all must match. A term is ``field:value`` or free text; a value with spaces, quotes or (as
free text) a colon stands in double quotes, with backslash before a quote or backslash. Fields match
exactly; free text matches anywhere inside a principal, artifact, purpose or policy, ASCII letters
without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from broker import limits, names
from broker.canonical import Json, format_time, parse_b64url
from broker.errors import InvalidRequest, MalformedRequest, TooLarge
from broker.ledger.members import EFFECTS, TYPES, is_unsafe
from broker.model import IndexRow, Query

FIELDS: Final[Mapping[str, str]] = {
    "actor": "principal",
    "artifact": "artifact",
    "version": "version",
    "decision": "decision",
    "type": "type",
    "action": "action",
    "grant": "grant",
    "key": "jkt",
    "purpose": "purpose",
    "since": "since",
    "until": "until",
}
"""Field of a query's text -> member of :class:`broker.model.Query`."""

GROUPINGS: Final = ("decision", "type", "principal", "artifact", "hour", "day")
"""What matching rows are counted by; hours and days are those of UTC."""

_EXACT: Final = ("principal", "artifact", "version", "decision", "type", "action", "grant", "jkt", "purpose")
_TERM_RE: Final = re.compile(r'(?:([A-Za-z_]+):)?(?:"((?:[^"\\]|\\["\\])*)"|([^\s"]+))(?=\s|\Z)')
_DURATION_RE: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_INSTANT_RE: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:Z|[+-]\d{2}:\d{2}))?", re.ASCII
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_ASCII_FOLD: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_HELP: Final = 'for example: actor:ana artifact:acme/llama-7b decision:deny since:24h "free text"'


def parse_query(text: str, *, now: int) -> Query:
    """The query that a text says; the empty text asks for everything.

    Args:
        text: At most 1 KiB and 16 terms.
        now: Milliseconds since 1970; durations such as ``24h`` count back from it.

    Raises:
        InvalidRequest: An unknown or repeated field, an empty or impossible value, a stray quote;
            the message says what is allowed.
        TooLarge: More than the limits.
    """
    if len(text.encode("utf-8", "surrogatepass")) > limits.MAX_QUERY:
        raise TooLarge(f"a ledger query has at most {limits.MAX_QUERY} bytes")
    if any(map(is_unsafe, text)):
        raise InvalidRequest("a ledger query has a control character", next=_HELP)
    members: dict[str, Any] = {}
    words: list[str] = []
    for field, value in _split_terms(text):
        if field is None:
            words.append(value)
            continue
        for name, parsed in _parse_field(field, value, now).items():
            if name in members:
                raise InvalidRequest(f"a ledger query says {field} twice", why="each field is given once")
            members[name] = parsed
    query = Query(**members, text=tuple(words))
    if query.since is not None and query.until is not None and query.since > query.until:
        raise InvalidRequest("a ledger query ends before it begins", why="since is later than until")
    return query


def _split_terms(text: str) -> list[tuple[str | None, str]]:
    terms: list[tuple[str | None, str]] = []
    at = 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        match = _TERM_RE.match(text, at)
        if match is None:
            raise InvalidRequest("a ledger query has a stray quote", next=_HELP)
        terms.append(_read_term(match))
        if len(terms) > limits.MAX_QUERY_TERMS:
            raise TooLarge(f"a ledger query has at most {limits.MAX_QUERY_TERMS} terms")
        at = match.end()
    return terms


def _read_term(match: re.Match[str]) -> tuple[str | None, str]:
    field, quoted, bare = match.groups()
    if field is not None and field not in FIELDS:
        raise InvalidRequest(
            f"a ledger query has no field {field[:32]!a}",
            why=f"fields are {', '.join(FIELDS)}",
            next="put free text that has a colon in double quotes",
        )
    if field is None and bare is not None and ":" in bare:
        raise InvalidRequest("a ledger query has a field without a value", next=_HELP)
    value = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    if not value:
        raise InvalidRequest("a ledger query has an empty value", next=_HELP)
    return field, value


def _parse_field(field: str, value: str, now: int) -> dict[str, Any]:
    match field:
        case "actor":
            return {"principal": names.parse_principal(value)}
        case "artifact":
            artifact, at, version = value.partition("@")
            return {"artifact": artifact, "version": version} if at else {"artifact": artifact}
        case "decision":
            return {"decision": _one_of(field, value, EFFECTS)}
        case "type":
            return {"type": _one_of(field, value, tuple(TYPES))}
        case "key":
            return {"jkt": _parse_thumbprint(value)}
        case "since" | "until":
            return {field: parse_when(value, now=now)}
        case _:
            return {FIELDS[field]: value}


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidRequest(f"{field} in a ledger query is not known", why=f"one of {', '.join(allowed)}")
    return value


def _parse_thumbprint(value: str) -> str:
    try:
        parse_b64url(value, size=32)
    except MalformedRequest as exc:
        raise InvalidRequest("key in a ledger query is not a thumbprint", why="43 characters") from exc
    return value


def parse_when(text: str, *, now: int) -> int:
    """A moment: ``30m``, ``24h``, ``7d``, ``2w`` ago, an RFC 3339 time, or a date (midnight UTC).

    Returns:
        Milliseconds since 1970.

    Raises:
        InvalidRequest: It is none of these, or lies before 1970.
    """
    moment = now - parse_duration(text) if _DURATION_RE.fullmatch(text) else _parse_instant(text)
    if moment < 0:
        raise InvalidRequest("a time in a ledger query lies before 1970")
    return moment


def parse_duration(text: str) -> int:
    """Milliseconds of a duration: ``30s``, ``10m``, ``24h``, ``7d``, ``2w``.

    Raises:
        InvalidRequest: It is none.
    """
    match = _DURATION_RE.fullmatch(text)
    if match is None:
        raise InvalidRequest("a duration is not valid", why="a number and s, m, h, d or w, such as 10m")
    return int(match[1]) * _UNIT_MS[match[2]]


def _parse_instant(text: str) -> int:
    rule = "a duration such as 30m, 24h or 7d, or an RFC 3339 time such as 2025-01-31T12:00:00Z"
    if not _INSTANT_RE.fullmatch(text):
        raise InvalidRequest("a time in a ledger query is not valid", why=rule)
    try:
        when = datetime.fromisoformat(text)
        return (when.replace(tzinfo=when.tzinfo or UTC) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as exc:
        raise InvalidRequest("a time in a ledger query does not exist", why=rule) from exc


# -- meaning ------------------------------------------------------------------------------------------------


def matches(query: Query, row: IndexRow) -> bool:
    """Whether a search row answers a query: the meaning that every store's search must have.

    Fields are compared exactly; ``since`` is included, ``until`` is not; each word of free text is
    found in the principal, the artifact, the purpose or the name of a policy.
    """
    wanted = {name: getattr(query, name) for name in _EXACT}
    if any(value is not None and value != getattr(row, name) for name, value in wanted.items()):
        return False
    if query.since is not None and row.time < query.since:
        return False
    if query.until is not None and row.time >= query.until:
        return False
    texts = [value.translate(_ASCII_FOLD) for value in _searched(row)]
    return all(any(word.translate(_ASCII_FOLD) in text for text in texts) for word in query.text)


def _searched(row: IndexRow) -> list[str]:
    columns = (row.principal, row.artifact, row.purpose, *row.policies)
    return [value for value in columns if value is not None]


def search_row(index: int, row: IndexRow) -> Json:
    """A search row as it is shown: always all members, ``None`` where an entry has none."""
    return {
        "index": index,
        "time": format_time(row.time),
        "type": row.type,
        "principal": row.principal,
        "action": row.action,
        "artifact": row.artifact,
        "version": row.version,
        "decision": row.decision,
        "policies": list(row.policies),
        "bytes": row.bytes,
        "grant": row.grant,
        "purpose": row.purpose,
    }
