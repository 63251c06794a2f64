"""Revocations by an administrator: they hold from the next request on, on every replica (I15)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from broker import names
from broker.canonical import Json
from broker.errors import InvalidRequest, NotFound
from broker.model import (
    ACTIVE,
    REVOKED,
    Grant,
    Key,
    Row,
    Token,
)
from broker.ports import View
from broker.services import authn, completing, people
from broker.services.administration import (
    Change,
    administer,
)
from broker.services.house import House
from broker.services.record import new_entry

_REVOKED: dict[str, type[Grant] | type[Token] | type[Key]] = {"grant": Grant, "token": Token, "key": Key}


def revoke(
    house: House, request: authn.SignedRequest, *, request_id: str, kind: str, id: str, have: str | None
) -> Json:
    """End a grant, token or key, or disable a principal and end all its keys; holds from the next request.

    Raises:
        NotFound: There is no such thing.
        InvalidRequest: ``kind`` is none of grant, token, key, principal.
    """
    if kind != "principal" and kind not in _REVOKED:
        raise InvalidRequest("a grant, token, key or principal is revoked")
    if kind == "principal":
        id = names.parse_principal(id)

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        before: list[Row]
        if kind == "principal":
            principal = people.find_principal(view, id)
            gone = replace(principal, disabled=True)
            people.check_last_admin(view, principal, gone)
            keys = view.list(Key, principal=id, status=ACTIVE)
            before = [principal, *keys]
            after: list[Row] = [gone, *(replace(key, status=REVOKED) for key in keys)]
        else:
            row: Any = view.find(_REVOKED[kind], id)
            if row is None:
                raise NotFound(f"there is no such {kind}")
            before, after = [row], [replace(row, status=REVOKED)]
        entries = [
            new_entry(house, time=caller.now, type="revocation", target={"kind": kind, "id": id}, **common)
        ]
        if kind == "principal":
            entries.append(people.principal_entry(house, gone, caller.now, common))
        return Change(entries=entries, rows=after, expects=before)

    recorded = administer(
        house,
        request,
        area="revocations",
        right="revocations",
        request_id=request_id,
        body={"kind": kind, "id": id},
        have=have,
        change=change,
    )
    return completing.proof_json(recorded)
