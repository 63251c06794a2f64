"""Who is who: principals, groups, collections, codes, revocations. Every change is an entry first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker import limits, names
from broker.canonical import Json, canonical_bytes, format_time
from broker.errors import BrokerError, Conflict, Denied, InvalidRequest, NotFound
from broker.identity import scope
from broker.model import (
    ACTIVE,
    REVOKED,
    ROLES,
    Absent,
    Collection,
    Draft,
    Enrolment,
    Grant,
    Group,
    Key,
    NewEntry,
    Principal,
    RequestKey,
    Row,
    Token,
)
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, completing, deciding, denials, enrolment
from broker.services.house import House
from broker.services.record import Recorded, decide_and_record, digest_of, new_entry

PROTECTED_ROLES = frozenset({"admin", "publisher"})
"""Granting these will need several people; until then, dev mode or ``unsafe_single_admin``."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One administrative change: what to append, what to write, what it was decided on."""

    entries: Sequence[NewEntry]
    rows: Sequence[Row]
    expects: Sequence[Row | Absent] = ()


def administer(
    house: House,
    request: authn.SignedRequest,
    *,
    area: str,
    right: str,
    request_id: str,
    body: Json,
    have: str | None,
    change: Callable[[View, authn.Caller, Json], Change],
) -> Recorded:
    """Authenticate, ask policy for ``administer`` on ``area``, and record the change with its rows.

    A refusal is recorded as a denial. A retry of the same id and body gets the first outcome.

    Args:
        area: One of ``policy.request.AREAS``.
        right: The action of an ``administration`` detail that the token must have (RFC 9396).
        body: The request without ``have``.
        change: Makes the entries; it gets the members that say who asked, and evidence of why.

    Raises:
        ScopeExceeded, Denied: Recorded refusals.
    """
    refusal: list[BrokerError] = []
    digest = digest_of(canonical_bytes(body))

    def decide(view: View) -> Draft:
        refusal.clear()
        caller = authn.authenticate(house, view, request)
        answer = None
        try:
            scope.permits(caller.levels, scope.Ask(type=scope.ADMINISTRATION, action=right))
            answer = deciding.decide(
                house,
                view,
                caller.principal,
                "administer",
                policy.AdministrationTarget(area=area),
                network=request.network,
            )
            if not answer.allowed:
                raise answer.refusal(f"administering {area}")
            common = {
                "request_id": request_id,
                "action": "administer",
                "decision": answer.decision.as_json(),
                "evidence": caller.evidence(answer.inputs),
                **caller.members(),
            }
            made = change(view, caller, common)
        except Denied as error:
            refusal.append(error)
            denied = answer if answer is not None and not answer.allowed else None
            return denials.denial_draft(
                house, caller, error=error, action="administer", answer=denied, request_id=request_id
            )
        return Draft(
            proof=caller.proof_use,
            request=RequestKey(jkt=caller.key.jkt, request_id=request_id, body_digest=digest),
            entries=tuple(made.entries),
            rows=tuple(made.rows),
            expects=tuple(made.expects),
            bumps_epoch=True,
        )

    _, recorded = decide_and_record(house, decide, have=have)
    if refusal:
        raise refusal[0]
    return recorded


def read_administration(house: House, request: authn.SignedRequest, area: str, right: str) -> authn.Caller:
    """Policy and token let the caller look at ``area``; the proof is used up.

    Raises:
        ScopeExceeded, Denied: They do not.
    """
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        scope.permits(caller.levels, scope.Ask(type=scope.ADMINISTRATION, action=right))
        target = policy.AdministrationTarget(area=area)
        answer = deciding.decide(
            house, view, caller.principal, "administer", target, network=request.network
        )
        if not answer.allowed:
            raise answer.refusal(f"administering {area}")
    authn.use_proof(house, caller)
    return caller


def check_protected(house: House, what: str) -> None:
    """A protected change is made by one person in dev mode, or under ``unsafe_single_admin``, only.

    Raises:
        Denied: Neither is so.
    """
    if not house.protected_changes:
        raise Denied(
            f"{what} is a protected change",
            why="in production it needs several people, and approvals are not part of this release",
            next="run with unsafe_single_admin=true if one person may do this, and know what that means",
        )


def _check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    found = tuple(sorted(set(roles)))
    for role in found:
        if role not in ROLES:
            raise InvalidRequest(f"there is no role {ascii(role)}", why=f"roles are {', '.join(ROLES)}")
    return found


def _check_groups(groups: Iterable[str]) -> tuple[str, ...]:
    found = tuple(sorted({names.parse_group(group) for group in groups}))
    if len(found) > limits.MAX_GROUPS:
        raise InvalidRequest(f"more than {limits.MAX_GROUPS} groups")
    return found


def missing_groups(
    house: House, view: View, time: int, groups: Iterable[str], common: Json
) -> tuple[list[NewEntry], list[Group]]:
    """Entries and rows for groups that are named for the first time: a group exists once it is named."""
    entries, rows = [], []
    for name in sorted(set(groups)):
        if view.find(Group, name) is None:
            entries.append(new_entry(house, time=time, type="group", group=name, parents=[], **common))
            rows.append(Group(name=name))
    return entries, rows


# -- principals ---------------------------------------------------------------------------------------------


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


def _principal_entry(house: House, row: Principal, time: int, common: Json) -> NewEntry:
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
    wanted_groups = _check_groups(groups)
    code: list[tuple[str, Enrolment]] = []

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        if PROTECTED_ROLES & set(wanted_roles):
            check_protected(house, "granting admin or publisher")
        if view.find(Principal, id) is not None and not view.find_request(caller.key.jkt, request_id):
            raise Conflict(f"{id} exists", next=f"broker admin principal set {id} or code {id}")
        row = Principal(
            id=id, roles=wanted_roles, groups=wanted_groups, disabled=False, created=caller.now
        )
        code[:] = [enrolment.draw_code(house, id, caller.now)]
        group_entries, group_rows = missing_groups(house, view, caller.now, wanted_groups, common)
        return Change(
            entries=[
                _principal_entry(house, row, caller.now, common),
                _code_entry(house, code[0][1], caller.now, common),
                *group_entries,
            ],
            rows=[row, code[0][1], *group_rows],
            expects=[Absent(row=Principal, key=(id,)), *(Absent(row=Group, key=(g.name,)) for g in group_rows)],
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
        principal = _find_principal(view, id)
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


def _find_principal(view: View, id: str) -> Principal:
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
        before = _find_principal(view, id)
        after = replace(
            before,
            roles=before.roles if roles is None else _check_roles(roles),
            groups=before.groups if groups is None else _check_groups(groups),
            disabled=before.disabled if disabled is None else disabled,
        )
        if PROTECTED_ROLES & (set(after.roles) - set(before.roles)):
            check_protected(house, "granting admin or publisher")
        _check_last_admin(view, before, after)
        made[:] = [after]
        group_entries, group_rows = missing_groups(house, view, caller.now, after.groups, common)
        return Change(
            entries=[_principal_entry(house, after, caller.now, common), *group_entries],
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


def _check_last_admin(view: View, before: Principal, after: Principal) -> None:
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
        return principal_json(view, _find_principal(view, id))


# -- revocations ------------------------------------------------------------------------------------------------

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
            principal = _find_principal(view, id)
            gone = replace(principal, disabled=True)
            _check_last_admin(view, principal, gone)
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
            entries.append(_principal_entry(house, gone, caller.now, common))
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


# -- collections --------------------------------------------------------------------------------------------------


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
            readers=start.readers if readers is None else _check_groups(readers),
            publishers=start.publishers if publishers is None else _check_groups(publishers),
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


