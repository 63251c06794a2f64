"""Counts and histograms for auditors: over the whole answer of a question, never over one page of it."""

from __future__ import annotations

from broker import limits
from broker.canonical import Json, format_time
from broker.errors import InvalidRequest
from broker.ledger.query import GROUPINGS, parse_query
from broker.services import authn
from broker.services.auditing import authorize, query_text
from broker.services.house import House


def count(
    house: House,
    request: authn.SignedRequest,
    *,
    q: str,
    since: str | None,
    until: str | None,
    by: str,
    top: int,
) -> Json:
    """All matching entries in groups, on one snapshot of ``size`` entries.

    The ``top`` largest groups, the largest first; of hours and days the newest, in the order of time.
    ``rest`` says what the other groups hold, so that the numbers always add up to ``total``. The value of
    an hour or day is its beginning (UTC), that of entries without the member is null.

    Raises:
        InvalidRequest: The query or the grouping is not valid.
        ScopeExceeded, Denied: Recorded refusals.
    """
    if by not in GROUPINGS:
        raise InvalidRequest("entries are not counted by that", why=f"one of {', '.join(GROUPINGS)}")
    if not 1 <= top <= limits.MAX_PAGE:
        raise InvalidRequest(f"top is from 1 to {limits.MAX_PAGE}")
    text = query_text(q, since=since, until=until)
    parse_query(text, now=house.clock.now())
    authorize(house, request, "search", f"{text} count by {by}".strip())
    with house.ledger.view() as view:
        found = view.count(parse_query(text, now=view.now), by=by, top=top)
        size = view.tail().size
    return {
        "by": by,
        "total": found.total,
        "groups": [{"value": _shown(value), "entries": entries} for value, entries in found.groups],
        "rest": {"groups": found.unnamed, "entries": found.unnamed_rows},
        "size": size,
    }


def _shown(value: str | int | None) -> str | None:
    return format_time(value) if isinstance(value, int) else value
