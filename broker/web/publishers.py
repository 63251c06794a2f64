"""Routes of publishers: begin, upload URLs, commit, abandon."""

from __future__ import annotations

from broker import names
from broker.canonical import Json, parse_b64url
from broker.services import committing, publish, uploads
from broker.web import models
from broker.web.calls import Call
from broker.web.readers import recipient


def begin(call: Call) -> Json:
    """Begin an upload, or take up an open one with the same content."""
    body: models.UploadBody = call.body
    collection, name = names.parse_artifact(body.artifact)
    wanted = uploads.UploadRequest(
        request_id=body.request_id,
        collection=collection,
        name=name,
        version=names.parse_version_name(body.version),
        kind=body.kind,
        labels=body.labels,
        extent_size=body.extent_size,
        files=tuple((file.path, file.size) for file in body.files),
        recipient=recipient(body.recipient),
        have=body.have,
    )
    return publish.begin(call.house, call.request, wanted)


def show(call: Call) -> Json:
    """What the store holds of an upload."""
    return committing.status(call.house, call.request, call.values["id"])


def urls(call: Call) -> Json:
    """Create-only upload URLs."""
    body: models.UrlsBody = call.body
    wanted = committing.UrlsRequest(
        upload=call.values["id"],
        parts=tuple((file, part) for file, part in body.parts),
        segments=tuple(body.segments),
    )
    return committing.urls(call.house, call.request, wanted)


def commit(call: Call) -> Json:
    """Make the version visible."""
    body: models.CommitBody = call.body
    wanted = committing.CommitRequest(
        request_id=body.request_id,
        upload=call.values["id"],
        manifest=parse_b64url(body.manifest),
        signature=body.signature,
        have=body.have,
    )
    return committing.commit(call.house, call.request, wanted)


def abandon(call: Call) -> Json:
    """Give an upload up."""
    body: models.Maybe = call.body
    request_id = body.request_id or call.house.entropy.uuid()
    return publish.abandon(call.house, call.request, call.values["id"], request_id=request_id, have=body.have)
