"""Units of work for the ledger: what goes in under the tail lock, and what comes out durable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker.model import IndexRow, Row, Tail


@dataclass(frozen=True, kw_only=True)
class NewEntry:
    """An entry about to be appended: its exact bytes, and its search columns."""

    data: bytes
    index: IndexRow
    record: bytes | None = None
    """What ``selection.digest`` commits to; kept for ever."""
    evidence: bytes | None = None
    """What ``evidence`` commits to; erasable."""
    evidence_salt: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class ProofUse:
    """One use of a proof: a second insert of the same pair is a replay (I08)."""

    jkt: str
    jti_hash: bytes
    keep_until: int


@dataclass(frozen=True, kw_only=True)
class RequestKey:
    """Makes a retry safe: same key, id and body is the same entry; another body is a conflict."""

    jkt: str
    request_id: str
    body_digest: bytes


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Bytes that a release opens, charged once for each (holder, version, extent).

    ``extents`` are (ordinal of the extent in the version, plaintext bytes). ``ceiling`` None means
    the meter has no limit and only counts.
    """

    holder: str
    version_id: bytes
    total_extents: int
    extents: tuple[tuple[int, int], ...]
    ceiling: int | None = None


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One unit of work for the ledger: applied whole, or not at all.

    Under the tail lock, in this order: the proof is used (else ReplayedProof); ``epoch`` must still be
    current (else StaleDecision); a repeated request is answered with its first entry (another body:
    Conflict); every row of ``expects`` must be unchanged (else StaleDecision); charges are made (else
    OverBudget); entries are appended, rows written with the index of the first entry, the epoch bumped.

    A draft without entries only uses its proof (a read that is not recorded), or changes loose
    bookkeeping.
    """

    proof: ProofUse | None = None
    request: RequestKey | None = None
    epoch: int | None = None
    expects: tuple[Row | Absent, ...] = ()
    charges: tuple[Charge, ...] = ()
    entries: tuple[NewEntry, ...] = ()
    rows: tuple[Row, ...] = ()
    bumps_epoch: bool = False


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Says in ``Draft.expects`` that no such row exists yet."""

    row: type[Any]
    key: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Appended:
    """The acknowledged outcome of a draft: durable when this value exists.

    ``index`` is the first entry's index (None for a draft without entries); ``repeated`` says that
    the request had been recorded before and nothing was added now; ``tail`` covers ``index``.
    """

    index: int | None
    tail: Tail
    repeated: bool = False
