"""The tables: the ledger, its bookkeeping, and one table for each row class of the model.

The schema itself is made by the scripts in ``migrations/``; a test compares the two. Text compares
byte by byte on both databases (collation ``C`` on PostgreSQL, ``BINARY`` on SQLite), so that keys
sort in the same order everywhere.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeEngine

from broker import model
from broker.db.values import member_types

METADATA: Final = MetaData()

INT: Final[TypeEngine[int]] = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits. ``INTEGER`` on SQLite, so that an integer primary key is the row's own number there."""
TEXT: Final[TypeEngine[str]] = Text().with_variant(Text(collation="C"), "postgresql")
OCTETS: Final[TypeEngine[bytes]] = LargeBinary()

INDEXED: Final = ("principal", "jkt", "action", "artifact", "version", "decision", "type", "grant", "purpose")
"""Search columns that a query compares for equality; each has an index on (column, idx)."""

_COLUMN_TYPES: Final[dict[Any, TypeEngine[Any]]] = {
    str: TEXT,
    int: INT,
    bool: INT,
    bytes: OCTETS,
    tuple[str, ...]: TEXT,
}


def _key(name: str, type_: TypeEngine[Any]) -> Column[Any]:
    return Column(name, type_, primary_key=True, autoincrement=False)


def _value(name: str, type_: TypeEngine[Any], *, nullable: bool = False) -> Column[Any]:
    return Column(name, type_, nullable=nullable)


# -- the ledger: insert-only --------------------------------------------------------------------------

ledger_entries: Final = Table(
    "ledger_entries",
    METADATA,
    _key("idx", INT),
    _value("entry", OCTETS),
    _value("leaf_hash", OCTETS),
)
"""Exact bytes of each entry, and its leaf hash (32 bytes): level 0 of the tree."""

ledger_hashes: Final = Table(
    "ledger_hashes",
    METADATA,
    _key("level", INT),
    _key("idx", INT),
    _value("hash", OCTETS),
)
"""Hashes (32 bytes) of complete subtrees at levels 8, 16, ..."""

ledger_heads: Final = Table("ledger_heads", METADATA, _key("size", INT), _value("note", TEXT))
"""Signed tree heads."""

ledger_cosignatures: Final = Table(
    "ledger_cosignatures",
    METADATA,
    _key("size", INT),
    _key("witness", TEXT),
    _value("line", TEXT),
    _value("time", INT),
    Index("ix_ledger_cosignatures_witness", "witness", "size"),
)
"""Signature lines of witnesses by tree size and the witness's key; ``time`` is the witness's own, ms."""

ledger_records: Final = Table("ledger_records", METADATA, _key("digest", TEXT), _value("body", OCTETS))
"""What entries commit to by digest, kept for ever."""

# -- beside the ledger ----------------------------------------------------------------------------------

ledger_evidence: Final = Table(
    "ledger_evidence",
    METADATA,
    _key("idx", INT),
    _value("salt", OCTETS),
    _value("body", OCTETS),
)
"""What entries commit to with a salt; a row may be deleted (erasure), never changed."""

ledger_index: Final = Table(
    "ledger_index",
    METADATA,
    _key("idx", INT),
    *(
        _value(name, _COLUMN_TYPES[base], nullable=optional)
        for name, (base, optional) in member_types(model.IndexRow).items()
    ),
    *(Index(f"ix_ledger_index_{name}", name, "idx") for name in (*INDEXED, "time")),
)
"""Search columns, all derived from the entries: it can be dropped and built again."""

ledger_tail: Final = Table(
    "ledger_tail",
    METADATA,
    _key("id", INT),
    _value("size", INT),
    _value("root", OCTETS),
    _value("frontier", OCTETS),
    _value("state_epoch", INT),
    _value("tail_mac", OCTETS),
    CheckConstraint("id = 0", name="ck_ledger_tail_one_row"),
)
"""One row, which every append locks."""

# -- bookkeeping --------------------------------------------------------------------------------------------

replays: Final = Table(
    "replays",
    METADATA,
    _key("jkt", TEXT),
    _key("jti_hash", OCTETS),
    _value("keep_until", INT),
    Index("ix_replays_keep_until", "keep_until"),
)
requests: Final = Table(
    "requests",
    METADATA,
    _key("jkt", TEXT),
    _key("request_id", TEXT),
    _value("body_digest", OCTETS),
    _value("entry_idx", INT),
)
meters: Final = Table("meters", METADATA, _key("holder", TEXT), _value("opened_bytes", INT))
opened: Final = Table(
    "opened",
    METADATA,
    _key("holder", TEXT),
    _key("version_id", OCTETS),
    _value("bitmap", OCTETS),
)
"""Extents that a holder was charged for: bit ``i & 7`` of byte ``i >> 3`` is extent ``i``."""
enrolment_failures: Final = Table(
    "enrolment_failures", METADATA, _key("enrolment_id", TEXT), _value("failures", INT)
)

forward_cursors: Final = Table(
    "forward_cursors",
    METADATA,
    _key("name", TEXT),
    _value("next", INT),
    _value("mac", OCTETS),
    _value("holder", TEXT),
    _value("until", INT),
    _value("moved", INT),
    _value("failures", INT),
    _value("error", TEXT),
)
"""Index of the entry that each destination gets next, with its MAC; who sends to it, and until when (ms)."""

# -- rows with a MAC ----------------------------------------------------------------------------------------


def _row_table(name: str, row: type[Any], *indices: tuple[str, ...]) -> Table:
    keys = model.ROW_KEYS[row]
    columns = [
        _key(name, _COLUMN_TYPES[base]) if name in keys else _value(name, _COLUMN_TYPES[base])
        for name, (base, _) in member_types(row).items()
    ]
    return Table(
        name,
        METADATA,
        *columns,
        _value("mac", OCTETS),
        *(Index(f"ix_{name}_{'_'.join(members)}", *members) for members in indices),
    )


ROW_TABLES: Final[dict[type[Any], Table]] = {
    model.Principal: _row_table("principals", model.Principal),
    model.Group: _row_table("groups", model.Group),
    model.Key: _row_table("keys", model.Key, ("principal",)),
    model.Enrolment: _row_table("enrolments", model.Enrolment, ("principal",)),
    model.Token: _row_table("tokens", model.Token, ("principal",), ("jkt",)),
    model.Issuer: _row_table("issuers", model.Issuer),
    model.SubjectUse: _row_table("subject_uses", model.SubjectUse, ("expires",)),
    model.Collection: _row_table("collections", model.Collection),
    model.Artifact: _row_table("artifacts", model.Artifact),
    model.Version: _row_table(
        "versions",
        model.Version,
        ("collection", "name", "committed", "entry"),
        ("collection", "name", "manifest"),
    ),
    model.ManifestRow: _row_table("manifests", model.ManifestRow),
    model.Upload: _row_table(
        "uploads", model.Upload, ("collection", "name", "version"), ("jkt",), ("status", "expires")
    ),
    model.Grant: _row_table("grants", model.Grant, ("principal",), ("jkt",), ("version_id",)),
    model.Lease: _row_table("leases", model.Lease),
    model.BundleRow: _row_table("policy_bundles", model.BundleRow),
    model.ActiveBundle: _row_table("active_bundle", model.ActiveBundle),
}
"""Row class -> its table: one column for each member, and the row's MAC (32 bytes)."""
