"""The life of a read, steps 2 to 6: ask, lease, complete. The step numbers are ARCHITECTURE's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from broker.canonical import Json, drop_absent, format_time, sha256_digest
from broker.drafts import Draft, RequestKey
from broker.envelope import seal
from broker.errors import BrokerError, Conflict, GrantRevoked, OverBudget
from broker.identity import scope
from broker.ledger.selection import count_segments, selection_record
from broker.model import ACTIVE, Grant, Lease
from broker.ports import View
from broker.services import authn, cosigned, denials, releasing, selection
from broker.services.house import House
from broker.services.planning import (
    Asked,
    GrantRequest,
    LeaseRequest,
    Plan,
    RefusedError,
    plan_grant,
    plan_lease,
)
from broker.services.record import Recorded, decide_and_record, new_entry


@dataclass(frozen=True, kw_only=True)
class Released:
    """The answer to an allowed request: everything in it was recorded first."""

    grant: Grant
    decision: Json
    recorded: Recorded
    lease: Json = field(repr=False)
    cosigned: Json | None = None
    """A head that witnesses cosigned, and the proof that the receipt's tree extends it."""


@dataclass(kw_only=True)
class _Outcome:
    """What the last run of a decision came to: a plan to release, or the refusal to tell."""

    plan: Plan | None = None
    refusal: BrokerError | None = None


def ask(house: House, request: authn.SignedRequest, wanted: GrantRequest) -> Released:
    """Steps 2 to 6 of a first request: a grant and its lease 0, or a recorded refusal.

    Raises:
        NotAuthenticated and its kin: Step 2.
        NotFound: Unknown or invisible; recorded with the name as asked.
        ScopeExceeded, Denied, ApprovalNeeded, OverBudget: Recorded refusals.
        InvalidRequest, Conflict, ReplayedProof, LedgerUnavailable: Nothing was released.
    """
    seal.parse_recipient(wanted.recipient)
    grant_id = house.new_id("g_")
    key = wanted.request_id, wanted.body_digest()

    def plan(view: View, caller: authn.Caller) -> Plan:
        return plan_grant(house, view, caller, wanted, grant_id)

    return _carry_out(house, request, plan, wanted.recipient, wanted.have, wanted.ranges, key)


def lease(house: House, request: authn.SignedRequest, wanted: LeaseRequest) -> Released:
    """Step 9: the next slice, decided anew against current policy, budgets and revocations.

    With witnesses, what was recorded for the grant before is covered by a head that they cosigned.

    Raises:
        As :func:`ask`; GrantRevoked when the grant was revoked or has run out; LedgerUnavailable when the
            witnesses have not signed for too long.
    """
    seal.parse_recipient(wanted.recipient)
    key = wanted.request_id, wanted.body_digest()

    seen: list[cosigned.CosignedHead | None] = [None]

    def plan(view: View, caller: authn.Caller) -> Plan:
        made = plan_lease(house, view, caller, wanted)
        seen[0] = cosigned.require_covered(house, view, made.grant.entry)
        return made

    released = _carry_out(house, request, plan, wanted.recipient, wanted.have, wanted.ranges, key)
    return replace(released, cosigned=cosigned.cosigned_json(house, seen[0], released.recorded))


# -- steps 5 and 6 -----------------------------------------------------------------------------------------


def _carry_out(
    house: House,
    request: authn.SignedRequest,
    plan: Any,
    recipient: bytes,
    have: str | None,
    ranges: bool,  # noqa: FBT001 - one of the request's own members
    key: tuple[str, bytes],
) -> Released:
    request_id, body_digest = key
    outcome = _Outcome()

    def decide(view: View) -> Draft:
        outcome.plan = outcome.refusal = None
        caller = authn.authenticate(house, view, request)
        try:
            made: Plan = plan(view, caller)
        except RefusedError as refused:
            outcome.refusal = refused.error
            return _denial(house, caller, refused, request_id)
        outcome.plan = made
        return _release_draft(house, caller, made, request_id, body_digest)

    try:
        _, recorded = decide_and_record(house, decide, have=have)
    except OverBudget as over:
        _record_over_budget(house, request, outcome, over, request_id)
        raise
    if outcome.refusal is not None:
        raise outcome.refusal
    if outcome.plan is None:
        raise Conflict("the request came to no decision")
    made = outcome.plan
    if recorded.repeated:
        made = _first_outcome(house, made, recorded)
    # Crash here: recorded, nothing released. The same request again gets the same grant.
    return Released(
        grant=made.grant,
        decision=recorded.entry["decision"],
        recorded=recorded,
        lease=releasing.release(
            house,
            version=made.version,
            manifest=made.manifest,
            lease=made.lease,
            recorded=recorded,
            recipient=recipient,
            ranges=ranges,
        ),
    )


def _release_draft(
    house: House, caller: authn.Caller, made: Plan, request_id: str, body_digest: bytes
) -> Draft:
    first = made.lease.number == 0
    files = list(made.files) if first else sorted({run[0] for run in made.window.runs})
    record = selection_record(
        artifact=made.grant.artifact,
        version=made.grant.version,
        manifest=made.grant.manifest,
        files=files,
        lease=made.lease.number,
        extents=made.window.runs,
        spans=made.window.spans,
    )
    spans = made.window.spans
    extents = selection.count_extents(made.manifest, files) if first else made.window.extents
    entry = new_entry(
        house,
        time=caller.now,
        type="grant" if first else "lease",
        evidence=caller.evidence(made.answer.inputs),
        record=record,
        request_id=request_id,
        action="read",
        artifact=made.grant.artifact,
        version=made.grant.version,
        manifest=made.grant.manifest,
        selection=drop_absent(
            {
                "digest": sha256_digest(record),
                "files": len(files),
                "extents": extents,
                "segments": None if spans is None else count_segments(spans),
            }
        ),
        bytes=made.grant.bytes if first else made.window.bytes,
        served=None if spans is None else selection.served_bytes(made.manifest, spans),
        purpose=made.grant.purpose or None,
        recipient=made.lease.recipient,
        decision=made.answer.decision.as_json(),
        grant=made.grant.id,
        lease=made.lease.number,
        expires_at=format_time(made.lease.expires),
        grant_expires_at=format_time(made.grant.expires) if first else None,
        **caller.members(),
    )
    holders = (*caller.token.chain, caller.token.id)
    what = Asked(
        version=made.version,
        manifest=made.manifest,
        files=files,
        purpose=made.grant.purpose,
        bytes=made.window.bytes,
    )
    ceilings = scope.byte_ceilings(caller.levels, holders, what.ask)
    return Draft(
        proof=caller.proof_use,
        request=RequestKey(jkt=caller.key.jkt, request_id=request_id, body_digest=body_digest),
        charges=selection.charge_for(
            made.manifest, made.grant.manifest, made.window, [(caller.principal.id, None), *ceilings]
        ),
        entries=(entry,),
        rows=(made.grant, made.lease) if first else (made.lease,),
        # Two leases of one grant asked for at once draw the same number: the second decides again.
        expects=() if first else (releasing.absent_lease(made.lease),),
    )


def _denial(house: House, caller: authn.Caller, refused: RefusedError, request_id: str) -> Draft:
    return denials.denial_draft(
        house,
        caller,
        error=refused.error,
        action="read",
        answer=refused.answer,
        artifact=refused.artifact,
        version=refused.version,
        request_id=request_id,
    )


def _record_over_budget(
    house: House, request: authn.SignedRequest, outcome: _Outcome, over: OverBudget, request_id: str
) -> None:
    """A charge found no room: the answer becomes a recorded deny, with a snapshot of its own."""
    made = outcome.plan
    if made is None:
        return

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        refused = RefusedError(over, made.grant.artifact, made.grant.version)
        return _denial(house, caller, refused, request_id)

    decide_and_record(house, decide)


def _first_outcome(house: House, made: Plan, recorded: Recorded) -> Plan:
    """What the first request of this id was given: released again, to the same recipient only.

    The decision was made anew on this snapshot and is an allow (I15); entry, grant and charge are the
    first ones.

    Raises:
        Conflict: The first lease has run out, another version is the newest one by now, or the id
            belongs to a request of another kind or principal.
    """
    entry = recorded.entry
    with house.ledger.view() as view:
        if entry["type"] not in ("grant", "lease"):
            raise Conflict("this request id was used before, and refused", next="use a new request_id")
        grant = view.find(Grant, entry["grant"])
        row = view.find(Lease, entry["grant"], entry["lease"])
        if grant is None or row is None or grant.status != ACTIVE:
            raise GrantRevoked("the grant of this request was revoked")
        if grant.principal != made.grant.principal:
            # A key that nobody enrolled may hold tokens of several principals: each asks in its own name.
            raise Conflict("this request id is another principal's", next="use a new request_id")
        if grant.manifest != made.grant.manifest:
            # I01: the entry speaks of the version that was the newest then; no other leaves under it.
            raise Conflict("another version is the newest one by now", next="use a new request_id")
        if row.expires <= view.now or row.recipient != made.lease.recipient:
            raise Conflict("the lease of this request has run out", next="ask for a new lease")
    runs, spans = releasing.lease_items(row)
    window = selection.Window(
        runs=runs,
        extents=sum(last - first + 1 for _, first, last in runs),
        bytes=made.window.bytes,
        spans=spans,
    )
    return replace(made, grant=grant, lease=row, window=window)
