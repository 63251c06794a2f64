"""The evidence behind entries, for auditors: what was asked and decided on, or which entry erased it.

Every such read is itself recorded, under the entry's index or the bundle's digest.
"""

from __future__ import annotations

import hmac

from broker.canonical import Json, b64url, parse_digest
from broker.errors import IntegrityFailure, NotFound
from broker.ledger import entry as entries
from broker.model import BundleRow
from broker.ports import View
from broker.services import auditing, authn
from broker.services.erasing import find_erasure
from broker.services.house import House


def show_evidence(house: House, request: authn.SignedRequest, index: int) -> Json:
    """One entry's exact bytes, the record and the evidence that it commits to, both checked against it.

    Returns:
        ``index``, ``data``, ``record`` (both base64url of exact bytes), and either ``evidence`` with its
        ``salt``, or ``erased_by``, the entry that erased it. What an entry does not have is null.

    Raises:
        NotFound: The log is not that long.
        IntegrityFailure: What is stored is not what the entry commits to, or it is missing and no
            erasure is on record.
    """
    auditing.authorize(house, request, "read", f"evidence {index}")
    with house.ledger.view() as view:
        size = view.tail().size
        if not 0 <= index < size:
            raise NotFound(f"the ledger has no entry {index}", why=f"it has {size} entries, from 0")
        data = view.entry(index)
        found = entries.parse_entry(data)
        record = view.record(found["selection"]["digest"]) if "selection" in found else None
        erased_by = find_erasure(view, index, found)
        kept = None
        if "evidence" in found and erased_by is None:
            kept = read_evidence(view, index, found)
    return {
        "index": index,
        "data": b64url(data),
        "record": None if record is None else b64url(record),
        "evidence": None if kept is None else b64url(kept[1]),
        "salt": None if kept is None else b64url(kept[0]),
        "erased_by": erased_by,
    }


def read_evidence(view: View, index: int, entry: Json) -> tuple[bytes, bytes]:
    """(salt, evidence) of an entry that has evidence, as the entry commits to it.

    Raises:
        IntegrityFailure: It is another, or it is missing and no erasure is on record.
    """
    try:
        salt, body = view.evidence(index)
    except NotFound as exc:
        raise IntegrityFailure(
            f"the evidence of entry {index} is missing", why="no erasure of it is on record"
        ) from exc
    if not hmac.compare_digest(entries.evidence_commitment(salt, body), entry["evidence"]):
        raise IntegrityFailure(f"the evidence of entry {index} is not what the entry commits to")
    return salt, body


def show_bundle(house: House, request: authn.SignedRequest, digest: str) -> Json:
    """A policy bundle that was once active, by the digest that entries name it by.

    Returns:
        ``digest`` and ``bundle``, base64url of the exact bytes that have it.

    Raises:
        NotFound: No bundle of that digest was ever active.
    """
    parse_digest(digest)
    auditing.authorize(house, request, "read", f"bundle {digest}")
    with house.ledger.view() as view:
        row = view.find(BundleRow, digest)
    if row is None:
        raise NotFound("no policy bundle has that digest")
    return {"digest": digest, "bundle": b64url(row.body)}
