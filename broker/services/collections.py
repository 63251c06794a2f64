"""Collections, and the groups that may read and publish in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from broker import names
from broker.canonical import Json
from broker.drafts import Absent
from broker.model import Collection
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, completing
from broker.services.administration import (
    Change,
    administer,
    check_groups,
    check_protected,
    missing_groups,
    read_administration,
)
from broker.services.house import House
from broker.services.record import new_entry


def collection_json(row: Collection) -> Json:
    """A collection as administrators see it."""
    return {"name": row.name, "readers": list(row.readers), "publishers": list(row.publishers)}


def list_collections(house: House, request: authn.SignedRequest) -> Json:
    """Every collection, ordered by name."""
    read_administration(house, request, "collections", "principals")
    with house.ledger.view() as view:
        return {"collections": [collection_json(row) for row in view.list(Collection)]}


def set_collection(
    house: House,
    request: authn.SignedRequest,
    *,
    request_id: str,
    name: str,
    readers: Sequence[str] | None,
    publishers: Sequence[str] | None,
    have: str | None,
) -> Json:
    """Name the groups that may read and publish; None leaves them. A collection that is not there is made."""
    name = names.parse_part(name, "collection")
    made: list[Collection] = []

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        if publishers is not None:
            check_protected(house, "naming who may publish")
        before = view.find(Collection, name)
        start = before or policy.new_collection(name)
        after = replace(
            start,
            readers=start.readers if readers is None else check_groups(readers),
            publishers=start.publishers if publishers is None else check_groups(publishers),
        )
        made[:] = [after]
        entry = new_entry(
            house,
            time=caller.now,
            type="collection",
            collection=name,
            readers=list(after.readers),
            publishers=list(after.publishers),
            **common,
        )
        named = (*after.readers, *after.publishers)
        group_entries, group_rows = missing_groups(house, view, caller.now, named, common)
        return Change(
            entries=[entry, *group_entries],
            rows=[after, *group_rows],
            expects=[before if before else Absent(row=Collection, key=(name,))],
        )

    body: Json = {
        "name": name,
        "readers": None if readers is None else list(readers),
        "publishers": None if publishers is None else list(publishers),
    }
    recorded = administer(
        house,
        request,
        area="collections",
        right="principals",
        request_id=request_id,
        body=body,
        have=have,
        change=change,
    )
    return {**collection_json(made[0]), **completing.proof_json(recorded)}
