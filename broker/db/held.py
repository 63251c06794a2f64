"""What a batch of drafts rests on, read in a few statements under the tail lock."""

from __future__ import annotations

from collections import defaultdict, namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import Connection, Select, Table, bindparam, select, tuple_

from broker.db.driver import read_rows
from broker.db.macs import Macs
from broker.db.rows import chunks, codec
from broker.db.tables import meters, opened, replays, requests
from broker.drafts import Absent, Draft
from broker.errors import IntegrityFailure, InternalError
from broker.model import ROW_KEYS, Row, row_key

_FEW: Final = 8
"""Keys that are asked for one by one: their statement is never built anew."""
RowId = tuple[type[Any], tuple[Any, ...]]
"""A row's class and key."""


@dataclass(kw_only=True)
class Held:
    """Stored state that drafts are checked against; each accepted draft changes it for the next.

    Attributes:
        proofs: (jkt, SHA-256 of the jti) of proofs that were used.
        requests: (jkt, request id) -> (body digest, index of the first entry).
        rows: Row as stored, None where there is none, or why it cannot be believed.
        meters: Holder -> opened bytes.
        opened: (holder, version id) -> bitmap of the extents that were charged.
    """

    proofs: set[tuple[str, bytes]] = field(default_factory=set)
    requests: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict)
    rows: dict[RowId, Any] = field(default_factory=dict)
    meters: dict[str, int] = field(default_factory=dict)
    opened: dict[tuple[str, bytes], bytes] = field(default_factory=dict)

    def find_row(self, row: RowId) -> Row | None:
        """The row as it is now.

        Raises:
            IntegrityFailure: What is stored does not carry the broker's MAC.
        """
        found = self.rows[row]
        if isinstance(found, IntegrityFailure):
            raise IntegrityFailure(found.what, why=found.why) from found
        return cast(Row | None, found)


def row_id(row: Row | Absent) -> RowId:
    """Class and key of a row, or of the row that is expected not to exist.

    Raises:
        InternalError: It is neither.
    """
    if isinstance(row, Absent):
        return row.row, row.key
    if type(row) not in ROW_KEYS:
        raise InternalError("something that is no row is expected or written")
    return type(row), row_key(row)


def read_held(connection: Connection, drafts: Sequence[Draft], macs: Macs) -> Held:
    """Everything that these drafts are checked against.

    A row that does not carry the broker's MAC is not raised here: it refuses only the drafts that
    rest on it.
    """
    proofs = {(d.proof.jkt, d.proof.jti_hash) for d in drafts if d.proof}
    asked = {(d.request.jkt, d.request.request_id) for d in drafts if d.request}
    charges = [charge for d in drafts for charge in d.charges]
    held = Held(
        proofs={(row.jkt, row.jti_hash) for row in _rows(connection, replays, proofs)},
        requests={
            (row.jkt, row.request_id): (row.body_digest, row.entry_idx)
            for row in _rows(connection, requests, asked)
        },
        meters={
            row.holder: row.opened_bytes for row in _rows(connection, meters, {(c.holder,) for c in charges})
        },
        opened={
            (row.holder, row.version_id): row.bitmap
            for row in _rows(connection, opened, {(c.holder, c.version_id) for c in charges})
        },
    )
    _read_rows(connection, drafts, macs, held)
    return held


def _rows(connection: Connection, table: Table, keys: set[Any]) -> list[Any]:
    found: list[Any] = []
    if len(keys) <= _FEW:
        statement, names = _by_key(table)
        for key in keys:
            found.extend(read_rows(connection, statement, dict(zip(names, key, strict=True))))
        shape = _shape(table)
        return [shape(*row) for row in found]
    columns = list(table.primary_key.columns)
    for chunk in chunks(sorted(keys)):
        found.extend(connection.execute(select(table).where(tuple_(*columns).in_(chunk))))
    return found


@cache
def _by_key(table: Table) -> tuple[Select[Any], tuple[str, ...]]:
    columns = list(table.primary_key.columns)
    where = [column == bindparam(f"key_{column.name}") for column in columns]
    return select(table).where(*where), tuple(f"key_{column.name}" for column in columns)


@cache
def _shape(table: Table) -> Any:
    return namedtuple("_Shape", [column.name for column in table.columns])


def _read_rows(connection: Connection, drafts: Sequence[Draft], macs: Macs, held: Held) -> None:
    wanted: dict[type[Any], set[tuple[Any, ...]]] = defaultdict(set)
    for draft in drafts:
        # Without an entry the rows may change in loose members only, so what they are now matters.
        for row in (*draft.expects, *(() if draft.entries else draft.rows)):
            cls, key = row_id(row)
            wanted[cls].add(key)
    for cls, keys in wanted.items():
        found = codec(cls).find_many(connection, sorted(keys), macs)
        held.rows.update({(cls, key): found.get(key) for key in keys})
