"""Principals and their one-time codes, as administrators manage them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from broker import names
from broker.canonical import Json, format_time
from broker.drafts import Absent, NewEntry
from broker.errors import Conflict, InvalidRequest, NotFound
from broker.model import ACTIVE, ROLES, Enrolment, Group, Key, Principal
from broker.ports import View
from broker.services import authn, completing, enrolment
from broker.services.administration import (
    Change,
    administer,
    check_groups,
    check_protected,
    missing_groups,
    read_administration,
)
from broker.services.house import House
from broker.services.record import Recorded, new_entry

PROTECTED_ROLES = frozenset({"admin", "publisher"})
"""Granting these will need several people; until then, dev mode or ``unsafe_single_admin``."""


def _check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    found = tuple(sorted(set(roles)))
    for role in found:
        if role not in ROLES:
            raise InvalidRequest(f"there is no role {role!a}", why=f"roles are {', '.join(ROLES)}")
    return found


def principal_json(view: View, row: Principal) -> Json:
    """A principal as administrators see it."""
    return {
        "id": row.id,
        "roles": list(row.roles),
        "groups": list(row.groups),
        "disabled": row.disabled,
        "created_at": format_time(row.created),
        "keys": [{"jkt": key.jkt, "status": key.status} for key in view.list(Key, principal=row.id)],
    }


def principal_entry(house: House, row: Principal, time: int, common: Json) -> NewEntry:
    """The entry that says what a principal now is."""
    return new_entry(
        house,
        time=time,
        type="principal",
        subject=row.id,
        roles=list(row.roles),
        groups=list(row.groups),
        disabled=row.disabled,
        **common,
    )


def _code_entry(house: House, row: Enrolment, time: int, common: Json) -> NewEntry:
    return new_entry(
        house,
        time=time,
        type="enrolment-code",
        subject=row.principal,
        code=row.id,
        expires_at=format_time(row.expires),
        **{name: value for name, value in common.items() if name != "expires_at"},
    )


def add_principal(
    house: House,
    request: authn.SignedRequest,
    *,
    request_id: str,
    id: str,
    roles: Sequence[str],
    groups: Sequence[str],
    have: str | None,
) -> Json:
    """Add a principal, and draw the one-time code that binds its first key.

    Raises:
        Conflict: It exists; or this very request was answered before, and its code cannot be shown again.
    """
    id = names.parse_principal(id)
    wanted_roles = _check_roles(roles or ("engineer",))
    wanted_groups = check_groups(groups)
    code: list[tuple[str, Enrolment]] = []

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        if PROTECTED_ROLES & set(wanted_roles):
            check_protected(house, "granting admin or publisher")
        if view.find(Principal, id) is not None and not view.find_request(caller.key.jkt, request_id):
            raise Conflict(f"{id} exists", next=f"broker admin principal set {id} or code {id}")
        row = Principal(id=id, roles=wanted_roles, groups=wanted_groups, disabled=False, created=caller.now)
        code[:] = [enrolment.draw_code(house, id, caller.now)]
        group_entries, group_rows = missing_groups(house, view, caller.now, wanted_groups, common)
        return Change(
            entries=[
                principal_entry(house, row, caller.now, common),
                _code_entry(house, code[0][1], caller.now, common),
                *group_entries,
            ],
            rows=[row, code[0][1], *group_rows],
            expects=[
                Absent(row=Principal, key=(id,)),
                *(Absent(row=Group, key=(g.name,)) for g in group_rows),
            ],
        )

    body = {"id": id, "roles": list(wanted_roles), "groups": list(wanted_groups)}
    recorded = administer(
        house,
        request,
        area="principals",
        right="principals",
        request_id=request_id,
        body=body,
        have=have,
        change=change,
    )
    return {**body, **_code_json(code[0], recorded)}


def _code_json(code: tuple[str, Enrolment], recorded: Recorded) -> Json:
    if recorded.repeated:
        raise Conflict(
            "this request was carried out before; its enrolment code is shown only once",
            next="broker admin principal code ID",
        )
    text, row = code
    return {
        "enrolment_code": text,
        "expires_at": format_time(row.expires),
        **completing.proof_json(recorded),
    }


def new_code(
    house: House, request: authn.SignedRequest, *, request_id: str, id: str, have: str | None
) -> Json:
    """A fresh one-time code for a principal that exists; its earlier unused codes are dead.

    Raises:
        NotFound: There is no such principal.
    """
    id = names.parse_principal(id)
    code: list[tuple[str, Enrolment]] = []

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        principal = find_principal(view, id)
        if PROTECTED_ROLES & set(principal.roles):
            check_protected(house, "a new key for an admin or publisher")
        code[:] = [enrolment.draw_code(house, id, caller.now)]
        older = view.list(Enrolment, principal=id, status=ACTIVE)
        return Change(
            entries=[_code_entry(house, code[0][1], caller.now, common)],
            rows=[code[0][1], *(replace(row, status="superseded") for row in older)],
            expects=[principal, *older],
        )

    recorded = administer(
        house,
        request,
        area="principals",
        right="principals",
        request_id=request_id,
        body={"id": id, "code": True},
        have=have,
        change=change,
    )
    return {"id": id, **_code_json(code[0], recorded)}


def find_principal(view: View, id: str) -> Principal:
    """One principal.

    Raises:
        NotFound: There is none of that id.
    """
    row = view.find(Principal, id)
    if row is None:
        raise NotFound(f"there is no principal {id}", next="broker admin principal ls")
    return row


def set_principal(
    house: House,
    request: authn.SignedRequest,
    *,
    request_id: str,
    id: str,
    roles: Sequence[str] | None,
    groups: Sequence[str] | None,
    disabled: bool | None,
    have: str | None,
) -> Json:
    """Change roles, groups or the disabled state; None leaves a member as it is. Holds at once (I15).

    Raises:
        NotFound: There is no such principal.
        Conflict: It would leave no enabled administrator.
    """
    id = names.parse_principal(id)
    made: list[Principal] = []

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        before = find_principal(view, id)
        after = replace(
            before,
            roles=before.roles if roles is None else _check_roles(roles),
            groups=before.groups if groups is None else check_groups(groups),
            disabled=before.disabled if disabled is None else disabled,
        )
        # A disabled principal has no role: enabling it grants those that it is left with.
        held = set() if before.disabled else set(before.roles)
        if not after.disabled and PROTECTED_ROLES & (set(after.roles) - held):
            check_protected(house, "granting admin or publisher")
        check_last_admin(view, before, after)
        made[:] = [after]
        group_entries, group_rows = missing_groups(house, view, caller.now, after.groups, common)
        return Change(
            entries=[principal_entry(house, after, caller.now, common), *group_entries],
            rows=[after, *group_rows],
            expects=[before],
        )

    body: Json = {
        "id": id,
        "roles": None if roles is None else list(roles),
        "groups": None if groups is None else list(groups),
        "disabled": disabled,
    }
    recorded = administer(
        house,
        request,
        area="principals",
        right="principals",
        request_id=request_id,
        body=body,
        have=have,
        change=change,
    )
    with house.ledger.view() as view:
        return {**principal_json(view, made[0]), **completing.proof_json(recorded)}


def check_last_admin(view: View, before: Principal, after: Principal) -> None:
    """A change leaves at least one enabled administrator.

    Raises:
        Conflict: It would not.
    """

    def rules(row: Principal) -> bool:
        return "admin" in row.roles and not row.disabled

    if rules(before) and not rules(after):
        others = [row for row in view.list(Principal) if row.id != before.id and rules(row)]
        if not others:
            raise Conflict(
                f"{before.id} is the last enabled administrator",
                next="broker admin principal add ID --role admin, first",
            )


def list_principals(house: House, request: authn.SignedRequest) -> Json:
    """Every principal, ordered by id."""
    read_administration(house, request, "principals", "principals")
    with house.ledger.view() as view:
        return {"principals": [principal_json(view, row) for row in view.list(Principal)]}


def show_principal(house: House, request: authn.SignedRequest, id: str) -> Json:
    """One principal.

    Raises:
        NotFound: There is none of that id.
    """
    id = names.parse_principal(id)
    read_administration(house, request, "principals", "principals")
    with house.ledger.view() as view:
        return principal_json(view, find_principal(view, id))
