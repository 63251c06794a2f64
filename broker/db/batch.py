"""One group commit: drafts decided in their order, then written together.

Everything is decided in memory before the first write, so a draft that is refused leaves no trace
in the others (step 5). Nobody else can change what was read: the tail is locked.
"""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Delete, Integer, Table, bindparam, delete, select, tuple_
from sqlalchemy.sql.elements import ColumnElement

from broker import limits
from broker.canonical import sha256_digest
from broker.db import tables
from broker.db.driver import write_rows
from broker.db.held import Held, RowId, row_id
from broker.db.macs import Macs
from broker.db.rows import codec
from broker.db.search import encode_index_row
from broker.db.statements import insert_missing, insert_rows, upsert_rows
from broker.db.tail import StoredTail, TreeRules, write_tail
from broker.db.values import is_storable
from broker.drafts import Absent, Charge, Draft, NewEntry, ProofUse, RequestKey
from broker.errors import Conflict, InternalError, InvalidRequest, OverBudget, ReplayedProof, TooLarge
from broker.model import Row, SubjectUse
from broker.ports import StaleDecision

_EVIDENCE_SALT: Final = 32
_SWEEP_SPARE: Final = 16
"""Old rows that a batch deletes beyond twice what it adds: the table shrinks, in small steps."""


def check_draft(draft: Draft) -> None:
    """The draft is one that can be applied at all.

    Raises:
        InternalError: It asks for what only an entry can do, or lacks a part of an entry.
        TooLarge: An entry has more than ``limits.MAX_ENTRY`` bytes.
        InvalidRequest: A key holds what no database stores.
    """
    if not draft.entries and (draft.request or draft.bumps_epoch or draft.charges):
        raise InternalError("a draft without an entry has a request, a charge or a change of epoch")
    for entry in draft.entries:
        if len(entry.data) > limits.MAX_ENTRY:
            raise TooLarge(f"a ledger entry has more than {limits.MAX_ENTRY} bytes")
        if entry.evidence is not None and len(entry.evidence_salt or b"") != _EVIDENCE_SALT:
            raise InternalError("evidence has no salt of 32 bytes")
    for charge in draft.charges:
        if any(not 0 <= at < charge.total_extents or size < 0 for at, size in charge.extents):
            raise InternalError("a charge is for an extent that the version does not have")
    for row in (*draft.expects, *draft.rows):
        cls, key = row_id(row)
        codec(cls).check_key(key)
    keys = [charge.holder for charge in draft.charges]
    keys += [draft.proof.jkt] if draft.proof else []
    keys += [draft.request.jkt, draft.request.request_id] if draft.request else []
    numbers = [draft.proof.keep_until] if draft.proof else []
    if not all(is_storable(value) for value in (*keys, *numbers)):
        raise InvalidRequest("a key, request id or holder holds a NUL or half a character")


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What a draft comes to if the batch commits."""

    index: int | None
    repeated: bool = False


class Batch:
    """Drafts on top of one locked tail.

    Args:
        held: What is stored, as far as the drafts rest on it.
        tail: The locked tail.
        now: The database's time in milliseconds.
    """

    def __init__(self, *, held: Held, tail: StoredTail, now: int, macs: Macs, tree: TreeRules) -> None:
        self._held = held
        self._tail = tail
        self._now = now
        self._macs = macs
        self._tree = tree
        self._epoch = tail.epoch
        self._entries: list[NewEntry] = []
        self._index_rows: list[dict[str, Any]] = []
        self._proofs: list[ProofUse] = []
        self._requests: list[tuple[RequestKey, int]] = []
        self._rows: dict[RowId, dict[str, Any]] = {}
        self._meters: dict[str, int] = {}
        self._opened: dict[tuple[str, bytes], bytes] = {}

    @property
    def first_entry(self) -> tuple[int, bytes] | None:
        """(index, bytes) of the first entry that this batch appends: by it a commit is recognised."""
        return (self._tail.size, self._entries[0].data) if self._entries else None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self._entries or self._proofs or self._rows)

    def decide(self, draft: Draft) -> Decided:
        """Check one draft against everything before it, and take it into the batch.

        Raises:
            ReplayedProof: Its proof was used, or is so old that nobody remembers whether it was.
            Conflict: Its request id was used with another body.
            StaleDecision: The epoch moved, or an expected row changed.
            OverBudget: A charge finds no room.
            IntegrityFailure: A row that it rests on does not carry the broker's MAC.
        """
        self._check_proof(draft.proof)
        self._check_epoch(draft)
        first = self._find_first(draft.request)
        if first is not None:
            self._use(draft.proof)
            return Decided(index=first, repeated=True)
        self._check_expectations(draft)
        charged = self._charge(draft.charges)
        index = self._tail.size + len(self._entries) if draft.entries else None
        index_rows = [encode_index_row(entry.index) for entry in draft.entries]
        rows = [self._encode(row, index) for row in draft.rows]
        # From here on nothing can fail: the draft is in the batch, whole.
        self._use(draft.proof)
        self._entries.extend(draft.entries)
        self._index_rows.extend(index_rows)
        self._keep(draft, index, rows)
        self._keep_charges(*charged)
        return Decided(index=index)

    # -- deciding -------------------------------------------------------------------------------------

    def _check_proof(self, proof: ProofUse | None) -> None:
        if proof is None:
            return
        if (proof.jkt, proof.jti_hash) in self._held.proofs:
            raise ReplayedProof("this proof was used before", next="make a new proof for every request")
        if proof.keep_until < self._now:
            # I08: its row may have been swept already, so a replay could not be told from a first use.
            raise ReplayedProof("this proof is too old to be told from a replay")

    def _find_first(self, request: RequestKey | None) -> int | None:
        found = self._held.requests.get((request.jkt, request.request_id)) if request else None
        if found is None or request is None:
            return None
        digest, first = found
        if not hmac.compare_digest(digest, request.body_digest):
            raise Conflict("this request id was used with another body", next="use a new request id")
        return first

    def _check_epoch(self, draft: Draft) -> None:
        if draft.epoch is not None and draft.epoch != self._epoch:
            # I15: what was decided before a change of who may do what is decided again; a repetition
            # too, since its first outcome is released once more.
            raise StaleDecision("access changed while this was decided")

    def _check_expectations(self, draft: Draft) -> None:
        for expected in draft.expects:
            found = self._held.find_row(row_id(expected))
            if isinstance(expected, Absent):
                if found is not None:
                    raise StaleDecision("something exists that was not there when this was decided")
            elif found is None or not codec(type(expected)).same(found, expected):
                raise StaleDecision("something changed while this was decided")

    def _charge(self, charges: Sequence[Charge]) -> tuple[dict[str, int], dict[tuple[str, bytes], bytes]]:
        meters: dict[str, int] = {}
        opened: dict[tuple[str, bytes], bytes] = {}
        for charge in charges:
            place = (charge.holder, charge.version_id)
            before = opened.get(place, self._held.opened.get(place, b""))
            opened[place], cost = _open_extents(before, charge.extents)
            used = meters.get(charge.holder, self._held.meters.get(charge.holder, 0))
            if cost and charge.ceiling is not None and used + cost > charge.ceiling:
                raise OverBudget(
                    f"the byte limit of {charge.holder} has no room for this",
                    why=f"{cost} bytes asked for, {max(0, charge.ceiling - used)} left",
                )
            meters[charge.holder] = used + cost
        return meters, opened

    def _encode(self, row: Row, index: int | None) -> dict[str, Any]:
        rows = codec(type(row))
        if index is not None:
            return rows.encode(row, entry=index, macs=self._macs)
        found = self._held.find_row(row_id(row))
        if found is None or not rows.same(found, row):
            raise InternalError("a draft without an entry changes more than loose bookkeeping")
        return rows.encode(row, entry=found.entry, macs=self._macs)

    # -- taking ---------------------------------------------------------------------------------------

    def _use(self, proof: ProofUse | None) -> None:
        if proof is not None:
            self._held.proofs.add((proof.jkt, proof.jti_hash))
            self._proofs.append(proof)

    def _keep(self, draft: Draft, index: int | None, encoded: list[dict[str, Any]]) -> None:
        for row, values in zip(draft.rows, encoded, strict=True):
            self._rows[row_id(row)] = values
            self._held.rows[row_id(row)] = replace(row, entry=values["entry"])
        if draft.request is not None and index is not None:
            self._requests.append((draft.request, index))
            key = (draft.request.jkt, draft.request.request_id)
            self._held.requests[key] = (draft.request.body_digest, index)
        self._epoch += draft.bumps_epoch

    def _keep_charges(self, meters: dict[str, int], opened: dict[tuple[str, bytes], bytes]) -> None:
        self._held.meters.update(meters)
        self._held.opened.update(opened)
        self._meters.update(meters)
        self._opened.update(opened)

    # -- writing --------------------------------------------------------------------------------------

    def write(self, connection: Connection) -> StoredTail:
        """Write the batch and move the tail, inside the caller's transaction; returns the new tail."""
        tail = self._write_entries(connection)
        self._write_proofs(connection)
        insert_rows(
            connection, tables.requests, [_request_values(key, index) for key, index in self._requests]
        )
        by_class: dict[type[Any], list[dict[str, Any]]] = defaultdict(list)
        for (row, _), values in self._rows.items():
            by_class[row].append(values)
        for row, rows in by_class.items():
            upsert_rows(connection, tables.ROW_TABLES[row], rows)
        self._sweep_pins(connection, len(by_class[SubjectUse]))
        upsert_rows(
            connection,
            tables.meters,
            [{"holder": holder, "opened_bytes": used} for holder, used in self._meters.items()],
        )
        upsert_rows(
            connection,
            tables.opened,
            [{"holder": h, "version_id": v, "bitmap": bitmap} for (h, v), bitmap in self._opened.items()],
        )
        return tail

    def _write_entries(self, connection: Connection) -> StoredTail:
        if not self._entries:
            return self._tail
        hashes = [self._tree.leaf_hash(entry.data) for entry in self._entries]
        numbered = list(enumerate(self._entries, start=self._tail.size))
        insert_rows(
            connection,
            tables.ledger_entries,
            [
                {"idx": index, "entry": entry.data, "leaf_hash": leaf_hash}
                for (index, entry), leaf_hash in zip(numbered, hashes, strict=True)
            ],
        )
        insert_rows(
            connection,
            tables.ledger_index,
            [{"idx": i, **row} for i, row in enumerate(self._index_rows, start=self._tail.size)],
        )
        self._write_attachments(connection, numbered)
        frontier, root, completed = self._tree.extend(self._tail.frontier, hashes)
        insert_rows(
            connection,
            tables.ledger_hashes,
            [{"level": level, "idx": index, "hash": value} for level, index, value in completed],
        )
        size = self._tail.size + len(hashes)
        tail = StoredTail(size=size, root=root, epoch=self._epoch, frontier=frontier)
        write_tail(connection, tail, self._macs)
        return tail

    def _write_attachments(self, connection: Connection, numbered: list[tuple[int, NewEntry]]) -> None:
        records = {sha256_digest(e.record): e.record for _, e in numbered if e.record is not None}
        # The same content has the same digest: a second entry may commit to the same record.
        insert_missing(
            connection, tables.ledger_records, [{"digest": d, "body": body} for d, body in records.items()]
        )
        insert_rows(
            connection,
            tables.ledger_evidence,
            [
                {"idx": index, "salt": entry.evidence_salt, "body": entry.evidence}
                for index, entry in numbered
                if entry.evidence is not None
            ],
        )

    def _write_proofs(self, connection: Connection) -> None:
        if not self._proofs:
            return
        table = tables.replays
        self._sweep(connection, table, table.c.keep_until, len(self._proofs))
        insert_rows(
            connection,
            table,
            [{"jkt": p.jkt, "jti_hash": p.jti_hash, "keep_until": p.keep_until} for p in self._proofs],
        )

    def _sweep_pins(self, connection: Connection, added: int) -> None:
        # A pin speaks of a token that is over: its issuer's own expiry refuses the token by now.
        if added:
            table = tables.ROW_TABLES[SubjectUse]
            self._sweep(connection, table, table.c.expires, added)

    def _sweep(self, connection: Connection, table: Table, end: ColumnElement[int], added: int) -> None:
        """Delete some rows whose end has passed: more than were added, so that the table stays small."""
        values = {"now": self._now, "most": 2 * added + _SWEEP_SPARE}
        write_rows(connection, _sweep_statement(table, end), [values])


@cache
def _sweep_statement(table: Table, end: ColumnElement[int]) -> Delete:
    keys = list(table.primary_key.columns)
    old = select(*keys).where(end < bindparam("now")).order_by(end).limit(bindparam("most", type_=Integer))
    return delete(table).where(tuple_(*keys).in_(old))


def _open_extents(bitmap: bytes, extents: Sequence[tuple[int, int]]) -> tuple[bytes, int]:
    """The bitmap with these extents in it, and the bytes of those that were not yet."""
    bits = bytearray(bitmap)
    cost = 0
    for at, size in extents:
        place, mask = at >> 3, 1 << (at & 7)
        if place >= len(bits):
            bits.extend(bytes(place + 1 - len(bits)))
        if not bits[place] & mask:
            bits[place] |= mask
            cost += size
    return bytes(bits), cost


def _request_values(key: RequestKey, index: int) -> dict[str, Any]:
    return {
        "jkt": key.jkt,
        "request_id": key.request_id,
        "body_digest": key.body_digest,
        "entry_idx": index,
    }
