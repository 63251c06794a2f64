"""Grants and leases as their receiver sees them: steps 1, 7 and 9.

Each request makes a recipient key of its own. A lease is opened only after its receipt verified, its
entry turned out to be this very request, and the manifest went through its trust path; what is inside
must then be extents of our own selection, at the places that the manifest's arithmetic gives (I18).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker import limits
from broker.canonical import Json, b64url, drop_absent, parse_b64url, sha256_digest
from broker.client.session import Session
from broker.client.trust import LogMemory, check_entry
from broker.client.versions import TrustedVersion, check_asked, include_of
from broker.envelope import extents, seal
from broker.envelope.lease import LeaseExtent, LeaseFile, OpenLease, parse_lease
from broker.envelope.manifest import Manifest
from broker.errors import BrokerError, IntegrityFailure
from broker.ledger.receipt import VerifiedReceipt
from broker.ledger.selection import ExtentRun, selection_record
from broker.names import Ref

Extent = tuple[int, int]
"""(file index, extent index)."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a reader asks for.

    Attributes:
        extents: Only these runs are needed (resume, ranges); None for everything selected.
        ranges: Whether the segment lists of the files are needed too.
    """

    ref: Ref
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    purpose: str | None = None
    extents: tuple[ExtentRun, ...] | None = None
    ranges: bool = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """The include patterns that are sent; empty for every file."""
        return include_of(self.ref, self.include)


@dataclass(frozen=True, kw_only=True)
class SealedLease:
    """A lease that is not opened yet: its receipt is verified, its content is not looked at."""

    grant: str
    number: int
    expires_at: str
    runs: tuple[ExtentRun, ...]
    ciphertext: bytes = field(repr=False)
    recipient: seal.Recipient
    receipt: VerifiedReceipt
    receipt_text: str


@dataclass(frozen=True, kw_only=True)
class Granted:
    """An allowed decision: what it covers, and the first lease."""

    id: str
    artifact: str
    version: str
    manifest: str
    expires_at: str
    lease: SealedLease
    ask: Ask

    @property
    def receipt(self) -> VerifiedReceipt:
        """The verified receipt of the grant's entry."""
        return self.lease.receipt


class GrantClient:
    """Asks for grants and leases in one session, against one memory of the log."""

    def __init__(self, session: Session, log: LogMemory) -> None:
        self._session = session
        self._log = log

    def request_grant(self, ask: Ask) -> Granted:
        """Step 1, and step 7 as far as it goes without the manifest.

        Raises:
            Denied, ApprovalNeeded, NotFound, OverBudget: The recorded answer of the broker.
            IntegrityFailure: The receipt does not verify, or is not for this request.
        """
        recipient, have, request_id = seal.Recipient.generate(), self._log.have(), self._session.request_id()
        body = drop_absent(
            {
                "request_id": request_id,
                "artifact": ask.ref.artifact,
                "version": ask.ref.version,
                "include": list(ask.patterns) or None,
                "exclude": list(ask.exclude) or None,
                "purpose": ask.purpose,
                "have": have,
                "recipient": recipient_json(recipient),
                "extents": None if ask.extents is None else [list(run) for run in ask.extents],
                "ranges": True if ask.ranges else None,
            }
        )
        answer = self._session.write("POST", "/v1/grants", body)
        verified = self._log.accept(
            answer.get("receipt"), have=have, consistency=answer.get("consistency", [])
        )
        grant, lease = _member(answer, "grant"), _member(answer, "lease")
        entry = verified.entry
        check_entry(
            entry,
            {
                "type": "grant",
                "action": "read",
                "artifact": ask.ref.artifact,
                "purpose": ask.purpose or None,
                "request_id": request_id,
                "recipient": recipient.digest,
                "jkt": self._session.jkt,
                "principal": self._principal(entry),
                "grant": grant.get("id"),
                "lease": 0,
            },
        )
        check_asked(ask.ref, artifact=entry["artifact"], version=entry["version"], digest=entry["manifest"])
        check_entry(entry, {name: grant.get(name) for name in ("artifact", "version", "manifest")})
        return Granted(
            id=entry["grant"],
            artifact=entry["artifact"],
            version=entry["version"],
            manifest=entry["manifest"],
            expires_at=str(grant.get("expires_at")),
            lease=_sealed(entry, lease, recipient, verified, answer["receipt"]),
            ask=ask,
        )

    def request_lease(self, granted: Granted, runs: Sequence[ExtentRun]) -> SealedLease:
        """Step 9: the next slice, under a new decision and a new entry.

        Args:
            granted: The grant.
            runs: The extents that are still needed, ascending; the broker serves a prefix.

        Raises:
            GrantRevoked, Denied, OverBudget: The recorded answer of the broker.
            IntegrityFailure: The receipt does not verify, or is not for this request.
        """
        recipient, have, request_id = seal.Recipient.generate(), self._log.have(), self._session.request_id()
        body = drop_absent(
            {
                "request_id": request_id,
                "have": have,
                "recipient": recipient_json(recipient),
                "extents": [list(run) for run in runs],
                "ranges": True if granted.ask.ranges else None,
            }
        )
        answer = self._session.write("POST", f"/v1/grants/{granted.id}/leases", body)
        verified = self._log.accept(
            answer.get("receipt"), have=have, consistency=answer.get("consistency", [])
        )
        lease = _member(answer, "lease")
        check_entry(
            verified.entry,
            {
                "type": "lease",
                "action": "read",
                "artifact": granted.artifact,
                "version": granted.version,
                "manifest": granted.manifest,
                "request_id": request_id,
                "recipient": recipient.digest,
                "jkt": self._session.jkt,
                "principal": self._principal(verified.entry),
                "grant": granted.id,
                "lease": lease.get("number"),
            },
        )
        return _sealed(verified.entry, lease, recipient, verified, answer["receipt"])

    def report_completion(self, granted: Granted, *, files: int, bytes: int, extents: int) -> str:
        """Step 10: what was received and verified, recorded. The receipt's text is returned."""
        have, request_id = self._log.have(), self._session.request_id()
        received = {"files": files, "bytes": bytes, "extents": extents}
        body = drop_absent({"request_id": request_id, "have": have, "received": received})
        answer = self._session.write("POST", f"/v1/grants/{granted.id}/completion", body)
        text = answer.get("receipt")
        verified = self._log.accept(text, have=have, consistency=answer.get("consistency", []))
        expected = {"type": "completion", "grant": granted.id, "received": received, "jkt": self._session.jkt}
        check_entry(verified.entry, expected)
        return str(text)

    def _principal(self, entry: Json) -> Any:
        profile = self._session.profile
        return entry.get("principal") if profile is None else profile.principal


def recipient_json(recipient: seal.Recipient) -> Json:
    """The member ``recipient`` of a request."""
    return {"kem": seal.KEM, "public_key": b64url(recipient.public_bytes)}


def _member(answer: Json, name: str) -> Json:
    found = answer.get(name)
    if not isinstance(found, dict):
        raise IntegrityFailure(f"the answer carries no {name}")
    return found


def _sealed(
    entry: Json, lease: Json, recipient: seal.Recipient, verified: VerifiedReceipt, text: str
) -> SealedLease:
    check_entry(entry, {"lease": lease.get("number"), "expires_at": lease.get("expires_at")})
    try:
        ciphertext = parse_b64url(lease["ciphertext"])
    except (KeyError, BrokerError) as exc:
        raise IntegrityFailure("a lease is not sealed") from exc
    return SealedLease(
        grant=entry["grant"],
        number=entry["lease"],
        expires_at=entry["expires_at"],
        runs=_parse_runs(lease.get("extents")),
        ciphertext=ciphertext,
        recipient=recipient,
        receipt=verified,
        receipt_text=text,
    )


def _parse_runs(value: Any) -> tuple[ExtentRun, ...]:
    if not isinstance(value, list) or len(value) > limits.MAX_LEASE_EXTENTS:
        raise IntegrityFailure("the extents of a lease are not a bounded list")
    for run in value:
        if not isinstance(run, list) or len(run) != 3 or any(type(n) is not int or n < 0 for n in run):
            raise IntegrityFailure("a run of a lease's extents is not [file, first, last]")
    return tuple((run[0], run[1], run[2]) for run in value)


# -- opening ------------------------------------------------------------------------------------------


def open_lease(
    lease: SealedLease,
    version: TrustedVersion,
    files: Sequence[int],
    *,
    asked: Iterable[ExtentRun] | None,
    jkt: str,
) -> OpenLease:
    """Step 7's end: the lease, opened, with nothing in it that was not asked for.

    Args:
        lease: Sealed, with a verified receipt.
        version: The version, its manifest verified.
        files: Our own selection: ascending indices into the manifest.
        asked: The runs that were asked for; None means every extent of the selection.
        jkt: Thumbprint of our key.

    Raises:
        IntegrityFailure: It does not open, or holds anything but extents of this selection at their places.
    """
    entry, manifest = lease.receipt.entry, version.manifest
    if entry["manifest"] != version.digest:
        raise IntegrityFailure("a lease is of another manifest")
    # The grant's own entry speaks of everything selected, a later lease of the files that it opens.
    named = files if lease.number == 0 else sorted({run[0] for run in lease.runs})
    record = selection_record(
        artifact=manifest.artifact,
        version=manifest.version,
        manifest=version.digest,
        files=named,
        lease=lease.number,
        extents=lease.runs,
    )
    if entry["selection"]["digest"] != sha256_digest(record):
        raise IntegrityFailure("the entry speaks of another selection than this request")
    wanted = _expected_extents(manifest, files, lease.runs, asked)
    info = seal.lease_info(
        grant=lease.grant,
        number=lease.number,
        leaf_hash=lease.receipt.leaf_hash,
        jkt=jkt,
        recipient_digest=lease.recipient.digest,
        expires_at=lease.expires_at,
    )
    opened = parse_lease(seal.open_sealed(lease.ciphertext, lease.recipient, info))
    if opened.grant != lease.grant or opened.number != lease.number:
        raise IntegrityFailure("a lease that opened is another one")
    _check_places(opened, manifest, wanted)
    return opened


def _expected_extents(
    manifest: Manifest, files: Sequence[int], runs: Iterable[ExtentRun], asked: Iterable[ExtentRun] | None
) -> set[Extent]:
    allowed = set(files)
    served = _spread(manifest, runs)
    if any(file not in allowed for file, _ in served):
        raise IntegrityFailure("a lease names a file outside this selection")
    if asked is not None and not served <= _spread(manifest, asked):
        raise IntegrityFailure("a lease names an extent that was not asked for")
    return served


def _spread(manifest: Manifest, runs: Iterable[ExtentRun]) -> set[Extent]:
    found: set[Extent] = set()
    for file, first, last in runs:
        if file >= len(manifest.files) or not first <= last < len(manifest.files[file].extents):
            raise IntegrityFailure("a lease names an extent that does not exist")
        found.update((file, index) for index in range(first, last + 1))
    return found


def _check_places(opened: OpenLease, manifest: Manifest, wanted: set[Extent]) -> None:
    seen: set[Extent] = set()
    for file, extent in opened_extents(opened):
        seen.add((file.file, extent.index))
        if (file.file, extent.index) not in wanted:
            raise IntegrityFailure("a lease opens an extent that its entry does not name")
        signed = manifest.files[file.file]
        place = extents.extent_range(signed.size, manifest.extent_size, extent.index)
        if file.path != signed.path or (extent.start, extent.length) != place:
            raise IntegrityFailure("a lease places an extent elsewhere than the manifest does")
    for opened_file in opened.files:
        _check_segments(opened_file, manifest)
    if seen != wanted:
        raise IntegrityFailure("a lease opens less than its entry names")


def _check_segments(file: LeaseFile, manifest: Manifest) -> None:
    if file.segments is None:
        return
    if file.file >= len(manifest.files):
        raise IntegrityFailure("a lease names a file that does not exist")
    size = extents.segments_object_size(manifest.files[file.file].size, manifest.extent_size)
    if (file.segments.start, file.segments.length) != (0, size):
        raise IntegrityFailure("a lease places a segment list elsewhere than the manifest does")


def opened_extents(lease: OpenLease) -> Iterator[tuple[LeaseFile, LeaseExtent]]:
    """Every extent of an opened lease with its file, in order."""
    for file in lease.files:
        for extent in file.extents:
            yield file, extent


# -- runs ---------------------------------------------------------------------------------------------


def all_runs(manifest: Manifest, files: Iterable[int]) -> list[ExtentRun]:
    """Every extent of the given files; empty files have none."""
    return [(at, 0, len(manifest.files[at].extents) - 1) for at in files if manifest.files[at].extents]


def runs_of(extents: Iterable[Extent]) -> list[ExtentRun]:
    """Single extents as ascending runs without overlap."""
    runs: list[ExtentRun] = []
    for file, index in sorted(set(extents)):
        if runs and runs[-1][0] == file and runs[-1][2] == index - 1:
            runs[-1] = (file, runs[-1][1], index)
        else:
            runs.append((file, index, index))
    return runs


def first_runs(runs: Iterable[ExtentRun], most: int = limits.MAX_LEASE_EXTENTS) -> list[ExtentRun]:
    """The longest prefix of the runs with at most ``most`` extents: no lease opens more."""
    taken: list[ExtentRun] = []
    for file, first, last in runs:
        if most <= 0:
            break
        stop = min(last, first + most - 1)
        taken.append((file, first, stop))
        most -= stop - first + 1
    return taken
