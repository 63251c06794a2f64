"""What a caller may see: artifacts, versions, manifests, itself; and what it would be allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from broker.canonical import Json, b64url, format_time, sha256_digest
from broker.drafts import Draft
from broker.errors import Denied, IntegrityFailure, ScopeExceeded
from broker.identity import scope
from broker.ledger import merkle, receipt
from broker.ledger.entry import cut_name
from broker.model import Artifact, Collection, Key, ManifestRow, Principal, Version
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, completing, deciding, denials, lookup
from broker.services.house import House
from broker.services.record import decide_and_record, new_entry, sign_head


def version_json(row: Version) -> Json:
    """A version as the API shows it."""
    return {
        "artifact": row.artifact,
        "version": row.version,
        "manifest": row.manifest,
        "kind": row.kind,
        "labels": json.loads(row.labels),
        "files": row.files,
        "bytes": row.bytes,
        "publisher": row.publisher,
        "committed_at": format_time(row.committed),
        "entry": row.entry,
    }


@denials.recorded("describe")
def whoami(house: House, request: authn.SignedRequest) -> Json:
    """The caller: principal, every key bound to it (so a false one is noticed), and this token."""
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        keys = view.list(Key, principal=caller.principal.id)
    authn.use_proof(house, caller)
    return {
        "principal": {
            "id": caller.principal.id,
            "roles": list(caller.principal.roles),
            "groups": list(caller.principal.groups),
            "disabled": caller.principal.disabled,
        },
        "jkt": caller.key.jkt,
        "keys": [
            {"jkt": key.jkt, "status": key.status, "entry": key.entry, "created_at": format_time(key.created)}
            for key in keys
        ],
        "token": {
            "id": caller.token.id,
            "expires_at": format_time(caller.token.expires),
            "authorization_details": caller.levels,
            "chain": list(caller.token.chain),
            "identity": caller.identity.as_json() if caller.identity else None,
        },
    }


def _permit(caller: authn.Caller, collection: str | None = None, name: str | None = None) -> None:
    scope.permits(caller.levels, scope.Ask(action="describe", collection=collection, name=name))


@denials.recorded("describe")
def list_artifacts(
    house: House,
    request: authn.SignedRequest,
    *,
    collection: str | None = None,
    after: str | None = None,
    limit: int = 1000,
) -> Json:
    """Artifacts that the caller may see, ordered by name; ``next_after`` goes on from the page's end."""
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        _permit(caller, collection)
        where = {"collection": collection} if collection else {}
        rows = [row for row in view.list(Artifact, **where) if after is None or _full(row) > after]
        shown: list[Json] = []
        for row in sorted(rows, key=_full):
            if len(shown) == limit:
                break
            if lookup.artifact_visible(house, view, caller.principal, row, network=request.network):
                shown.append(_artifact_json(view, row))
    authn.use_proof(house, caller)
    return {"artifacts": shown, "next_after": shown[-1]["artifact"] if len(shown) == limit else None}


def _full(row: Artifact) -> str:
    return f"{row.collection}/{row.name}"


def _artifact_json(view: View, row: Artifact) -> Json:
    names = view.versions(row.collection, row.name)
    newest = lookup.resolve_version(view, row.collection, row.name, None)
    return {
        "artifact": _full(row),
        "kind": row.kind,
        "versions": len(names),
        "newest": newest.version if newest else None,
        "files": newest.files if newest else None,
        "bytes": newest.bytes if newest else None,
    }


@denials.recorded("describe")
def show_artifact(house: House, request: authn.SignedRequest, collection: str, name: str) -> Json:
    """An artifact and its versions in the order of their commits.

    Raises:
        NotFound: Unknown or invisible.
    """
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        _permit(caller, collection, name)
        row = view.find(Artifact, collection, name)
        if row is None or not lookup.artifact_visible(
            house, view, caller.principal, row, network=request.network
        ):
            raise lookup.not_found(f"{collection}/{name}", None)
        rows = [view.find(Version, collection, name, label) for label in view.versions(collection, name)]
    authn.use_proof(house, caller)
    return {
        "artifact": f"{collection}/{name}",
        "kind": row.kind,
        "versions": [version_json(version) for version in rows if version],
    }


def _visible(
    house: House,
    view: View,
    caller: authn.Caller,
    collection: str,
    name: str,
    version: str | None,
) -> Version:
    row = lookup.resolve_version(view, collection, name, version)
    ask = scope.Ask(
        action="describe",
        collection=collection,
        name=name,
        version=row.version if row else version,
        manifest=row.manifest if row else None,
    )
    scope.permits(caller.levels, ask)
    found = lookup.find_visible(
        house, view, caller.principal, collection, name, version, network=caller.request.network
    )
    if found is None:
        raise lookup.not_found(f"{collection}/{name}", version)
    return found.version


@denials.recorded("describe")
def show_version(
    house: House, request: authn.SignedRequest, collection: str, name: str, version: str | None
) -> Json:
    """One version; None is the newest.

    Raises:
        NotFound: Unknown or invisible.
    """
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        row = _visible(house, view, caller, collection, name, version)
    authn.use_proof(house, caller)
    return version_json(row)


@denials.recorded("describe")
def show_manifest(
    house: House, request: authn.SignedRequest, collection: str, name: str, version: str | None
) -> Json:
    """The manifest, its signature, and receipts of the commit and of the publisher's key binding.

    Both receipts stand under one tree head, so that the reader checks the trust path in one log.

    Raises:
        NotFound: Unknown or invisible.
        IntegrityFailure: The stored manifest is not what its digest names.
    """
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        row = _visible(house, view, caller, collection, name, version)
        manifest = view.find(ManifestRow, row.manifest)
        if manifest is None or sha256_digest(manifest.body) != row.manifest:
            raise IntegrityFailure("the stored manifest is not what its digest names")
        tail = view.tail()
        head = sign_head(house, tail)

        def proven(index: int) -> str:
            data = view.entry(index)
            proof = merkle.inclusion_proof(index, tail.size, view.hashes)
            merkle.verify_inclusion(merkle.leaf_hash(data), index, tail.size, proof, tail.root)
            return receipt.build_receipt(data, index, proof, head)

        commit, binding = proven(row.entry), proven(row.binding)
    authn.use_proof(house, caller)
    return {
        "version": version_json(row),
        "manifest": b64url(manifest.body),
        "signature": manifest.signature,
        "commit": commit,
        "binding": binding,
    }


@dataclass(frozen=True, kw_only=True)
class DecisionRequest:
    """A dry run: would this be allowed? ``principal`` None asks about the caller."""

    request_id: str
    collection: str
    name: str
    version: str | None
    action: str
    principal: str | None = None
    path: str | None = None
    have: str | None = None


@denials.recorded("describe")
def dry_run(house: House, request: authn.SignedRequest, wanted: DecisionRequest) -> Json:
    """Policy's answer without releasing anything; itself recorded.

    Asking about somebody else needs the right to audit or to administer principals, of the caller and
    of its token.

    Raises:
        NotFound: Unknown, or invisible to the caller.
        Denied: The caller may not ask about another principal.
    """
    kept: list[tuple[deciding.Answer, str, str | None]] = []

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        scope.permits(
            caller.levels,
            scope.Ask(
                action="describe", collection=wanted.collection, name=wanted.name, version=wanted.version
            ),
        )
        about = _about(house, view, caller, wanted.principal)
        target, version = _dry_target(house, view, caller, wanted)
        answer = deciding.decide(house, view, about, wanted.action, target, network=caller.request.network)
        kept[:] = [(answer, about.id, version)]
        entry = new_entry(
            house,
            time=caller.now,
            type="decision",
            evidence=caller.evidence(answer.inputs),
            request_id=wanted.request_id,
            subject=about.id,
            action=wanted.action,
            artifact=cut_name(f"{wanted.collection}/{wanted.name}"),
            version=cut_name(version) if version else None,
            decision=answer.decision.as_json(),
            **caller.members(),
        )
        return Draft(proof=caller.proof_use, entries=(entry,))

    _, recorded = decide_and_record(house, decide, have=wanted.have)
    answer, about, version = kept[0]
    return {
        "decision": answer.decision.as_json(),
        "artifact": f"{wanted.collection}/{wanted.name}",
        "version": version,
        "action": wanted.action,
        "principal": about,
        "why": answer.why,
        "next": answer.next,
        **completing.proof_json(recorded),
    }


def _about(house: House, view: View, caller: authn.Caller, other: str | None) -> Principal:
    if other is None or other == caller.principal.id:
        return caller.principal
    questions: tuple[tuple[scope.Ask, str, policy.Target], ...] = (
        (scope.Ask(type=scope.LEDGER, action="search"), "audit", policy.LedgerTarget()),
        (
            scope.Ask(type=scope.ADMINISTRATION, action="principals"),
            "administer",
            policy.AdministrationTarget(area="principals"),
        ),
    )
    # I07: the right is asked of the token too, or one that was minted to read a shard would have it.
    answers = [
        deciding.decide(house, view, caller.principal, action, target, network=caller.request.network)
        for asked, action, target in questions
        if _covers(caller, asked)
    ]
    if not any(answer.allowed for answer in answers):
        raise Denied(
            "asking what another principal may do is denied",
            why="only auditors and admins may ask, with a token that covers ledger or principals",
        )
    row = view.find(Principal, other)
    if row is None:
        raise lookup.not_found(other, None)
    return row


def _covers(caller: authn.Caller, asked: scope.Ask) -> bool:
    try:
        scope.permits(caller.levels, asked)
    except ScopeExceeded:
        return False
    return True


def _dry_target(
    house: House, view: View, caller: authn.Caller, wanted: DecisionRequest
) -> tuple[policy.Target, str | None]:
    if wanted.action == "publish":
        home = view.find(Collection, wanted.collection) or policy.new_collection(wanted.collection)
        row = view.find(Artifact, wanted.collection, wanted.name)
        kind = row.kind if row else "checkpoint"
        version = wanted.version or "next"
        target = policy.VersionTarget(
            collection=home, name=wanted.name, version=version, kind=kind, labels={"tier": "standard"}
        )
        return target, wanted.version
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
        raise lookup.not_found(f"{wanted.collection}/{wanted.name}", wanted.version)
    return found.target, found.version.version
