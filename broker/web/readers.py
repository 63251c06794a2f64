"""Routes of readers: the catalogue, grants, leases, dry runs."""

from __future__ import annotations

from broker import names
from broker.canonical import Json, parse_b64url
from broker.errors import InvalidRequest
from broker.services import access, catalogue, completing, enrolment, planning
from broker.web import models
from broker.web.calls import Call

NEWEST = "-"
"""In the place of a version in a path: the newest committed one."""


def enrol(call: Call) -> Json:
    """Bind the key that signed to the principal of a one-time code."""
    body: models.EnrolmentBody = call.body
    return enrolment.enrol(
        call.house,
        call.request,
        request_id=body.request_id,
        id=enrolment.parse_code_id(body.id),
        mac=parse_b64url(body.mac, size=32),
    )


def whoami(call: Call) -> Json:
    """The caller, its keys and its token."""
    return catalogue.whoami(call.house, call.request)


# -- the catalogue ----------------------------------------------------------------------------------------


def list_artifacts(call: Call) -> Json:
    """Artifacts that the caller may see, of all collections."""
    return _list(call, None)


def list_collection(call: Call) -> Json:
    """Artifacts of one collection that the caller may see."""
    return _list(call, names.parse_part(call.values["collection"], "collection"))


def _list(call: Call, collection: str | None) -> Json:
    query: models.ArtifactsQuery = call.query
    after = None if query.after is None else "/".join(names.parse_artifact(query.after))
    return catalogue.list_artifacts(
        call.house, call.request, collection=collection, after=after, limit=query.limit
    )


def show_artifact(call: Call) -> Json:
    """One artifact and its versions."""
    return catalogue.show_artifact(call.house, call.request, *_artifact(call))


def show_version(call: Call) -> Json:
    """One version."""
    return catalogue.show_version(call.house, call.request, *_artifact(call), _version(call))


def show_manifest(call: Call) -> Json:
    """The manifest of a version, its signature, and the receipts of its trust path."""
    return catalogue.show_manifest(call.house, call.request, *_artifact(call), _version(call))


def _artifact(call: Call) -> tuple[str, str]:
    collection = names.parse_part(call.values["collection"], "collection")
    return collection, names.parse_part(call.values["name"], "name")


def _version(call: Call) -> str | None:
    text = call.values["version"]
    return None if text == NEWEST else names.parse_version(text)


# -- grants -------------------------------------------------------------------------------------------------


def ask(call: Call) -> Json:
    """A grant and its first lease."""
    body: models.GrantBody = call.body
    collection, name = names.parse_artifact(body.artifact)
    wanted = planning.GrantRequest(
        request_id=body.request_id,
        collection=collection,
        name=name,
        version=None if body.version is None else names.parse_version(body.version),
        include=tuple(body.include),
        exclude=tuple(body.exclude),
        purpose=body.purpose,
        recipient=recipient(body.recipient),
        extents=_tuples(body.extents),
        spans=_tuples(body.spans),
        ranges=body.ranges,
        have=body.have,
    )
    return completing.released_json(access.ask(call.house, call.request, wanted))


def lease(call: Call) -> Json:
    """The next lease of a grant."""
    body: models.LeaseBody = call.body
    wanted = planning.LeaseRequest(
        request_id=body.request_id,
        grant=call.values["id"],
        recipient=recipient(body.recipient),
        extents=_tuples(body.extents),
        spans=_tuples(body.spans),
        ranges=body.ranges,
        have=body.have,
    )
    return completing.released_json(access.lease(call.house, call.request, wanted))


def _tuples(items: list[list[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    return None if items is None else tuple(tuple(item) for item in items)


def complete(call: Call) -> Json:
    """What was received is recorded."""
    body: models.CompletionBody = call.body
    return completing.complete(
        call.house,
        call.request,
        grant=call.values["id"],
        request_id=body.request_id,
        received=body.received.model_dump(),
        have=body.have,
    )


def show_grant(call: Call) -> Json:
    """One of the caller's grants."""
    return completing.show_grant(call.house, call.request, call.values["id"])


def revoke_grant(call: Call) -> Json:
    """The caller ends one of its grants."""
    body: models.Maybe = call.body
    return completing.revoke_own_grant(call.house, call.request, call.values["id"], have=body.have)


def dry_run(call: Call) -> Json:
    """Would this be allowed, and by which policies?"""
    body: models.DecisionBody = call.body
    collection, name = names.parse_artifact(body.artifact)
    wanted = catalogue.DecisionRequest(
        request_id=body.request_id,
        collection=collection,
        name=name,
        version=None if body.version is None else names.parse_version(body.version),
        action=body.action,
        principal=None if body.principal is None else names.parse_principal(body.principal),
        path=None if body.path is None else names.parse_path(body.path),
        have=body.have,
    )
    return catalogue.dry_run(call.house, call.request, wanted)


def recipient(body: models.RecipientBody) -> bytes:
    """The bytes of a recipient's public key; what they are is checked where they are used.

    Raises:
        InvalidRequest: It is empty.
    """
    key = parse_b64url(body.public_key)
    if not key:
        raise InvalidRequest("the recipient has no public key")
    return key
