"""Steps 5 and 6: make a draft durable, then sign the tree head that covers it. Nothing else signs.

What a use case releases, it releases with a :class:`Recorded` in its hands: the value exists only
after the commit was acknowledged and its head was signed (I01).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, TypeVar

from broker.canonical import Json, b64url, canonical_bytes
from broker.drafts import Appended, Draft, NewEntry
from broker.errors import (
    BrokerError,
    IntegrityFailure,
    InvalidRequest,
    LedgerUnavailable,
    RollbackDetected,
)
from broker.ledger import entry as entries
from broker.ledger import merkle, note, receipt
from broker.model import Tail
from broker.ports import StaleDecision, View
from broker.services.house import House
from broker.services.log_names import own_verifiers

R = TypeVar("R")

MAX_DECISIONS: Final = 8
"""How often a decision is made again because something changed under it, before the answer is 503."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Proof that an entry is durable and covered by a signed tree head."""

    index: int
    data: bytes
    head: str
    """The signed note that covers the entry."""
    receipt: str
    consistency: tuple[str, ...]
    repeated: bool = False

    @cached_property
    def leaf_hash(self) -> bytes:
        """The entry's Merkle leaf hash, 32 bytes."""
        return merkle.leaf_hash(self.data)

    @cached_property
    def entry(self) -> Json:
        """The entry as an object; not to be changed."""
        return entries.parse_entry(self.data)


def new_entry(
    house: House,
    *,
    time: int,
    type: str,
    evidence: Json | None = None,
    record: bytes | None = None,
    **members: Any,
) -> NewEntry:
    """Draw the salts and fix the bytes of one entry.

    Args:
        time: Milliseconds since 1970, of the snapshot that the decision was made in.
        type: One of ``ledger.entry.TYPES``.
        evidence: What is kept beside the entry and may be erased later.
        record: What ``selection.digest`` commits to.
        members: Further members of the entry; None means absent.
    """
    evidence_bytes = canonical_bytes(evidence) if evidence is not None else None
    evidence_salt = house.entropy.random_bytes(32) if evidence is not None else None
    if evidence_bytes is not None and evidence_salt is not None:
        members["evidence"] = entries.evidence_commitment(evidence_salt, evidence_bytes)
    salt = house.entropy.random_bytes(16)
    data, entry = entries.compose_entry(salt=salt, time=time, type=type, **members)
    return NewEntry(
        data=data,
        index=entries.index_row(entry),
        record=record,
        evidence=evidence_bytes,
        evidence_salt=evidence_salt,
    )


def check_have(house: House, view: View, have: str | None) -> None:
    """The log must extend what the caller saw; a larger head signed by us is proof of a rollback.

    Raises:
        RollbackDetected: The caller holds a head of this log that this database does not have.
        InvalidRequest: ``have`` is not a head signed by this log.
    """
    if have is None:
        return
    head, signs_now = _open_have(house, view, have)
    if head.size > view.tail().size:
        found = RollbackDetected(
            "the ledger is smaller than a tree head that the caller holds",
            why=f"the caller saw {head.size} entries, the database has {view.tail().size}",
            next="stop the broker and restore the newest database; see docs/operations/rollback.md",
        )
        # I10: one client that saw more is enough. We signed what it holds, so nobody else could say so. Of a
        # key that the log gave up, somebody else may: then only this caller is refused.
        if signs_now:
            house.guard.shut(found)
        raise found


def _open_have(house: House, view: View, have: str) -> tuple[note.TreeHead, bool]:
    """The head, and whether a key that signs now vouches for it, not only one that did before."""
    if have.partition("\n")[0] != house.log.origin:
        raise RollbackDetected(
            "the tree head that the request brings is of another log than this broker's",
            why=f"this broker's log is called {house.log.origin}; it may have gone on under a new name",
            next="compare the new log key with the operator's, then: broker ledger pin KEY",
        )
    try:
        return note.open_head(have, house.verifiers()), True
    except IntegrityFailure:
        pass
    try:
        return note.open_head(have, own_verifiers(house, view)), False
    except IntegrityFailure as exc:
        raise InvalidRequest(
            "the tree head that the request brings was not signed by this log", why=exc.what
        ) from exc


def append(house: House, draft: Draft) -> tuple[Appended, str]:
    """Step 5, then the signed head of step 6: the entry is durable and covered when this returns.

    Returns:
        The outcome, and the signed note of a tail that covers it.

    Raises:
        What :meth:`Ledger.append` raises; nothing may be released then.
    """
    house.guard.check()
    try:
        appended = house.ledger.append(draft)
    except RollbackDetected as found:
        house.guard.shut(found)
        raise
    # Crash here: a record without a release, safe and visible.
    if appended.index is None or appended.index >= appended.tail.size:
        raise LedgerUnavailable("the tail does not cover an entry of this request")
    # I10: what was found while we waited for the commit stops the signature too.
    house.guard.check()
    head = sign_head(house, appended.tail)
    house.keep_head()
    return appended, head


def record(house: House, draft: Draft, *, have: str | None = None) -> Recorded:
    """:func:`append`, and the receipt that proves it to the caller.

    Raises:
        What :meth:`Ledger.append` raises; nothing may be released then.
        IntegrityFailure: Stored rows are not what was written, so there is no proof to give.
    """
    appended, head = append(house, draft)
    data = None if appended.repeated else draft.entries[0].data
    return _prove(house, appended, head, have=have, data=data)


def _prove(house: House, appended: Appended, head: str, *, have: str | None, data: bytes | None) -> Recorded:
    index, tail = appended.index, appended.tail
    if index is None:
        raise LedgerUnavailable("a draft without an entry has no receipt")
    with house.ledger.view() as view:
        if data is None:
            data = view.entry(index)
        proof = merkle.inclusion_proof(index, tail.size, view.hashes, nodes=house.nodes)
        consistency = consistency_from(house, view, have, tail)
    # The proof is checked before it leaves: stored hashes that somebody changed must not get out as
    # a receipt that fails at the client, they must stop the release here.
    with forgetting(house):
        merkle.verify_inclusion(merkle.leaf_hash(data), index, tail.size, proof, tail.root)
    return Recorded(
        index=index,
        data=data,
        head=head,
        receipt=receipt.build_receipt(data, index, proof, head),
        consistency=consistency,
        repeated=appended.repeated,
    )


@contextmanager
def forgetting(house: House) -> Iterator[None]:
    """A proof that does not hold was made of nodes that nobody is to be shown again."""
    try:
        yield
    except BrokerError:
        house.nodes.clear()
        raise


def sign_head(house: House, tail: Tail) -> str:
    """The signed note of a tail that is durable. Any replica signs the same bytes."""
    head = note.TreeHead(origin=house.log.origin, size=tail.size, root=tail.root)
    keys = zip(house.verifiers(), house.log.every, strict=True)
    return note.join_notes([note.sign_head(head, key, each.sign) for key, each in keys])


def consistency_from(house: House, view: View, have: str | None, tail: Tail) -> tuple[str, ...]:
    """Base64url hashes that prove that ``tail`` extends the head ``have``; empty when there is none."""
    if have is None:
        return ()
    head, _ = _open_have(house, view, have)
    if head.size > tail.size:
        raise RollbackDetected("the ledger is smaller than a tree head that the caller holds")
    proof = merkle.consistency_proof(head.size, tail.size, view.hashes, nodes=house.nodes)
    with forgetting(house):
        merkle.verify_consistency(head.size, tail.size, proof, head.root, tail.root)
    return tuple(b64url(node) for node in proof)


def decide_and_record(
    house: House, decide: Callable[[View], Draft], *, have: str | None = None
) -> tuple[Draft, Recorded]:
    """Decide on a snapshot and record; when the snapshot was overtaken, decide again (I15).

    ``decide`` must be pure but for its view: it runs again on each new snapshot.
    """

    def write(draft: Draft) -> tuple[Draft, Recorded]:
        return draft, record(house, draft, have=have)

    return _decide_until_current(house, decide, write, have)


def decide_and_append(house: House, decide: Callable[[View], Draft]) -> Appended:
    """As :func:`decide_and_record`, without a receipt: for what answers with none.

    So an auditor can still sign in and read a log that gives no proofs any more, to find out why.
    """
    return _decide_until_current(house, decide, lambda draft: append(house, draft)[0], None)


def _decide_until_current(
    house: House, decide: Callable[[View], Draft], write: Callable[[Draft], R], have: str | None
) -> R:
    for _ in range(MAX_DECISIONS):
        with house.ledger.view() as view:
            check_have(house, view, have)
            draft = replace(decide(view), epoch=view.epoch)
        try:
            return write(draft)
        except StaleDecision:
            continue
    raise LedgerUnavailable(
        "access rules changed too often while this request waited", next="try the same request again"
    )


def digest_of(data: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()
