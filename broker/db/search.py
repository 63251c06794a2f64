"""Ledger queries as SQL: every value a parameter (I04), every equality served by an index.

Rows come in the order of their index; a page begins after the last index of the page before it, so
what is appended meanwhile neither repeats nor hides a row. Free text has no index: its terms are
looked for in the rows in order, until the page is full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true

from broker import limits
from broker.db.tables import INDEXED, ledger_index
from broker.db.values import KINDS, Kind, UnreadableError, is_storable, member_types
from broker.model import IndexRow, Query

_TEXT_COLUMNS: Final = ("principal", "artifact", "purpose")
_TELLING: Final = (
    "grant",
    "jkt",
    "principal",
    "artifact",
    "version",
    "purpose",
    "decision",
    "action",
    "type",
)
"""The members that an index serves, those that fewest entries share first."""
_ESCAPE: Final = "\\"
_JSON_PUNCTUATION: Final = frozenset('[]",\\')
_TO_LOWER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_FOREIGN: Final[dict[Any, Any]] = {str: "\ufffd", int: -1, tuple[str, ...]: ("\ufffd",)}
"""What a stored value of a foreign type is read as: something that follows from no entry."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    kind: Kind
    optional: bool
    foreign: Any


_MEMBERS: Final = [
    _Member(name=name, kind=KINDS[base], optional=optional, foreign=_FOREIGN[base])
    for name, (base, optional) in member_types(IndexRow).items()
]


_ENCODERS: Final = [(m.name, m.kind.to_column, m.optional) for m in _MEMBERS]


def encode_index_row(row: IndexRow) -> dict[str, Any]:
    """Column values of the search columns.

    Raises:
        InternalError: A member has another type than the class declares.
        InvalidRequest: A member cannot be stored.
    """
    found = vars(row)
    return {
        name: None if found[name] is None and optional else to_column(found[name])
        for name, to_column, optional in _ENCODERS
    }


def decode_index_row(stored: Mapping[str, Any]) -> IndexRow:
    """The search columns as stored.

    They carry no MAC: what somebody else wrote into them comes back, so that verification finds it.
    """
    return IndexRow(**{m.name: _decode(m, stored[m.name]) for m in _MEMBERS})


def _decode(member: _Member, raw: Any) -> Any:
    if raw is None and member.optional:
        return None
    try:
        return member.kind.from_column(raw)
    except UnreadableError:
        return member.foreign


def search_statement(query: Query, *, after: int, limit: int) -> Select[Any] | None:
    """The statement that finds one page, or None when nothing can match.

    ``since`` is inclusive, ``until`` exclusive. At most ``limits.MAX_PAGE`` rows.
    """
    condition = match_condition(query)
    if condition is None:
        return None
    index = ledger_index.c.idx
    page = max(0, min(limit, limits.MAX_PAGE))
    return select(ledger_index).where(index > after, condition).order_by(index).limit(page)


def match_condition(query: Query) -> ColumnElement[bool] | None:
    """What a row must be to answer a query, or None when no row can."""
    wanted = {name: getattr(query, name) for name in INDEXED if getattr(query, name) is not None}
    if not all(is_storable(value) for value in (*wanted.values(), *query.text)):
        return None
    conditions = _equalities(wanted)
    conditions += _times(query, narrow=not wanted)
    conditions += [_contains(term) for term in query.text]
    return and_(true(), *conditions)


def _equalities(wanted: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Of several members the most telling one chooses the index: SQLite keeps no statistics to choose by."""
    named = sorted(wanted, key=_TELLING.index)
    rest = [ledger_index.c[name].op("||")("") == wanted[name] for name in named[1:]]
    return [ledger_index.c[name] == wanted[name] for name in named[:1]] + rest


def _times(query: Query, *, narrow: bool) -> list[ColumnElement[bool]]:
    """The conditions on time; ``narrow`` adds the first and last index that can match.

    Entries are nearly in the order of their times, not quite: replicas differ by milliseconds and
    clocks are set back. So the bounds are looked up in the index on time, never guessed.
    """
    column, index = ledger_index.c.time, ledger_index.c.idx
    found: list[ColumnElement[bool]] = []
    if query.since is not None:
        found.append(column >= query.since)
    if query.until is not None:
        found.append(column < query.until)
    if narrow and found:
        # Both look at the rows of the whole span, in the index on time alone.
        first, last = (select(bound(index)).where(*found).scalar_subquery() for bound in (func.min, func.max))
        return [*found, index.between(first, last)]
    return found


def _contains(term: str) -> ColumnElement[bool]:
    """The term is somewhere in the texts of a row, whatever the case of its ASCII letters."""
    escaped = term.translate(_TO_LOWER)
    for special in (_ESCAPE, "%", "_"):
        escaped = escaped.replace(special, _ESCAPE + special)
    # The policies are stored as a JSON list: its punctuation is no part of any of them.
    columns = _TEXT_COLUMNS if _JSON_PUNCTUATION & set(term) else (*_TEXT_COLUMNS, "policies")
    return or_(*(func.lower(ledger_index.c[name]).like(f"%{escaped}%", escape=_ESCAPE) for name in columns))
