"""Publishing, steps P1 to P7. Plaintext and store credentials never come here, nor go out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from broker import limits
from broker.canonical import Json, b64url, canonical_bytes, format_time
from broker.drafts import Absent, Draft, RequestKey
from broker.envelope import parts, seal, wrap
from broker.envelope.lease import UploadKey, upload_key_bytes
from broker.errors import BrokerError, Conflict, NotFound
from broker.identity import scope
from broker.model import Artifact, Collection, Upload, Version
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, completing, deciding, denials
from broker.services.house import House
from broker.services.record import Recorded, decide_and_record, new_entry
from broker.services.releasing import object_name
from broker.services.upload_objects import clear_torn
from broker.services.uploads import UploadRequest, check_description

OPEN, COMMITTED, ABANDONED = "open", "committed", "abandoned"


# -- P1 to P3 -----------------------------------------------------------------------------------------------


def begin(house: House, request: authn.SignedRequest, wanted: UploadRequest) -> Json:
    """P1 to P3: decide, record, and seal a version key to the publisher.

    An open upload of the same key with the same content is taken up again: same id, same version key.

    Raises:
        Denied, ScopeExceeded: Recorded refusals.
        Conflict: The version exists, or the artifact is of another kind.
    """
    seal.parse_recipient(wanted.recipient)
    check_description(wanted)
    fresh = _Fresh(
        id=house.new_id("u_"),
        version_id=house.entropy.random_bytes(16),
        version_key=house.entropy.random_bytes(32),
    )
    refusal: list[BrokerError] = []
    kept: list[Upload] = []

    def decide(view: View) -> Draft:
        refusal.clear()
        caller = authn.authenticate(house, view, request)
        try:
            answer = check_publish(house, view, caller, wanted)
        except denials.REFUSALS as error:
            refusal.append(error)
            return _denial(house, caller, error, wanted)
        _check_free(view, wanted)
        upload = _find_open(view, caller, wanted) or _new_upload(house, caller, wanted, fresh)
        kept[:] = [upload]
        entry = new_entry(
            house,
            time=caller.now,
            type="publish",
            evidence=caller.evidence(answer.inputs),
            request_id=wanted.request_id,
            action="publish",
            artifact=wanted.artifact,
            version=wanted.version,
            bytes=sum(size for _, size in wanted.files),
            recipient=seal.recipient_digest(wanted.recipient),
            decision=answer.decision.as_json(),
            upload=upload.id,
            kind=wanted.kind,
            labels=dict(wanted.labels),
            version_id=b64url(upload.version_id),
            **caller.members(),
        )
        new = upload.id == fresh.id
        return Draft(
            proof=caller.proof_use,
            request=RequestKey(
                jkt=caller.key.jkt, request_id=wanted.request_id, body_digest=wanted.body_digest()
            ),
            entries=(entry,),
            rows=(upload,) if new else (),
            expects=(Absent(row=Version, key=(wanted.collection, wanted.name, wanted.version)),),
        )

    _, recorded = decide_and_record(house, decide, have=wanted.have)
    if refusal:
        raise refusal[0]
    upload = kept[0]
    if recorded.repeated:
        upload = _repeated_upload(house, recorded)
    if upload.id != fresh.id:
        clear_torn(house, upload)
    _open_multiparts(house, upload)
    return _begun(house, upload, recorded, wanted.recipient)


@dataclass(frozen=True, kw_only=True)
class _Fresh:
    id: str
    version_id: bytes
    version_key: bytes


def check_publish(house: House, view: View, caller: authn.Caller, wanted: UploadRequest) -> deciding.Answer:
    """Scope and policy let the caller publish this; a collection that does not exist is made by it.

    Raises:
        ScopeExceeded, Denied, ApprovalNeeded: They do not, or the caller's key is not a publisher's.
    """
    authn.check_may_publish(caller)
    _permit(caller, wanted)
    stored = view.find(Collection, wanted.collection)
    home = stored or policy.new_collection(wanted.collection)
    questions: list[tuple[str, policy.Target]] = []
    if stored is None:
        questions.append(("create-collection", policy.CollectionTarget(collection=home)))
    target = policy.VersionTarget(
        collection=home, name=wanted.name, version=wanted.version, kind=wanted.kind, labels=wanted.labels
    )
    questions.append(("publish", target))
    for action, on in questions:
        answer = deciding.decide(house, view, caller.principal, action, on, network=caller.request.network)
        if not answer.allowed:
            raise answer.refusal(f"{action} of {wanted.artifact}@{wanted.version}")
    return answer


def _denial(house: House, caller: authn.Caller, error: BrokerError, wanted: UploadRequest) -> Draft:
    return denials.denial_draft(
        house,
        caller,
        error=error,
        action="publish",
        artifact=wanted.artifact,
        version=wanted.version,
        request_id=wanted.request_id,
    )


def _check_free(view: View, wanted: UploadRequest) -> None:
    if view.find(Version, wanted.collection, wanted.name, wanted.version) is not None:
        raise Conflict(
            f"{wanted.artifact}@{wanted.version} exists",
            why="a version never changes once it is committed",
            next="publish under a new version name",
        )
    artifact = view.find(Artifact, wanted.collection, wanted.name)
    if artifact is not None and artifact.kind != wanted.kind:
        raise Conflict(
            f"{wanted.artifact} is a {artifact.kind}",
            why=f"all versions of an artifact are of one kind; this one is a {wanted.kind}",
            next=f"--kind {artifact.kind}, or another name",
        )


def _find_open(view: View, caller: authn.Caller, wanted: UploadRequest) -> Upload | None:
    rows = view.list(
        Upload,
        collection=wanted.collection,
        name=wanted.name,
        version=wanted.version,
        jkt=caller.key.jkt,
        status=OPEN,
    )
    same = [row for row in rows if row.expires > caller.now and _content(row) == wanted.content()]
    return same[-1] if same else None


def _content(row: Upload) -> Json:
    return {
        "artifact": row.artifact,
        "version": row.version,
        "kind": row.kind,
        "labels": json.loads(row.labels),
        "extent_size": row.extent_size,
        "files": json.loads(row.files),
    }


def _new_upload(house: House, caller: authn.Caller, wanted: UploadRequest, fresh: _Fresh) -> Upload:
    aad = wrap.wrap_aad(
        use="upload",
        version_id=fresh.version_id,
        artifact=wanted.artifact,
        tier=wanted.labels["tier"],
        publisher=caller.key.jkt,
    )
    return Upload(
        id=fresh.id,
        collection=wanted.collection,
        name=wanted.name,
        version=wanted.version,
        version_id=fresh.version_id,
        kind=wanted.kind,
        labels=canonical_bytes(dict(wanted.labels)).decode(),
        extent_size=wanted.extent_size,
        files=canonical_bytes([list(file) for file in wanted.files]).decode(),
        principal=caller.principal.id,
        jkt=caller.key.jkt,
        wrapped_key=house.custody.wrap(fresh.version_key, aad),
        status=OPEN,
        created=caller.now,
        expires=caller.now + limits.UPLOAD_TTL * 1000,
    )


def _repeated_upload(house: House, recorded: Recorded) -> Upload:
    with house.ledger.view() as view:
        row = view.find(Upload, recorded.entry.get("upload", ""))
    if row is None or row.status != OPEN:
        raise Conflict("the upload of this request is no longer open", next="begin a new one")
    return row


def _open_multiparts(house: House, upload: Upload) -> None:
    """Open a multipart upload for each file of several parts. Crash here: the next begin opens them."""
    if json.loads(upload.parts):
        return
    opened: dict[str, Any] = {"opened": True}
    for file, (_, size) in enumerate(json.loads(upload.files)):
        if parts.part_plan(size, upload.extent_size).parts > 1:
            opened[str(file)] = house.store.create_upload(object_name(upload.version_id, file))
    house.ledger.set_upload_parts(upload.id, canonical_bytes(opened).decode())


def upload_json(row: Upload) -> Json:
    """An upload as the API shows it to its owner."""
    return {
        "id": row.id,
        "artifact": row.artifact,
        "version": row.version,
        "version_id": b64url(row.version_id),
        "kind": row.kind,
        "labels": json.loads(row.labels),
        "extent_size": row.extent_size,
        "expires_at": format_time(row.expires),
        "status": row.status,
    }


def unwrap_upload_key(house: House, row: Upload) -> bytes:
    """The version key of an open upload.

    Raises:
        IntegrityFailure: The row was changed since the key was wrapped (I19).
    """
    aad = wrap.wrap_aad(
        use="upload",
        version_id=row.version_id,
        artifact=row.artifact,
        tier=json.loads(row.labels)["tier"],
        publisher=row.jkt,
    )
    return house.custody.unwrap(row.wrapped_key, aad)


def _begun(house: House, row: Upload, recorded: Recorded, recipient: bytes) -> Json:
    entry = recorded.entry
    key = UploadKey(upload=row.id, version_id=row.version_id, version_key=unwrap_upload_key(house, row))
    info = seal.upload_info(
        upload=row.id,
        leaf_hash=recorded.leaf_hash,
        jkt=entry["jkt"],
        recipient_digest=entry["recipient"],
    )
    return {
        "upload": upload_json(row),
        "decision": entry["decision"],
        **completing.proof_json(recorded),
        "sealed": b64url(seal.seal(upload_key_bytes(key), recipient, info)),
    }


def _permit(caller: authn.Caller, wanted: UploadRequest) -> None:
    asked = scope.Ask(
        action="publish",
        collection=wanted.collection,
        name=wanted.name,
        version=wanted.version,
        paths=[path for path, _ in wanted.files],
    )
    scope.permits(caller.levels, asked)


def find_own_upload(view: View, caller: authn.Caller, id: str) -> Upload:
    """An upload that the caller's own key began, and that its token covers.

    Raises:
        NotFound: There is none of that id, or it is another key's.
        ScopeExceeded: The token does not cover it.
    """
    row = view.find(Upload, id)
    if row is None or row.principal != caller.principal.id or row.jkt != caller.key.jkt:
        raise NotFound("there is no such upload", next="broker put PATH REF")
    _permit(caller, description_of(row))
    return row


def description_of(row: Upload) -> UploadRequest:
    """The request that an upload began with, to be decided again."""
    return UploadRequest(
        request_id="",
        collection=row.collection,
        name=row.name,
        version=row.version,
        kind=row.kind,
        labels=json.loads(row.labels),
        extent_size=row.extent_size,
        files=tuple((path, size) for path, size in json.loads(row.files)),
        recipient=b"",
    )


@denials.recorded("publish")
def abandon(
    house: House, request: authn.SignedRequest, id: str, *, request_id: str, have: str | None
) -> Json:
    """The owner gives an upload up; its objects are swept.

    Raises:
        NotFound: Not an upload of the caller's key.
        Conflict: It was committed.
    """

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        row = find_own_upload(view, caller, id)
        if row.status == COMMITTED:
            raise Conflict("the upload was committed", next="a committed version is not abandoned")
        entry = new_entry(
            house,
            time=caller.now,
            type="abandon",
            evidence=caller.evidence(),
            request_id=request_id,
            artifact=row.artifact,
            version=row.version,
            upload=row.id,
            **caller.members(),
        )
        return Draft(
            proof=caller.proof_use,
            entries=(entry,),
            rows=(replace(row, status=ABANDONED),) if row.status == OPEN else (),
            expects=(row,),
        )

    _, recorded = decide_and_record(house, decide, have=have)
    return completing.proof_json(recorded)
