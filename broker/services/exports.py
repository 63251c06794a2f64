"""Exports leave the house: each one is an entry before the auditor has its receipt."""

from __future__ import annotations

from broker import limits
from broker.canonical import Json, canonical_bytes, parse_digest
from broker.drafts import Draft, RequestKey
from broker.errors import InvalidRequest
from broker.ports import View
from broker.services import auditing, authn, completing
from broker.services.house import House
from broker.services.record import decide_and_record, digest_of, new_entry

FORMATS = ("tiles", "jsonl", "csv", "ocsf", "parquet", "kit")


def record_export(
    house: House,
    request: authn.SignedRequest,
    *,
    request_id: str,
    format: str,
    size: int,
    digest: str,
    have: str | None,
) -> Json:
    """Record that an auditor takes the log's first ``size`` entries home.

    Args:
        house: The broker.
        request: The signed request.
        request_id: A retry of the same id and body gets the first outcome.
        format: One of :data:`FORMATS`.
        size: Size of the tree that is exported.
        digest: ``sha256:`` digest of the export's certificate; for tiles, of the checkpoint; for a
            kit, of its manifest.
        have: The last tree head that the caller verified.

    Returns:
        ``receipt`` and ``consistency``.

    Raises:
        InvalidRequest: A format, size or digest that cannot be.
        ScopeExceeded, Denied: Recorded refusals.
    """
    if format not in FORMATS:
        raise InvalidRequest(f"an export's format is one of {', '.join(FORMATS)}")
    if not 0 <= size <= limits.MAX_TREE_SIZE:
        raise InvalidRequest("the size of an export is out of range")
    parse_digest(digest)
    body = digest_of(canonical_bytes({"format": format, "size": size, "digest": digest}))
    attempt = auditing.AuditAttempt(house, request, "read")

    def make(view: View, caller: authn.Caller) -> Draft:
        if size > view.tail().size:
            raise InvalidRequest("the log is not that long", why=f"it has {view.tail().size} entries")
        entry = new_entry(
            house,
            time=caller.now,
            type="export",
            evidence=caller.evidence(),
            action="audit",
            request_id=request_id,
            format=format,
            range={"start": 0, "stop": size},
            digest=digest,
            **caller.members(),
        )
        key = RequestKey(jkt=caller.key.jkt, request_id=request_id, body_digest=body)
        return Draft(proof=caller.proof_use, request=key, entries=(entry,))

    _, recorded = decide_and_record(
        house, lambda view: attempt.decide(view, lambda caller: make(view, caller)), have=have
    )
    attempt.allowed_caller()
    return completing.proof_json(recorded)
