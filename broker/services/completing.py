"""Step 10, and the end of a grant: what was received is recorded; an owner may revoke."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.canonical import Json, canonical_bytes, format_time
from broker.drafts import Draft, RequestKey
from broker.errors import InvalidRequest
from broker.identity import scope
from broker.model import ACTIVE, REVOKED, Grant
from broker.policy import request as policy
from broker.ports import View
from broker.services import access, authn, cosigned, deciding, denials, planning, selection
from broker.services.house import House
from broker.services.record import Recorded, decide_and_record, digest_of, new_entry


def proof_json(recorded: Recorded) -> Json:
    """The members of every recorded answer that let the caller check it."""
    return {"receipt": recorded.receipt, "consistency": list(recorded.consistency)}


def grant_json(grant: Grant) -> Json:
    """A grant as the API shows it."""
    return {
        "id": grant.id,
        "artifact": grant.artifact,
        "version": grant.version,
        "manifest": grant.manifest,
        "principal": grant.principal,
        "jkt": grant.jkt,
        "files": grant.files,
        "bytes": grant.bytes,
        "purpose": grant.purpose,
        "expires_at": format_time(grant.expires),
        "status": grant.status,
    }


def released_json(released: access.Released) -> Json:
    """The answer to a grant or lease request."""
    answer = {
        "grant": grant_json(released.grant),
        "decision": released.decision,
        **proof_json(released.recorded),
        "lease": released.lease,
    }
    return answer if released.cosigned is None else {**answer, "cosigned": released.cosigned}


def _own_grant(view: View, caller: authn.Caller, id: str) -> Grant:
    """A grant of the caller's own that its token covers: what is one's own is no way around a scope."""
    row = planning.find_own_grant(view, caller, id)
    manifest = selection.load_manifest(view, row.manifest)
    paths = [manifest.files[index].path for index in planning.grant_files(row, manifest)]
    asked = scope.Ask(
        action="read",
        collection=row.collection,
        name=row.name,
        version=row.version,
        manifest=row.manifest,
        paths=paths,
        purpose=row.purpose or None,
    )
    scope.permits(caller.levels, asked)
    return row


@denials.recorded("read")
def complete(
    house: House,
    request: authn.SignedRequest,
    *,
    grant: str,
    request_id: str,
    received: Mapping[str, int],
    have: str | None,
) -> Json:
    """Record what the caller says it received and verified: asked, released, received.

    Raises:
        NotFound: Not a grant of the caller's.
        ScopeExceeded: The token does not cover it.
        InvalidRequest: More is claimed than the grant covers.
        LedgerUnavailable: The witnesses have not signed what was released for too long.
    """
    digest = digest_of(canonical_bytes({"grant": grant, "received": dict(received)}))
    seen: list[cosigned.CosignedHead | None] = [None]

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        row = _own_grant(view, caller, grant)
        if received["files"] > row.files or received["bytes"] > row.bytes:
            raise InvalidRequest("more was received than the grant covers")
        seen[0] = cosigned.require_covered(house, view, row.entry)
        entry = new_entry(
            house,
            time=caller.now,
            type="completion",
            evidence=caller.evidence(),
            request_id=request_id,
            action="read",
            artifact=row.artifact,
            version=row.version,
            manifest=row.manifest,
            bytes=received["bytes"],
            purpose=row.purpose or None,
            grant=row.id,
            received=dict(received),
            **caller.members(),
        )
        key = RequestKey(jkt=caller.key.jkt, request_id=request_id, body_digest=digest)
        return Draft(proof=caller.proof_use, request=key, entries=(entry,))

    _, recorded = decide_and_record(house, decide, have=have)
    found = cosigned.cosigned_json(house, seen[0], recorded)
    return proof_json(recorded) if found is None else {**proof_json(recorded), "cosigned": found}


@denials.recorded("read")
def show_grant(house: House, request: authn.SignedRequest, id: str) -> Json:
    """One of the caller's own grants."""
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        grant = _own_grant(view, caller, id)
    authn.use_proof(house, caller)
    return {"grant": grant_json(grant)}


@denials.recorded("revoke-own")
def revoke_own_grant(house: House, request: authn.SignedRequest, id: str, *, have: str | None) -> Json:
    """An owner ends a grant: no further lease, from the next request on (I15).

    Raises:
        NotFound: Not a grant of the caller's.
        Denied: Policy does not let owners revoke.
    """

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        row = _own_grant(view, caller, id)
        answer = deciding.decide(
            house,
            view,
            caller.principal,
            "revoke-own",
            policy.GrantTarget(id=row.id, owner=row.principal),
            network=caller.request.network,
        )
        if not answer.allowed:
            raise answer.refusal(f"revoking grant {id}")
        entry = new_entry(
            house,
            time=caller.now,
            type="revocation",
            evidence=caller.evidence(answer.inputs),
            action="revoke-own",
            decision=answer.decision.as_json(),
            grant=row.id,
            target={"kind": "grant", "id": row.id},
            **caller.members(),
        )
        changed = (replace(row, status=REVOKED),) if row.status == ACTIVE else ()
        return Draft(
            proof=caller.proof_use, entries=(entry,), rows=changed, expects=(row,), bumps_epoch=bool(changed)
        )

    _, recorded = decide_and_record(house, decide, have=have)
    return proof_json(recorded)
