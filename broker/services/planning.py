"""Step 4: what a grant or lease request comes to, decided on one snapshot. Nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker import limits
from broker.canonical import canonical_bytes, parse_json
from broker.envelope import seal
from broker.envelope.manifest import Manifest
from broker.errors import BrokerError, Denied, GrantRevoked, InvalidRequest, NotFound
from broker.identity import scope
from broker.model import ACTIVE, Collection, Grant, Lease, Version
from broker.ports import View
from broker.services import authn, deciding, lookup, selection
from broker.services.house import House
from broker.services.record import digest_of


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
    spans: tuple[tuple[int, ...], ...] | None = None
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
    extents: tuple[tuple[int, ...], ...] | None
    spans: tuple[tuple[int, ...], ...] | None = None
    ranges: bool = False
    have: str | None = None

    def body_digest(self) -> bytes:
        """What a retry must repeat: everything but ``have``."""
        parts = {name: value for name, value in vars(self).items() if name not in ("have", "recipient")}
        return digest_of(canonical_bytes({**parts, "recipient": seal.recipient_digest(self.recipient)}))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What step 4 fixed; step 6 computes nothing that is not in here, and so in the entry."""

    grant: Grant
    version: Version
    manifest: Manifest
    files: tuple[int, ...]
    window: selection.Window
    lease: Lease
    answer: deciding.Answer


class RefusedError(Exception):
    """A refusal that has to be recorded before it is told."""

    def __init__(
        self, error: BrokerError, artifact: str, version: str | None, answer: deciding.Answer | None = None
    ) -> None:
        super().__init__(error.what)
        self.error, self.artifact, self.version, self.answer = error, artifact, version, answer


def plan_grant(house: House, view: View, caller: authn.Caller, wanted: GrantRequest, grant_id: str) -> Plan:
    """A new grant of the wanted files, and its lease 0.

    Raises:
        RefusedError: A refusal to be recorded: not found, out of scope, denied.
        InvalidRequest: The selection is not valid, or is empty.
    """
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
        raise RefusedError(lookup.not_found(artifact, wanted.version), artifact, wanted.version)
    version = found.version
    manifest = selection.load_manifest(view, version.manifest)
    files = selection.select_files(manifest, wanted.include, wanted.exclude)
    window = _window(house, manifest, files, wanted)
    total = sum(manifest.files[index].size for index in files)
    what = Asked(version=version, manifest=manifest, files=files, purpose=wanted.purpose, bytes=total)
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
    return Plan(
        grant=grant,
        version=version,
        manifest=manifest,
        files=tuple(files),
        window=window,
        lease=_new_lease(grant, 0, wanted.recipient, window, caller),
        answer=answer,
    )


def plan_lease(house: House, view: View, caller: authn.Caller, wanted: LeaseRequest) -> Plan:
    """The next lease of a grant, decided anew.

    Raises:
        NotFound: Not a grant of the caller's.
        RefusedError: A refusal to be recorded: revoked, run out, out of scope, denied.
        InvalidRequest: The extents are not valid, or there are none.
    """
    grant = find_own_grant(view, caller, wanted.grant)
    version = view.find(Version, grant.collection, grant.name, grant.version)
    collection = view.find(Collection, grant.collection)
    if version is None or collection is None or version.manifest != grant.manifest:
        raise RefusedError(lookup.not_found(grant.artifact, grant.version), grant.artifact, grant.version)
    if grant.status != ACTIVE or grant.expires <= caller.now:
        state = "was revoked" if grant.status != ACTIVE else "has run out"
        error = GrantRevoked(f"grant {grant.id} {state}", next=f"broker get {grant.artifact}@{grant.version}")
        raise RefusedError(error, grant.artifact, grant.version)
    if grant.jkt != caller.key.jkt:
        raise RefusedError(
            Denied("a lease is asked for with the key that the grant was made for"),
            grant.artifact,
            grant.version,
        )
    manifest = selection.load_manifest(view, grant.manifest)
    files = grant_files(grant, manifest)
    if not wanted.extents and not wanted.spans:
        raise InvalidRequest("a lease is asked for without extents")
    window = _window(house, manifest, files, wanted)
    what = Asked(
        version=version,
        manifest=manifest,
        files=sorted({run[0] for run in window.runs}),
        purpose=grant.purpose,
        bytes=window.bytes,
    )
    answer = _check_allowed(house, view, caller, collection, what)
    return Plan(
        grant=grant,
        version=version,
        manifest=manifest,
        files=tuple(files),
        window=window,
        lease=_new_lease(grant, _next_number(view, grant), wanted.recipient, window, caller),
        answer=answer,
    )


def _window(
    house: House, manifest: Manifest, files: Sequence[int], wanted: GrantRequest | LeaseRequest
) -> selection.Window:
    """What one lease opens of what is asked for: spans, runs of extents, or everything selected."""
    if wanted.spans is not None and wanted.extents is not None:
        raise InvalidRequest("extents and spans say two different things")
    if wanted.spans is not None:
        spans = selection.check_spans(manifest, files, wanted.spans)
        return selection.span_window(manifest, spans, room=house.lease_window)
    if wanted.extents is not None:
        runs = selection.check_runs(manifest, files, wanted.extents)
    else:
        runs = selection.whole_runs(manifest, files)
    return selection.first_window(manifest, runs, room=house.lease_window)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What policy and scope are asked about: some files of a version, for a purpose."""

    version: Version
    manifest: Manifest
    files: Sequence[int]
    purpose: str
    bytes: int

    @property
    def ask(self) -> scope.Ask:
        """The same in the terms of a token's details."""
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
    house: House, view: View, caller: authn.Caller, collection: Collection, what: Asked
) -> deciding.Answer:
    version = what.version
    try:
        scope.permits(caller.levels, what.ask)
    except Denied as exc:
        raise RefusedError(exc, version.artifact, version.version) from exc
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
        raise RefusedError(error, version.artifact, version.version, answer)
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
        extents=canonical_bytes([list(item) for item in window.items]).decode(),
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
