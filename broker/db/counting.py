"""Counts over the whole answer of a ledger query, in the database: one statement, a bounded answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, func, select

from broker import limits
from broker.db.search import match_condition
from broker.db.tables import ledger_index
from broker.errors import InternalError
from broker.model import Query
from broker.ports import Counts

_HOUR: Final = 3_600_000
_SPANS: Final = {"hour": _HOUR, "day": 24 * _HOUR}
_VALUES: Final = frozenset({"decision", "type", "principal", "artifact"})
_FOREIGN: Final = "\ufffd"


def count_statement(query: Query, *, by: str, top: int) -> Select[Any] | None:
    """The statement that counts, or None when nothing can match.

    Its rows are (value, rows, groups in all, rows in all), at most ``top`` and ``limits.MAX_PAGE`` of
    them: the sums go over all groups, whatever is cut.

    Raises:
        InternalError: Nothing is grouped by that.
    """
    condition = match_condition(query)
    if condition is None:
        return None
    key = _key(by).label("key")
    grouped = select(key, func.count().label("rows")).select_from(ledger_index).where(condition)
    each = grouped.group_by(key).subquery()
    # Windows are computed before the limit cuts.
    wanted = select(each.c.key, each.c.rows, func.count().over(), func.sum(each.c.rows).over())
    newest = each.c.key.desc()
    order = [newest] if by in _SPANS else [each.c.rows.desc(), each.c.key.asc().nulls_last()]
    return wanted.order_by(*order).limit(max(1, min(top, limits.MAX_PAGE)))


def _key(by: str) -> ColumnElement[Any]:
    if by in _SPANS:
        return ledger_index.c.time - ledger_index.c.time % _SPANS[by]
    if by in _VALUES:
        return ledger_index.c[by]
    raise InternalError("ledger rows were counted by what they are not grouped by")


def decode_counts(rows: Sequence[Any], *, by: str) -> Counts:
    """The counts that the statement's rows say; no row is no match.

    A value of a foreign type, which the broker never wrote, is shown as U+FFFD.
    """
    found = [(_decode(row[0], by), int(row[1])) for row in rows]
    if by in _SPANS:
        found.reverse()
    groups, total = (int(rows[0][2]), int(rows[0][3])) if rows else (0, 0)
    return Counts(
        total=total,
        groups=tuple(found),
        unnamed=groups - len(found),
        unnamed_rows=total - sum(count for _, count in found),
    )


def _decode(value: Any, by: str) -> str | int | None:
    right = type(value) is int and value >= 0 if by in _SPANS else value is None or type(value) is str
    return value if right else _FOREIGN
