"""The life of a read, steps 2 to 6: ask, lease, complete. The step numbers are ARCHITECTURE's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from broker import limits
from broker.canonical import Json, canonical_bytes, format_time, parse_json, sha256_digest
from broker.envelope import seal
from broker.envelope.manifest import Manifest
from broker.errors import BrokerError, Conflict, Denied, GrantRevoked, InvalidRequest, NotFound, OverBudget
from broker.identity import scope
from broker.ledger.selection import selection_record
from broker.model import ACTIVE, Collection, Draft, Grant, Lease, RequestKey, Version
from broker.ports import View
from broker.services import authn, deciding, denials, lookup, releasing, selection
from broker.services.house import House
from broker.services.record import Recorded, decide_and_record, digest_of, new_entry


@dataclass(frozen=True, kw_only=True)
class GrantRequest:
    """What a caller asks for; the names have passed their grammar."""

    request_id: str
    collection: str
    name: str
    version: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    purpose: str
    recipient: bytes
    extents: tuple[tuple[int, ...], ...] | None
    ranges: bool = False
    have: str | None = None

    @property
    def artifact(self) -> str:
        """``collection/name``."""
        return f"{self.collection}/{self.name}"

    def body_digest(self) -> bytes:
        """What a retry must repeat: everything but ``have``, which may have moved on since."""
        parts = {name: value for name, value in vars(self).items() if name not in ("have", "recipient")}
        return digest_of(canonical_bytes({**parts, "recipient": seal.recipient_digest(self.recipient)}))


@dataclass(frozen=True, kw_only=True)
class LeaseRequest:
    """The next slice of a grant that a caller asks for."""

    request_id: str
    grant: str
    recipient: bytes
    extents: tuple[tuple[int, ...], ...]
    ranges: bool = False
    have: str | None = None

    def body_digest(self) -> bytes:
        """What a retry must repeat: everything but ``have``."""
        parts = {name: value for name, value in vars(self).items() if name not in ("have", "recipient")}
        return digest_of(canonical_bytes({**parts, "recipient": seal.recipient_digest(self.recipient)}))


@dataclass(frozen=True, kw_only=True)
class Released:
    """The answer to an allowed request: everything in it was recorded first."""

    grant: Grant
    decision: Json
    recorded: Recorded
    lease: Json = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What step 4 fixed; step 6 computes nothing that is not in here, and so in the entry."""

    grant: Grant
    version: Version
    manifest: Manifest
    files: tuple[int, ...]
    window: selection.Window
    lease: Lease
    answer: deciding.Answer


@dataclass(kw_only=True)
class _Outcome:
    """What the last run of a decision came to: a plan to release, or the refusal to tell."""

    plan: _Plan | None = None
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

    def plan(view: View, caller: authn.Caller) -> _Plan:
        return _plan_grant(house, view, caller, wanted, grant_id)

    return _carry_out(house, request, plan, wanted.recipient, wanted.have, wanted.ranges, key)


def lease(house: House, request: authn.SignedRequest, wanted: LeaseRequest) -> Released:
    """Step 9: the next slice, decided anew against current policy, budgets and revocations.

    Raises:
        As :func:`ask`; GrantRevoked when the grant was revoked or has run out.
    """
    seal.parse_recipient(wanted.recipient)
    key = wanted.request_id, wanted.body_digest()

    def plan(view: View, caller: authn.Caller) -> _Plan:
        return _plan_lease(house, view, caller, wanted)

    return _carry_out(house, request, plan, wanted.recipient, wanted.have, wanted.ranges, key)


# -- step 4 ---------------------------------------------------------------------------------------------


class _Refused(Exception):
    """A refusal that has to be recorded before it is told."""

    def __init__(
        self, error: BrokerError, artifact: str, version: str | None, answer: deciding.Answer | None = None
    ) -> None:
        super().__init__(error.what)
        self.error, self.artifact, self.version, self.answer = error, artifact, version, answer


def _plan_grant(
    house: House, view: View, caller: authn.Caller, wanted: GrantRequest, grant_id: str
) -> _Plan:
    artifact, now = wanted.artifact, caller.now
    found = lookup.find_visible(
        house,
        view,
        caller.principal,
        wanted.collection,
        wanted.name,
        wanted.version,
        network=caller.request.network,
    )
    if found is None:
        raise _Refused(lookup.not_found(artifact, wanted.version), artifact, wanted.version)
    version = found.version
    manifest = selection.load_manifest(view, version.manifest)
    files = selection.select_files(manifest, wanted.include, wanted.exclude)
    whole = selection.whole_runs(manifest, files)
    runs = whole if wanted.extents is None else selection.check_runs(manifest, files, wanted.extents)
    total = sum(manifest.files[index].size for index in files)
    what = _Asked(version=version, manifest=manifest, files=files, purpose=wanted.purpose, bytes=total)
    answer = _check_allowed(house, view, caller, found.collection, what)
    # I06: a grant never outlives principal and key; those end only by revocation, which every lease checks.
    expires = now + limits.GRANT_TTL * 1000
    grant = Grant(
        id=grant_id,
        principal=caller.principal.id,
        jkt=caller.key.jkt,
        token=caller.token.id,
        collection=wanted.collection,
        name=wanted.name,
        version=version.version,
        version_id=version.version_id,
        manifest=version.manifest,
        selection=canonical_bytes([*files] if len(files) < len(manifest.files) else "all").decode(),
        files=len(files),
        bytes=total,
        purpose=wanted.purpose,
        created=now,
        expires=expires,
        status=ACTIVE,
    )
    window = selection.first_window(manifest, runs, room=house.lease_window)
    return _Plan(
        grant=grant,
        version=version,
        manifest=manifest,
        files=tuple(files),
        window=window,
        lease=_new_lease(grant, 0, wanted.recipient, window, caller),
        answer=answer,
    )


def _plan_lease(house: House, view: View, caller: authn.Caller, wanted: LeaseRequest) -> _Plan:
    grant = find_own_grant(view, caller, wanted.grant)
    version = view.find(Version, grant.collection, grant.name, grant.version)
    collection = view.find(Collection, grant.collection)
    if version is None or collection is None or version.manifest != grant.manifest:
        raise _Refused(lookup.not_found(grant.artifact, grant.version), grant.artifact, grant.version)
    if grant.status != ACTIVE or grant.expires <= caller.now:
        state = "was revoked" if grant.status != ACTIVE else "has run out"
        error = GrantRevoked(f"grant {grant.id} {state}", next=f"broker get {grant.artifact}@{grant.version}")
        raise _Refused(error, grant.artifact, grant.version)
    if grant.jkt != caller.key.jkt:
        raise _Refused(
            Denied("a lease is asked for with the key that the grant was made for"),
            grant.artifact,
            grant.version,
        )
    manifest = selection.load_manifest(view, grant.manifest)
    files = grant_files(grant, manifest)
    runs = selection.check_runs(manifest, files, wanted.extents)
    if not runs:
        raise InvalidRequest("a lease is asked for without extents")
    window = selection.first_window(manifest, runs, room=house.lease_window)
    what = _Asked(
        version=version,
        manifest=manifest,
        files=sorted({run[0] for run in window.runs}),
        purpose=grant.purpose,
        bytes=window.bytes,
    )
    answer = _check_allowed(house, view, caller, collection, what)
    return _Plan(
        grant=grant,
        version=version,
        manifest=manifest,
        files=tuple(files),
        window=window,
        lease=_new_lease(grant, _next_number(view, grant), wanted.recipient, window, caller),
        answer=answer,
    )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    version: Version
    manifest: Manifest
    files: Sequence[int]
    purpose: str
    bytes: int

    @property
    def ask(self) -> scope.Ask:
        return scope.Ask(
            action="read",
            collection=self.version.collection,
            name=self.version.name,
            version=self.version.version,
            manifest=self.version.manifest,
            paths=[self.manifest.files[index].path for index in self.files],
            purpose=self.purpose or None,
        )


def _check_allowed(
    house: House, view: View, caller: authn.Caller, collection: Collection, what: _Asked
) -> deciding.Answer:
    version = what.version
    try:
        scope.permits(caller.levels, what.ask)
    except Denied as error:
        raise _Refused(error, version.artifact, version.version) from error
    answer = deciding.decide(
        house,
        view,
        caller.principal,
        "read",
        lookup.version_target(collection, version),
        purpose=what.purpose,
        network=caller.request.network,
        asked_bytes=what.bytes,
    )
    if not answer.allowed:
        error = answer.refusal(f"read of {version.artifact}@{version.version}")
        raise _Refused(error, version.artifact, version.version, answer)
    return answer


def _new_lease(
    grant: Grant, number: int, recipient: bytes, window: selection.Window, caller: authn.Caller
) -> Lease:
    # I06: never later than what it rests on: five minutes, the grant, the token.
    expires = min(caller.now + limits.LEASE_TTL * 1000, grant.expires, caller.token.expires)
    return Lease(
        grant=grant.id,
        number=number,
        recipient=seal.recipient_digest(recipient),
        extents=canonical_bytes([list(run) for run in window.runs]).decode(),
        expires=expires,
    )


def _next_number(view: View, grant: Grant) -> int:
    """The first unused lease number. Numbers are dense, so O(log n) look-ups find the end."""
    beyond = 1
    while view.find(Lease, grant.id, beyond) is not None:
        beyond *= 2
    used = beyond // 2
    while beyond - used > 1:
        middle = (used + beyond) // 2
        if view.find(Lease, grant.id, middle) is None:
            beyond = middle
        else:
            used = middle
    return beyond


def find_own_grant(view: View, caller: authn.Caller, id: str) -> Grant:
    """A grant of the caller's own principal.

    Raises:
        NotFound: There is none of that id, or it is somebody else's.
    """
    grant = view.find(Grant, id)
    if grant is None or grant.principal != caller.principal.id:
        raise NotFound("there is no such grant", next="broker get REF")
    return grant


def grant_files(grant: Grant, manifest: Manifest) -> list[int]:
    """Indices of the files that a grant selected."""
    chosen = parse_json(grant.selection.encode())
    return list(range(len(manifest.files))) if chosen == "all" else chosen


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
            made: _Plan = plan(view, caller)
        except _Refused as refused:
            outcome.refusal = refused.error
            return _denial(house, caller, refused, request_id)
        outcome.plan = made
        return _release_draft(house, caller, made, request_id, body_digest)

    try:
        draft, recorded = decide_and_record(house, decide, have=have)
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
    del draft
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
    house: House, caller: authn.Caller, made: _Plan, request_id: str, body_digest: bytes
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
    )
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
        selection={"digest": sha256_digest(record), "files": len(files), "extents": extents},
        bytes=made.grant.bytes if first else made.window.bytes,
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
    what = _Asked(
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


def _denial(house: House, caller: authn.Caller, refused: _Refused, request_id: str) -> Draft:
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
        refused = _Refused(over, made.grant.artifact, made.grant.version)
        return _denial(house, caller, refused, request_id)

    decide_and_record(house, decide)


def _first_outcome(house: House, made: _Plan, recorded: Recorded) -> _Plan:
    """What the first request of this id was given: released again, to the same recipient only.

    The decision was made anew on this snapshot and is an allow (I15); entry, grant and charge are the
    first ones.

    Raises:
        Conflict: The first lease has run out, or the id belongs to a request of another kind.
    """
    entry = recorded.entry
    with house.ledger.view() as view:
        if entry["type"] not in ("grant", "lease"):
            raise Conflict("this request id was used before, and refused", next="use a new request_id")
        grant = view.find(Grant, entry["grant"])
        row = view.find(Lease, entry["grant"], entry["lease"])
        if grant is None or row is None or grant.status != ACTIVE:
            raise GrantRevoked("the grant of this request was revoked")
        if row.expires <= view.now or row.recipient != made.lease.recipient:
            raise Conflict("the lease of this request has run out", next="ask for a new lease")
    runs = tuple((run[0], run[1], run[2]) for run in json.loads(row.extents))
    window = selection.Window(runs=runs, extents=sum(r[2] - r[1] + 1 for r in runs), bytes=made.window.bytes)
    return replace(made, grant=grant, lease=row, window=window)
