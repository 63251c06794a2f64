"""Snapshots: what was written up to one moment, read in one transaction that cannot write."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Column, ColumnElement, Connection, LargeBinary, Select, bindparam, func, select
from sqlalchemy import cast as sql_cast

from broker.canonical import sha256_digest
from broker.db.bounded import bounded
from broker.db.counting import count_statement, decode_counts
from broker.db.driver import read_rows
from broker.db.macs import Macs, alarm
from broker.db.remembered import Remembered, find_row
from broker.db.rows import codec
from broker.db.search import decode_index_row, search_statement
from broker.db.tables import (
    ledger_entries,
    ledger_evidence,
    ledger_hashes,
    ledger_heads,
    ledger_index,
    ledger_records,
    meters,
    requests,
)
from broker.db.tail import TAIL, check_tail, read_now, read_tail
from broker.db.values import is_storable
from broker.errors import IntegrityFailure, InternalError, NotFound
from broker.model import IndexRow, Query, Tail, Version
from broker.ports import Clock, Counts

R = TypeVar("R")

_RUN: Final = 256
"""Rows that are held in memory at once while a range is read."""
_HASH_SIZE: Final = 32


def _hashes_between(
    index: Column[int], value: Column[bytes], *where: ColumnElement[bool]
) -> Select[int, bytes]:
    wanted = select(index, value).where(index >= bindparam("start"), index < bindparam("stop"), *where)
    return wanted.order_by(index)


_LEAVES: Final = _hashes_between(ledger_entries.c.idx, ledger_entries.c.leaf_hash)
_NODES: Final = _hashes_between(
    ledger_hashes.c.idx, ledger_hashes.c.hash, ledger_hashes.c.level == bindparam("level")
)
_METER: Final = select(meters.c.opened_bytes).where(meters.c.holder == bindparam("holder"))
_REQUEST: Final = select(requests.c.body_digest, requests.c.entry_idx).where(
    requests.c.jkt == bindparam("jkt"), requests.c.request_id == bindparam("request_id")
)
"""Built once: building a statement costs as much as answering it."""


class SqlReader:
    """The log as stored, in one snapshot; nothing about the tail is checked until it is asked for.

    This is what verification reads: it must also be able to read a ledger that was tampered with.
    """

    def __init__(self, connection: Connection, *, macs: Macs) -> None:
        self._connection = connection
        self._macs = macs

    def tail(self) -> Tail:
        """The tail. Raises IntegrityFailure when there is none, or its MAC does not hold."""
        return read_tail(self._connection, self._macs).tail

    def entry(self, index: int) -> bytes:
        """Exact bytes of one entry. Raises NotFound."""
        for _, entry, _ in self.entries(index, index + 1):
            return entry
        raise NotFound(f"the ledger has no entry {index}")

    def entries(self, start: int, stop: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(index, entry, stored leaf hash) ascending, whatever rows there are in [start, stop).

        A value that is no byte string is read as the bytes that the database makes of it.
        """
        columns = ledger_entries.c
        wanted = select(
            columns.idx,
            sql_cast(columns.entry, LargeBinary).label("entry"),
            sql_cast(columns.leaf_hash, LargeBinary).label("leaf_hash"),
        )
        for row in self._range(wanted, columns.idx, start, stop):
            yield row.idx, row.entry or b"", row.leaf_hash or b""

    def index_rows(self, start: int, stop: int) -> Iterator[tuple[int, IndexRow]]:
        """Search rows as stored, ascending, in [start, stop)."""
        for row in self._range(select(ledger_index), ledger_index.c.idx, start, stop):
            yield row.idx, decode_index_row(row._asdict())

    def hashes(self, level: int, start: int, stop: int) -> list[bytes]:
        """Stored hashes (32 bytes) of complete subtrees [start, stop) at level 0, 8, 16, ...

        No alarm is logged: verification asks beyond the end as well, and says itself what it finds.

        Raises:
            IntegrityFailure: One is missing, or no hash.
        """
        places = {"level": level, "start": start, "stop": stop}
        rows = read_rows(self._connection, _LEAVES if level == 0 else _NODES, places)
        indices, found = zip(*rows, strict=True) if rows else ((), ())
        if list(indices) != list(range(start, stop)):
            raise IntegrityFailure(f"stored hashes of level {level} are missing", why=f"in [{start}, {stop})")
        # A proof reads several runs of 256, on the path of every grant: the checks are loops in C.
        if set(map(type, found)) - {bytes} or set(map(len, found)) - {_HASH_SIZE}:
            raise IntegrityFailure(
                f"stored hashes of level {level} are no hashes", why=f"in [{start}, {stop})"
            )
        return list(found)

    def head(self, size: int) -> str | None:
        """The tree head of that size that was kept; None when none was. Nothing of it is verified."""
        wanted = select(ledger_heads.c.note).where(ledger_heads.c.size == size)
        note: str | None = self._connection.execute(wanted).scalar()
        return note

    def heads(self) -> list[tuple[int, str]]:
        """Signed tree heads kept so far as (size, note), ascending."""
        rows = self._connection.execute(select(ledger_heads).order_by(ledger_heads.c.size))
        return [(row.size, row.note) for row in rows]

    def record(self, digest: str) -> bytes:
        """The record that a digest names.

        Raises:
            NotFound: There is none.
            IntegrityFailure: What is stored has another digest.
        """
        found = self._value(select(ledger_records.c.body).where(ledger_records.c.digest == digest), digest)
        if found is None:
            raise NotFound("the ledger has no such record")
        if type(found) is not bytes or sha256_digest(found) != digest:
            raise alarm("a stored record does not have the digest that names it")
        return found

    def evidence(self, index: int) -> tuple[bytes, bytes]:
        """(salt, evidence) of an entry. Raises NotFound when there is none, or it was erased."""
        wanted = select(ledger_evidence.c.salt, ledger_evidence.c.body)
        row = self._connection.execute(wanted.where(ledger_evidence.c.idx == index)).first()
        if row is None:
            raise NotFound(f"there is no evidence for entry {index}")
        if type(row.salt) is not bytes or type(row.body) is not bytes:
            raise alarm("stored evidence is not what the broker wrote", why=f"entry {index}")
        return row.salt, row.body

    def count_evidence(self, principal: str, until: int) -> int:
        """Pieces of evidence behind entries of a principal from before a time in milliseconds."""
        if not is_storable(principal) or not is_storable(until):
            return 0
        columns = ledger_index.c
        wanted = (
            select(func.count())
            .select_from(ledger_evidence)
            .join(ledger_index, columns.idx == ledger_evidence.c.idx)
        )
        return int(self._value(wanted.where(columns.principal == principal, columns.time < until)) or 0)

    def search(self, query: Query, *, after: int, limit: int) -> list[tuple[int, IndexRow]]:
        """Matching rows with index > after, ascending, at most ``limit`` (and ``limits.MAX_PAGE``).

        ``since`` is inclusive, ``until`` exclusive.

        Raises:
            InvalidRequest: It takes longer than ``limits.MAX_QUESTION``.
        """
        statement = search_statement(query, after=after, limit=limit)
        if statement is None:
            return []
        with bounded(self._connection):
            rows = self._connection.execute(statement).all()
        return [(row.idx, decode_index_row(row._asdict())) for row in rows]

    def count(self, query: Query, *, by: str, top: int) -> Counts:
        """All matching rows in groups; the ``top`` largest are named, of hours and days the newest.

        Raises:
            InternalError: Nothing is grouped by that.
            InvalidRequest: It takes longer than ``limits.MAX_QUESTION``.
        """
        statement = count_statement(query, by=by, top=top)
        if statement is None:
            return decode_counts([], by=by)
        with bounded(self._connection):
            return decode_counts(self._connection.execute(statement).all(), by=by)

    def _range(self, wanted: Select[Any], column: Any, start: int, stop: int) -> Iterator[Any]:
        while start < stop:
            page = wanted.where(column >= start, column < stop).order_by(column).limit(_RUN)
            rows = self._connection.execute(page).all()
            yield from rows
            if len(rows) < _RUN:
                return
            start = rows[-1].idx + 1

    def _value(self, wanted: Select[Any], *values: object) -> Any:
        if not all(is_storable(value) for value in values):
            return None
        return self._connection.execute(wanted).scalar()


class SqlView(SqlReader):
    """A snapshot for deciding: its tail holds, and every row that it returns carries our MAC (I19).

    Attributes:
        now: The database's clock in milliseconds (PostgreSQL), or the injected clock's (SQLite).
        epoch: ``state_epoch`` of the snapshot.

    Raises:
        IntegrityFailure: The tail does not hold; so its epoch is not to be believed either.
    """

    def __init__(
        self, connection: Connection, *, macs: Macs, clock: Clock, remembered: Remembered | None = None
    ) -> None:
        super().__init__(connection, macs=macs)
        self._remembered = Remembered() if remembered is None else remembered
        # The first read fixes the snapshot: before it, SQLite's transaction has not begun to see.
        self._tail = self._read_tail()
        self.now = read_now(connection, clock)
        self.epoch = self._tail.epoch
        # A snapshot does not change: what one rule looked up, the next one is given.
        self._found: dict[tuple[type[Any], tuple[object, ...]], object] = {}

    def tail(self) -> Tail:
        """The tail."""
        return self._tail

    def _read_tail(self) -> Tail:
        rows = read_rows(self._connection, TAIL, {})
        if not rows:
            return check_tail(None, self._macs).tail
        stored = rows[0]
        return self._remembered.of(Tail, stored, lambda: check_tail(stored, self._macs).tail)

    def find(self, row: type[R], *key: object) -> R | None:
        """The row of that class under that key. Raises IntegrityFailure when its MAC does not hold."""
        place = (row, key)
        if place not in self._found:
            self._found[place] = self._find(row, key)
        return cast(R | None, self._found[place])

    def _find(self, row: type[R], key: tuple[object, ...]) -> R | None:
        if not all(is_storable(part) for part in key):
            return None
        codec(row).check_key(key)
        return find_row(self._connection, row, key, macs=self._macs, remembered=self._remembered)

    def list(self, row: type[R], **where: object) -> builtins.list[R]:
        """Rows of that class whose members equal ``where``, ordered by key.

        Raises:
            IntegrityFailure: The MAC of one of them does not hold.
            InternalError: The class has no such member.
        """
        rows = codec(row)
        kinds = {member.name: member.kind for member in rows.members}
        if not kinds.keys() >= where.keys():
            raise InternalError(f"{rows.table.name} was asked for by a member that it does not have")
        if not all(is_storable(value) for value in where.values()):
            return []
        wanted = [rows.table.c[name] == kinds[name].to_column(value) for name, value in where.items()]
        found = self._connection.execute(select(rows.table).where(*wanted).order_by(*rows.key_columns))
        return [rows.decode(cast(Any, stored), self._macs) for stored in found.mappings()]

    def rows(self, row: type[R]) -> Iterator[R | IntegrityFailure]:
        """Every row of that class, as a stream; one whose MAC does not hold comes as its failure."""
        rows = codec(row)
        found = self._connection.execution_options(yield_per=_RUN).execute(select(rows.table))
        for stored in found.mappings():
            try:
                yield rows.decode(cast(Any, stored), self._macs)
            except IntegrityFailure as exc:
                yield exc

    def newest_version(self, collection: str, name: str) -> str | None:
        """Name of the artifact's version that was committed last."""
        names = self._versions(collection, name, newest=True)
        return names[0] if names else None

    def version_by_digest(self, collection: str, name: str, manifest: str) -> str | None:
        """Name of the artifact's version with that manifest digest."""
        found = self.list(Version, collection=collection, name=name, manifest=manifest)
        return found[0].version if found else None

    def versions(self, collection: str, name: str) -> builtins.list[str]:
        """Names of the artifact's versions in the order of their commits."""
        return self._versions(collection, name)

    def _versions(self, collection: str, name: str, *, newest: bool = False) -> builtins.list[str]:
        if not is_storable(collection) or not is_storable(name):
            return []
        rows = codec(Version)
        columns = rows.table.c
        wanted = select(rows.table).where(columns.collection == collection, columns.name == name)
        if newest:
            wanted = wanted.order_by(columns.committed.desc(), columns.entry.desc()).limit(1)
        else:
            wanted = wanted.order_by(columns.committed, columns.entry)
        found = self._connection.execute(wanted).mappings()
        return [rows.decode(cast(Any, stored), self._macs).version for stored in found]

    def find_request(self, jkt: str, request_id: str) -> tuple[bytes, int] | None:
        """(body digest, entry index) of a request that was recorded before."""
        if not is_storable(jkt) or not is_storable(request_id):
            return None
        rows = read_rows(self._connection, _REQUEST, {"jkt": jkt, "request_id": request_id})
        return (rows[0][0], rows[0][1]) if rows else None

    def meter(self, holder: str) -> int:
        """Opened bytes charged to a holder so far."""
        if not is_storable(holder):
            return 0
        rows = read_rows(self._connection, _METER, {"holder": holder})
        return int(rows[0][0]) if rows else 0
