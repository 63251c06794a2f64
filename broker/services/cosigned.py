"""Tree heads that a quorum of witnesses vouches for: the newest one, and what it must cover.

A quorum of witnesses that cosigned a head saw the log grow from what they had signed before. Whoever
demands such a head cannot be shown a log of their own (I18).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from broker.canonical import Json, b64url, parse_time
from broker.errors import BrokerError, ConfigurationError, LedgerUnavailable, NotFound
from broker.ledger import cosign, entry, merkle, note, quorum
from broker.ports import Cosignatures, View, Witness
from broker.services.house import House, LogIdentity
from broker.services.record import Recorded, sign_head

LOOK: Final = 32
"""Sizes that are looked at for the newest one with a quorum: replicas may ask for different ones."""


@dataclass(frozen=True, kw_only=True)
class CosignedHead:
    """A tree head that satisfies the policy's quorum, and its note with the cosignatures."""

    head: note.TreeHead
    note: str


@dataclass(kw_only=True)
class Cosigned:
    """What a process knows of its witnesses: the policy, who they are, and the newest cosigned head.

    Attributes:
        policy: Which logs and witnesses count, and which of them are a quorum.
        witnesses: How each of them is asked, by its verifier key.
        rows: What they signed so far, shared by all replicas.
        max_lag: Milliseconds for which an entry may go uncovered.
    """

    policy: quorum.Policy
    witnesses: Mapping[str, Witness] = field(repr=False)
    rows: Cosignatures = field(repr=False)
    max_lag: int
    _newest: CosignedHead | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def newest(self) -> CosignedHead | None:
        """The newest head with a quorum that this process knows of."""
        return self._newest

    @property
    def size(self) -> int:
        """Entries that it covers; 0 when there is none."""
        return 0 if self._newest is None else self._newest.head.size

    def refresh(self, house: House, view: View) -> CosignedHead | None:
        """Look at what this and other replicas were given since.

        Raises:
            LedgerUnavailable: The database does not answer.
        """
        with self._lock:
            tail = view.tail()
            for size, lines in self.rows.newest(above=self.size, most=LOOK):
                if size > tail.size:
                    continue  # another replica is ahead of this snapshot
                found = self._open(house, view, size, lines)
                if found is not None:
                    self._newest = found
                    break
            return self._newest

    def _open(self, house: House, view: View, size: int, lines: Mapping[str, str]) -> CosignedHead | None:
        merged = self.merge(head_note(house, view, size), lines)
        try:
            return CosignedHead(head=self.policy.check(merged), note=merged)
        except BrokerError:
            return None

    def merge(self, text: str, lines: Mapping[str, str]) -> str:
        """A signed note with those of the lines that hold; stored ones are nobody's word (I10)."""
        keys = {witness.key.vkey: witness.key for witness in self.policy.witnesses}
        held = [line for vkey, line in lines.items() if vkey in keys and time_of(text, line, keys[vkey])]
        return cosign.merge(text, held) if held else text


def parse_policy(data: bytes, log: LogIdentity) -> quorum.Policy:
    """The policy of the broker's own witnesses.

    Raises:
        ConfigurationError: It is not a policy, does not name this log, demands nobody, or demands more
            witnesses than it has URLs for.

    Source: C2SP tlog-policy.
    """
    policy = quorum.parse_policy(data)
    if log.vkey not in [each.vkey for each in policy.logs]:
        raise ConfigurationError(
            "the witness policy does not name this log", next=f"it needs the line: log {log.vkey}"
        )
    if policy.is_met(frozenset()):
        raise ConfigurationError("the witness policy demands no cosignature", next="name a quorum in it")
    if not policy.is_met(frozenset(each.name for each in policy.witnesses if each.url is not None)):
        raise ConfigurationError("the witness policy has too few URLs: its quorum can never be asked")
    return policy


def time_of(text: str, line: str, key: cosign.CosignerKey) -> int | None:
    """Seconds since 1970 at which this line cosigned a note; None when it is not this key's, or wrong."""
    try:
        return cosign.cosignatures(cosign.merge(text, [line]), [key]).get(key.vkey)
    except BrokerError:
        return None


def head_note(house: House, view: View, size: int) -> str:
    """The signed head of a size that the log has or had: the same bytes whenever it is signed."""
    tail = view.tail()
    root = tail.root if size == tail.size else merkle.frontier_at(size, view.hashes).root()
    return sign_head(house, replace(tail, size=size, root=root))


def require_covered(house: House, view: View, first: int) -> CosignedHead | None:
    """The newest cosigned head, once nothing from entry ``first`` on waits for one for too long.

    Called before the decision is recorded, so that what would not be released is not charged either.

    Returns:
        The head to send along; None when there are no witnesses, or no head yet and none is due.

    Raises:
        LedgerUnavailable: An entry from ``first`` on is older than the lag, and no quorum has signed a
            head that covers it: nothing more is released.
    """
    known = house.witnessed
    if known is None:
        return None
    if _is_late(known, view, first):
        known.refresh(house, view)
        if _is_late(known, view, first):
            raise LedgerUnavailable(
                "the ledger's newest entries are not cosigned",
                why=f"no quorum of witnesses signed a tree head of more than {known.size} entries in time",
                next="try again later; the operator sees in the server's log which witness does not answer",
            )
    return known.newest


def _is_late(known: Cosigned, view: View, first: int) -> bool:
    waiting = max(first, known.size)
    if waiting >= view.tail().size:
        return False
    recorded = parse_time(entry.parse_entry(view.entry(waiting))["time"])
    return view.now - recorded >= known.max_lag


def cosigned_json(house: House, found: CosignedHead | None, recorded: Recorded) -> Json | None:
    """The member ``cosigned`` of an answer: the head, and the proof that the receipt's tree extends it.

    Raises:
        IntegrityFailure: Stored hashes are not what was written; nothing is released.
    """
    if found is None:
        return None
    head = note.open_head(recorded.head, house.verifiers())
    with house.ledger.view() as view:
        proof = merkle.consistency_proof(found.head.size, head.size, view.hashes)
    merkle.verify_consistency(found.head.size, head.size, proof, found.head.root, head.root)
    return {"note": found.note, "consistency": [b64url(node) for node in proof]}


def newest_note(house: House) -> str:
    """The newest head that satisfies the policy's quorum, as a note.

    Raises:
        NotFound: There are no witnesses, or they have signed nothing yet.
    """
    known = house.witnessed
    if known is None:
        raise NotFound("this log has no witnesses")
    with house.ledger.view() as view:
        found = known.refresh(house, view)
    if found is None:
        raise NotFound("no quorum of this log's witnesses has signed a tree head yet")
    return found.note


def covering(house: House, view: View, index: int) -> CosignedHead | None:
    """The newest cosigned head if it covers an entry: for receipts that others verify by a quorum."""
    known = house.witnessed
    if known is None:
        return None
    found = known.refresh(house, view)
    return found if found is not None and index < found.head.size else None


def with_cosignatures(house: House, text: str, size: int) -> str:
    """A signed head of that size with the cosignatures that are known of it."""
    known = house.witnessed
    return known.merge(text, known.rows.of_size(size)) if known is not None else text
