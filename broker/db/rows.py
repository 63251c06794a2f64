"""Row dataclasses to table rows and back, under a MAC that is verified on every read (I19)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Generic, TypeVar, cast

from sqlalchemy import Connection, Table, bindparam, select, tuple_

from broker.canonical import Json
from broker.db.macs import Macs, alarm
from broker.db.tables import ROW_TABLES
from broker.db.values import KINDS, Kind, UnreadableError, member_types
from broker.errors import IntegrityFailure, InternalError, MalformedRequest
from broker.model import ROW_KEYS

R = TypeVar("R")

_CHUNK: Final = 200
"""Keys that one statement asks for: bounds the number of its parameters."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    kind: Kind
    loose: bool


def _members(row: Any) -> tuple[_Member, ...]:
    types = member_types(row)
    return tuple(
        _Member(name=f.name, kind=KINDS[types[f.name][0]], loose=bool(f.metadata.get("loose", False)))
        for f in fields(row)
        if f.name != "entry"
    )


class RowCodec(Generic[R]):
    """Rows of one class: their table, and both directions of the mapping.

    Args:
        row: A class of ``model.ROW_KEYS``.
    """

    def __init__(self, row: type[R]) -> None:
        self._row: Final[Any] = row
        self.table: Final[Table] = ROW_TABLES[row]
        # SQLAlchemy's own kind of text is slow to write as JSON, and every row that is read needs a MAC.
        self._name: Final = str(self.table.name)
        self.keys: Final = ROW_KEYS[row]
        self.members: Final = _members(row)
        self.key_columns: Final = [self.table.c[name] for name in self.keys]
        self.columns: Final = [column.name for column in self.table.columns]
        # Built once: every grant looks a dozen rows up, and building a statement costs more than running it.
        self.by_key: Final = select(self.table).where(
            *(self.table.c[name] == bindparam(f"key_{name}") for name in self.keys)
        )

    def encode(self, row: R, *, entry: int, macs: Macs) -> dict[str, Any]:
        """Column values of a row that entry number ``entry`` wrote, with their MAC.

        Raises:
            InternalError: A member has another type than the class declares.
            InvalidRequest: A member cannot be stored.
            MalformedRequest: A member has no canonical form.
        """
        values = {m.name: m.kind.to_column(getattr(row, m.name)) for m in self.members}
        return {**values, "entry": entry, "mac": self._mac(row, entry, macs)}

    def decode(self, stored: Mapping[str, Any], macs: Macs) -> R:
        """The row that these column values hold.

        Raises:
            IntegrityFailure: They do not carry the broker's MAC; logged as an alarm.
        """
        try:
            values = {m.name: m.kind.from_column(stored[m.name]) for m in self.members}
            entry = KINDS[int].from_column(stored["entry"])
            row = cast(R, self._row(**values, entry=entry))
            expected = self._mac(row, entry, macs)
            mac = KINDS[bytes].from_column(stored["mac"])
        except (UnreadableError, MalformedRequest) as exc:
            raise self._refuse(stored) from exc
        if not hmac.compare_digest(expected, mac):
            raise self._refuse(stored)
        return row

    def same(self, left: R, right: R) -> bool:
        """Whether two rows agree in everything that the MAC covers, the entry included."""
        names = [m.name for m in self.members if not m.loose] + ["entry"]
        return all(getattr(left, name) == getattr(right, name) for name in names)

    def check_key(self, key: Sequence[object]) -> None:
        """The key has the members of this class.

        Raises:
            InternalError: Another number of members, or one of another type.
            InvalidRequest: A member cannot be stored.
        """
        kinds = {m.name: m.kind for m in self.members}
        if len(key) != len(self.keys):
            raise InternalError(f"a key of {self.table.name} has {len(self.keys)} members")
        for name, part in zip(self.keys, key, strict=True):
            kinds[name].to_column(part)

    def find_many(
        self, connection: Connection, keys: Iterable[tuple[Any, ...]], macs: Macs
    ) -> dict[tuple[Any, ...], R | IntegrityFailure]:
        """Rows under those keys, which :meth:`check_key` has passed.

        A row that does not carry the broker's MAC comes as its failure, so that it harms only who
        rests on it.
        """
        found: dict[tuple[Any, ...], R | IntegrityFailure] = {}
        for chunk in chunks(list(keys)):
            wanted = tuple_(*self.key_columns).in_(chunk)
            for stored in connection.execute(select(self.table).where(wanted)).mappings():
                key = tuple(stored[name] for name in self.keys)
                try:
                    found[key] = self.decode(cast(Mapping[str, Any], stored), macs)
                except IntegrityFailure as exc:
                    found[key] = exc
        return found

    def _mac(self, row: R, entry: int, macs: Macs) -> bytes:
        columns: Json = {m.name: m.kind.covered(getattr(row, m.name)) for m in self.members if not m.loose}
        return macs.row(
            table=self._name, key=[columns[name] for name in self.keys], columns=columns, entry=entry
        )

    def _refuse(self, stored: Mapping[str, Any]) -> IntegrityFailure:
        key = ascii(tuple(stored[name] for name in self.keys))[:200]
        return alarm(
            "a stored row does not carry the broker's MAC", why=f"table {self.table.name}, key {key}"
        )


_CODECS: Final = {row: RowCodec(row) for row in ROW_TABLES}


def codec(row: type[R]) -> RowCodec[R]:
    """The codec of a row class.

    Raises:
        InternalError: It is no row class.
    """
    found = _CODECS.get(row)
    if found is None:
        raise InternalError("a class that is no row class was asked for")
    return cast(RowCodec[R], found)


def chunks(items: Sequence[R]) -> Iterator[Sequence[R]]:
    """Runs of at most 200 items: what one statement takes as parameters."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
