"""Grants and leases as their receiver sees them: steps 1, 7 and 9.

Each request makes a recipient key of its own. A lease is opened only after its receipt verified, its
entry turned out to be this very request, and the manifest went through its trust path; what is inside
must then be extents of our own selection, at the places that the manifest's arithmetic gives (I18).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker import limits
from broker.canonical import Json, b64url, drop_absent, parse_b64url
from broker.client.cosigned import Watch
from broker.client.session import Session
from broker.client.trust import LogMemory, check_entry
from broker.client.versions import check_asked, include_of
from broker.envelope import seal
from broker.envelope.manifest import Manifest
from broker.errors import BrokerError, IntegrityFailure
from broker.ledger.receipt import VerifiedReceipt
from broker.ledger.selection import ExtentRun, ExtentSpan
from broker.names import Ref

Extent = tuple[int, int]
"""(file index, extent index)."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a reader asks for.

    Attributes:
        extents: Only these runs are needed (resume, ranges); None for everything selected.
        spans: Only these segments are needed; beside it there are no ``extents``.
        ranges: Whether the segment lists of the files are needed too.
    """

    ref: Ref
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    purpose: str | None = None
    extents: tuple[ExtentRun, ...] | None = None
    spans: tuple[ExtentSpan, ...] | None = None
    ranges: bool = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """The include patterns that are sent; empty for every file."""
        return include_of(self.ref, self.include)


@dataclass(frozen=True, kw_only=True)
class SealedLease:
    """A lease that is not opened yet: its receipt is verified, its content is not looked at.

    Attributes:
        runs: The extents that its keys open, as the answer names them.
        spans: The segments that its URLs reach, when it was asked for by spans.
    """

    grant: str
    number: int
    expires_at: str
    runs: tuple[ExtentRun, ...]
    spans: tuple[ExtentSpan, ...] | None = None
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
        self._watch = Watch(log.witnesses, session.clock)

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
                "extents": _lists(ask.extents),
                "spans": _lists(ask.spans),
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
        self._watch.note(entry["grant"], verified)
        return Granted(
            id=entry["grant"],
            artifact=entry["artifact"],
            version=entry["version"],
            manifest=entry["manifest"],
            expires_at=str(grant.get("expires_at")),
            lease=_sealed(entry, lease, recipient, verified, answer["receipt"]),
            ask=ask,
        )

    def request_lease(
        self,
        granted: Granted,
        runs: Sequence[ExtentRun] = (),
        *,
        spans: Sequence[ExtentSpan] | None = None,
        ranges: bool | None = None,
    ) -> SealedLease:
        """Step 9: the next slice, under a new decision and a new entry.

        Args:
            granted: The grant.
            runs: The extents that are still needed, ascending; the broker serves a prefix.
            spans: In their place, the segments that are still needed.
            ranges: Whether the segment lists are needed; None for what the grant was asked with.

        Raises:
            GrantRevoked, Denied, OverBudget: The recorded answer of the broker.
            IntegrityFailure: The receipt does not verify, or is not for this request; or the witnesses of
                the profile have not seen what was recorded before.
        """
        due = self._watch.due(granted.id)
        recipient, have, request_id = seal.Recipient.generate(), self._log.have(), self._session.request_id()
        body = drop_absent(
            {
                "request_id": request_id,
                "have": have,
                "recipient": recipient_json(recipient),
                "extents": _lists(runs) if spans is None else None,
                "spans": _lists(spans),
                "ranges": True if (granted.ask.ranges if ranges is None else ranges) else None,
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
        self._watch.check(answer, verified, due=due)
        self._watch.note(granted.id, verified)
        return _sealed(verified.entry, lease, recipient, verified, answer["receipt"])

    def report_completion(self, granted: Granted, *, files: int, bytes: int, extents: int) -> str:
        """Step 10: what was received and verified, recorded. The receipt's text is returned.

        Raises:
            IntegrityFailure: The receipt does not verify, or the witnesses of the profile have not seen what
                was recorded before.
        """
        due = self._watch.due(granted.id)
        have, request_id = self._log.have(), self._session.request_id()
        received = {"files": files, "bytes": bytes, "extents": extents}
        body = drop_absent({"request_id": request_id, "have": have, "received": received})
        answer = self._session.write("POST", f"/v1/grants/{granted.id}/completion", body)
        text = answer.get("receipt")
        verified = self._log.accept(text, have=have, consistency=answer.get("consistency", []))
        expected = {"type": "completion", "grant": granted.id, "received": received, "jkt": self._session.jkt}
        check_entry(verified.entry, expected)
        self._watch.check(answer, verified, due=due)
        return str(text)

    def _principal(self, entry: Json) -> Any:
        known = self._session.principal
        return entry.get("principal") if known is None else known


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
        runs=_parse_items(lease.get("extents"), 3),
        spans=_parse_items(lease["spans"], 4) if "spans" in lease else None,
        ciphertext=ciphertext,
        recipient=recipient,
        receipt=verified,
        receipt_text=text,
    )


def _parse_items(value: Any, size: int) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > limits.MAX_LEASE_EXTENTS:
        raise IntegrityFailure("the extents of a lease are not a bounded list")
    for item in value:
        if not isinstance(item, list) or len(item) != size or any(type(n) is not int or n < 0 for n in item):
            raise IntegrityFailure("the extents or spans of a lease are not lists of numbers")
    return tuple(tuple(item) for item in value)


def _lists(items: Sequence[Sequence[int]] | None) -> list[list[int]] | None:
    return None if items is None else [list(item) for item in items]


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
