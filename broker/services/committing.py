"""Publishing, steps P4 to P7: upload URLs, what the store holds, and the commit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from broker import limits
from broker.canonical import Json, canonical_bytes, format_time, sha256_digest
from broker.drafts import Absent, Draft, NewEntry, RequestKey
from broker.envelope import extents, parts, wrap
from broker.envelope.manifest import Manifest, manifest_digest, parse_manifest, verify_manifest
from broker.errors import Conflict, IntegrityFailure, InvalidRequest, StoreUnavailable
from broker.model import Artifact, Collection, Group, ManifestRow, Row, Upload, Version
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, catalogue, completing, denials, publish, releasing
from broker.services.house import House
from broker.services.planning import RefusedError
from broker.services.record import decide_and_record, digest_of, new_entry
from broker.services.upload_objects import expected_objects, whole_objects

MAX_URLS = 1000


@dataclass(frozen=True, kw_only=True)
class UrlsRequest:
    """Which parts (file, part from 1) and segment lists (file) the publisher wants to upload next."""

    upload: str
    parts: tuple[tuple[int, int], ...]
    segments: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CommitRequest:
    """P6: the manifest's exact bytes and the publisher's detached JWS over them."""

    request_id: str
    upload: str
    manifest: bytes
    signature: str
    have: str | None = None


def _open_upload(house: House, view: View, caller: authn.Caller, id: str) -> Upload:
    row = publish.find_own_upload(view, caller, id)
    if row.status != publish.OPEN or row.expires <= caller.now:
        state = row.status if row.status != publish.OPEN else "expired"
        raise Conflict(f"the upload is {state}", next="broker put again: it begins a new upload")
    # I15: whoever lost the right to publish since P2 gets no further URL and no commit.
    try:
        publish.check_publish(house, view, caller, publish.description_of(row))
    except denials.REFUSALS as error:
        raise RefusedError(error, row.artifact, row.version) from error
    return row


# -- P4 ---------------------------------------------------------------------------------------------------


@denials.recorded("publish")
def urls(house: House, request: authn.SignedRequest, wanted: UrlsRequest) -> Json:
    """Create-only upload URLs for the wanted parts. The entry of P2 covers them (I01).

    Raises:
        Conflict: The upload is not open.
        InvalidRequest: Too many, or a part that does not exist.
    """
    if not 1 <= len(wanted.parts) + len(wanted.segments) <= MAX_URLS:
        raise InvalidRequest(f"1 to {MAX_URLS} URLs are asked for at once")
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        row = _open_upload(house, view, caller, wanted.upload)
    authn.use_proof(house, caller)
    files = json.loads(row.files)
    lifetime = max(1, min(limits.UPLOAD_URL_TTL, (row.expires - caller.now) // 1000))
    return {
        "urls": [_part_url(house, row, files, file, part, lifetime) for file, part in wanted.parts],
        "segments": [_segments_url(house, row, files, file, lifetime) for file in wanted.segments],
    }


def _size(files: list[list[object]], file: int) -> int:
    if not 0 <= file < len(files):
        raise InvalidRequest("a file of the upload does not exist")
    size = files[file][1]
    if not isinstance(size, int):
        raise IntegrityFailure("the upload's list of files is damaged")
    return size


def _part_url(
    house: House, row: Upload, files: list[list[object]], file: int, part: int, lifetime: int
) -> Json:
    size = _size(files, file)
    plan = parts.part_plan(size, row.extent_size)
    if not 1 <= part <= plan.parts:
        raise InvalidRequest("a part of the file does not exist")
    length = parts.part_size(size, row.extent_size, part)
    name, now = releasing.object_name(row.version_id, file), house.clock.now()
    headers = {"Content-Length": str(length)}
    if plan.parts == 1:
        url, expires = house.presigner.put(name, content_length=length, expires=lifetime, now=now)
        headers["If-None-Match"] = "*"
    else:
        upload_id = json.loads(row.parts).get(str(file))
        if upload_id is None:
            raise StoreUnavailable("the store has not opened this file's upload", next="broker put again")
        url, expires = house.presigner.upload_part(
            name, upload_id=upload_id, part_number=part, content_length=length, expires=lifetime, now=now
        )
    return {"file": file, "part": part, "url": url, "headers": headers, "expires_at": format_time(expires)}


def _segments_url(house: House, row: Upload, files: list[list[object]], file: int, lifetime: int) -> Json:
    size = _size(files, file)
    if not extents.has_segments_object(size, row.extent_size):
        raise InvalidRequest("the file has no list of segments of its own")
    length = extents.segments_object_size(size, row.extent_size)
    name = releasing.segments_name(row.version_id, file)
    url, expires = house.presigner.put(name, content_length=length, expires=lifetime, now=house.clock.now())
    headers = {"Content-Length": str(length), "If-None-Match": "*"}
    return {"file": file, "url": url, "headers": headers, "expires_at": format_time(expires)}


@denials.recorded("publish")
def status(house: House, request: authn.SignedRequest, id: str) -> Json:
    """What the store already holds of an upload, so that a rerun sends only the rest."""
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        row = publish.find_own_upload(view, caller, id)
    authn.use_proof(house, caller)
    held = whole_objects(house, row)
    files = json.loads(row.files)
    stored = {}
    for file, upload_id in multiparts(row).items():
        if releasing.object_name(row.version_id, file) not in held:
            found = house.store.list_parts(releasing.object_name(row.version_id, file), upload_id)
            stored[str(file)] = [[number, size] for number, _, size in found]
    return {
        "upload": publish.upload_json(row),
        "parts": stored,
        "objects": [i for i in range(len(files)) if releasing.object_name(row.version_id, i) in held],
        "segments": [i for i in range(len(files)) if releasing.segments_name(row.version_id, i) in held],
    }


def multiparts(row: Upload) -> dict[int, str]:
    """The store's multipart ids of an upload, by file."""
    return {int(file): id for file, id in json.loads(row.parts).items() if file.isdigit()}


# -- P6 and P7 --------------------------------------------------------------------------------------------


@denials.recorded("publish")
def commit(house: House, request: authn.SignedRequest, wanted: CommitRequest) -> Json:
    """P6 and P7: verify everything, then make the version visible in one transaction.

    Raises:
        IntegrityFailure: The signature does not hold.
        InvalidRequest: The manifest is not of what was begun, or the store does not hold it.
        Conflict: The upload is not open, or the version exists.
    """
    manifest = parse_manifest(wanted.manifest)
    digest = manifest_digest(wanted.manifest)
    body = digest_of(canonical_bytes({"upload": wanted.upload, "manifest": digest}))
    made: list[Version] = []
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        row = publish.find_own_upload(view, caller, wanted.upload)
        first = row.status == publish.OPEN
        if first:
            _open_upload(house, view, caller, wanted.upload)
            verify_manifest(wanted.manifest, wanted.signature, json.loads(caller.key.jwk))
            _check_same(manifest, row)
    if first:
        _finish_objects(house, row)

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        key = RequestKey(jkt=caller.key.jkt, request_id=wanted.request_id, body_digest=body)
        current = publish.find_own_upload(view, caller, wanted.upload)
        if current.status == publish.COMMITTED and view.find_request(key.jkt, key.request_id):
            version = _committed(view, current)
            made[:] = [version]
            # The request is known, so it is answered with its first outcome and this entry is not appended.
            entry = _commit_entry(house, caller, current, version, wanted.request_id)
            return Draft(proof=caller.proof_use, request=key, entries=(entry,))
        current = _open_upload(house, view, caller, wanted.upload)
        version = _new_version(house, current, manifest, digest, caller)
        made[:] = [version]
        return _commit_draft(house, view, caller, current, version, wanted, key)

    _, recorded = decide_and_record(house, decide, have=wanted.have)
    version = replace(made[0], entry=recorded.index)
    return {"version": catalogue.version_json(version), **completing.proof_json(recorded)}


def _committed(view: View, row: Upload) -> Version:
    version = view.find(Version, row.collection, row.name, row.version)
    if version is None or version.version_id != row.version_id:
        raise Conflict("another upload was committed under this version")
    return version


def _check_same(manifest: Manifest, row: Upload) -> None:
    """The manifest says of the version exactly what was begun (I20)."""
    listed = [[file.path, file.size] for file in manifest.files]
    same = (
        manifest.artifact == row.artifact
        and manifest.version == row.version
        and manifest.version_id == row.version_id
        and manifest.kind == row.kind
        and dict(manifest.labels) == json.loads(row.labels)
        and manifest.extent_size == row.extent_size
        and listed == json.loads(row.files)
    )
    if not same:
        raise InvalidRequest(
            "the manifest differs from what was begun",
            why="artifact, version, labels, extent size, paths and sizes are fixed when an upload begins",
            next="broker put again",
        )


def _finish_objects(house: House, row: Upload) -> None:
    """Join the parts, then check that every object is there with exactly its size.

    After this no outstanding URL can write: multipart ids are gone, single PUTs are create-only (I20).
    """
    held = whole_objects(house, row)
    files = json.loads(row.files)
    for file, upload_id in multiparts(row).items():
        name = releasing.object_name(row.version_id, file)
        if name not in held:
            found = house.store.list_parts(name, upload_id)
            _check_parts(files[file][1], row.extent_size, found)
            house.store.complete_upload(name, upload_id, [(number, etag) for number, etag, _ in found])
            # Crash here: the object is whole; the next commit finds it and goes on.
    held = whole_objects(house, row)
    for name, (path, _) in expected_objects(row).items():
        if name not in held:
            raise InvalidRequest(
                f"the store does not hold all of {path!r}",
                next="broker put again: it uploads what is missing",
            )


def _check_parts(size: int, extent_size: int, found: list[tuple[int, str, int]]) -> None:
    plan = parts.part_plan(size, extent_size)
    sizes = {number: length for number, _, length in found}
    for part in range(1, plan.parts + 1):
        if sizes.get(part) != parts.part_size(size, extent_size, part):
            raise InvalidRequest("a part is missing or has another size", next="broker put again")


def _new_version(house: House, row: Upload, manifest: Manifest, digest: str, caller: authn.Caller) -> Version:
    aad = wrap.wrap_aad(
        use="version",
        version_id=row.version_id,
        artifact=row.artifact,
        tier=manifest.labels["tier"],
        manifest=digest,
    )
    return Version(
        collection=row.collection,
        name=row.name,
        version=row.version,
        version_id=row.version_id,
        kind=row.kind,
        labels=row.labels,
        manifest=digest,
        files=len(manifest.files),
        bytes=manifest.total_bytes,
        publisher=caller.principal.id,
        publisher_jkt=caller.key.jkt,
        binding=caller.key.entry,
        wrapped_key=house.custody.wrap(publish.unwrap_upload_key(house, row), aad),
        committed=caller.now,
    )


def _commit_draft(
    house: House,
    view: View,
    caller: authn.Caller,
    row: Upload,
    version: Version,
    wanted: CommitRequest,
    key: RequestKey,
) -> Draft:
    entries = [_commit_entry(house, caller, row, version, wanted.request_id)]
    rows: list[Row] = [
        version,
        ManifestRow(digest=version.manifest, body=wanted.manifest, signature=wanted.signature),
        replace(row, status=publish.COMMITTED),
    ]
    expects: list[Row | Absent] = [
        row,
        Absent(row=Version, key=(version.collection, version.name, version.version)),
    ]
    if view.find(ManifestRow, version.manifest) is not None:
        rows.pop(1)
    artifact = Artifact(collection=version.collection, name=version.name, kind=version.kind)
    stored = view.find(Artifact, version.collection, version.name)
    if stored is None:
        rows.append(artifact)
        expects.append(Absent(row=Artifact, key=(version.collection, version.name)))
    elif stored.kind != version.kind:
        raise Conflict(f"{version.artifact} is a {stored.kind}")
    made_collection = view.find(Collection, version.collection) is None
    if made_collection:
        more_entries, more_rows = _first_collection(house, view, caller, version.collection)
        entries += more_entries
        rows += more_rows
        expects.append(Absent(row=Collection, key=(version.collection,)))
    return Draft(
        proof=caller.proof_use,
        request=key,
        entries=tuple(entries),
        rows=tuple(rows),
        expects=tuple(expects),
        bumps_epoch=made_collection,
    )


def _commit_entry(
    house: House, caller: authn.Caller, row: Upload, version: Version, request_id: str
) -> NewEntry:
    return new_entry(
        house,
        time=caller.now,
        type="commit",
        evidence=caller.evidence(),
        request_id=request_id,
        action="publish",
        artifact=version.artifact,
        version=version.version,
        manifest=version.manifest,
        bytes=version.bytes,
        upload=row.id,
        kind=version.kind,
        labels=json.loads(version.labels),
        version_id=publish.upload_json(row)["version_id"],
        publisher=version.publisher_jkt,
        publisher_binding=version.binding,
        wrap=sha256_digest(version.wrapped_key),
        **caller.members(),
    )


def _first_collection(
    house: House, view: View, caller: authn.Caller, name: str
) -> tuple[list[NewEntry], list[Row]]:
    """The first publish makes the collection: read and published by the group of its own name."""
    home = policy.new_collection(name)
    entry = new_entry(
        house,
        time=caller.now,
        type="collection",
        action="create-collection",
        collection=name,
        readers=list(home.readers),
        publishers=list(home.publishers),
        **caller.members(),
    )
    entries, rows = [entry], [home]
    found: list[Row] = [*rows]
    if view.find(Group, name) is None:
        entries.append(
            new_entry(house, time=caller.now, type="group", group=name, parents=[], **caller.members())
        )
        found.append(Group(name=name))
    return entries, found
