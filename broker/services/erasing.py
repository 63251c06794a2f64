"""Erasure: the evidence of one principal goes, the entries and every proof stay.

The entry that says so is durable first. From then on the evidence counts as erased, whatever the
rows say; deleting them can be done again at any time, and by another database role.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from broker import limits
from broker.canonical import Json, format_time, parse_time
from broker.errors import IntegrityFailure, InvalidRequest, LedgerUnavailable
from broker.ledger import entry as entries
from broker.model import Query
from broker.ports import View
from broker.services import authn, completing, people
from broker.services.administration import Change, administer, check_protected
from broker.services.house import House
from broker.services.record import new_entry

_DAY: Final = 24 * 3_600_000


def erase(
    house: House,
    request: authn.SignedRequest,
    *,
    request_id: str,
    principal: str,
    before: int | None,
    reason: str,
    have: str | None,
) -> Json:
    """Erase the evidence of what one principal asked before a time. A protected change.

    Args:
        house: The broker.
        request: The signed request.
        request_id: A retry of the same id and body gets the first outcome, and deletes what is left.
        principal: Whose evidence.
        before: Milliseconds since 1970; entries from then on keep theirs. None: as late as the retention
            rule allows.
        reason: Why, for the record.
        have: The last tree head that the caller verified.

    Returns:
        ``receipt``, ``consistency``, ``principal``, ``before``, ``evidence`` (pieces that the entry
        speaks of) and ``pending``: the broker's database role may not delete, so another one has to.

    Raises:
        InvalidRequest: The retention rule keeps evidence of that time.
        NotFound: There is no such principal.
        Denied: Policy, or one person alone may not.
    """

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        check_protected(house, "erasing evidence")
        people.find_principal(view, principal)
        latest = view.now - house.evidence_retention * _DAY
        until = latest if before is None else before
        if until > latest:
            raise InvalidRequest(
                f"evidence is kept for {house.evidence_retention} days",
                why=f"what is older than {format_time(latest)} may be erased",
            )
        entry = new_entry(
            house,
            time=caller.now,
            type="erasure",
            subject=principal,
            until=format_time(until),
            counts={"evidence": view.count_evidence(principal, until)},
            reason=reason,
            **common,
        )
        return Change(entries=[entry], rows=[])

    recorded = administer(
        house,
        request,
        area="principals",
        right="principals",
        request_id=request_id,
        body={
            "principal": principal,
            "before": None if before is None else format_time(before),
            "reason": reason,
        },
        have=have,
        change=change,
    )
    # Crash here: the entry says that it is erased, and nobody is shown it; the rows go with the next
    # erasure of this principal, or with `broker admin evidence sweep`.
    made = recorded.entry
    return {
        **completing.proof_json(recorded),
        "principal": made["subject"],
        "before": made["until"],
        "evidence": made["counts"]["evidence"],
        "pending": not _delete(house, made),
    }


def find_erasure(view: View, index: int, entry: Json) -> int | None:
    """Index of the first erasure that covers an entry's evidence; None when there is none.

    From that entry on the evidence counts as erased: should its row still be there (we crashed between
    the entry and the deletion, or another role deletes it later), nobody is shown it any more.
    """
    who = entry.get("principal")
    if "evidence" not in entry or who is None:
        return None
    time = parse_time(entry["time"])
    for at, erasure in _erasures(view, after=index):
        if erasure["subject"] == who and time < parse_time(erasure["until"]):
            return at
    return None


def sweep(house: House) -> tuple[int, int]:
    """Delete what every erasure on record speaks of and what is still there. Doing it again is fine.

    For the database role that may delete evidence, where the broker's own may not.

    Returns:
        How many erasures are on record, and how many pieces of evidence went now.

    Raises:
        LedgerUnavailable: The role may not, or it is not known to be done.
    """
    with house.ledger.view() as view:
        found = [erasure for _, erasure in _erasures(view, after=-1)]
    gone = [house.ledger.erase_evidence(each["subject"], parse_time(each["until"])) for each in found]
    return len(found), sum(gone)


def _erasures(view: View, *, after: int) -> Iterator[tuple[int, Json]]:
    while True:
        page = view.search(Query(type="erasure"), after=after, limit=limits.MAX_PAGE)
        for index, _ in page:
            found = entries.parse_entry(view.entry(index))
            if found["type"] != "erasure":
                # The index is the database's word: it cannot make an erasure of another entry.
                raise IntegrityFailure("the search index names an entry that erases nothing")
            yield index, found
        if len(page) < limits.MAX_PAGE:
            return
        after = page[-1][0]


def _delete(house: House, erasure: Json) -> bool:
    try:
        house.ledger.erase_evidence(erasure["subject"], parse_time(erasure["until"]))
    except LedgerUnavailable:
        # The production role has no DELETE (docs/operations/retention.md): what is recorded holds anyway.
        return False
    return True
