"""Who is who: principals, groups, collections, codes, revocations. Every change is an entry first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from broker import limits, names
from broker.canonical import Json, canonical_bytes
from broker.drafts import Absent, Draft, NewEntry, RequestKey
from broker.errors import BrokerError, Denied, InvalidRequest
from broker.identity import scope
from broker.model import Group, Row
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, deciding, denials
from broker.services.house import House
from broker.services.record import Recorded, decide_and_record, digest_of, new_entry


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
        except denials.REFUSALS as error:
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


@denials.recorded("administer")
def read_administration(house: House, request: authn.SignedRequest, area: str, right: str) -> authn.Caller:
    """Policy and token let the caller look at ``area``; the proof is used up.

    Raises:
        ScopeExceeded, Denied: They do not.
    """
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        scope.permits(caller.levels, scope.Ask(type=scope.ADMINISTRATION, action=right))
        target = policy.AdministrationTarget(area=area)
        answer = deciding.decide(house, view, caller.principal, "administer", target, network=request.network)
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


def check_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """Names of groups, sorted, without repetitions.

    Raises:
        InvalidRequest: A name is not valid, or there are too many.
    """
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
