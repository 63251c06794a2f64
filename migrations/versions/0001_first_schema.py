"""The first schema.

Insert-only tables refuse UPDATE, DELETE and (on PostgreSQL) TRUNCATE by trigger. On SQLite an INSERT
that would replace a row is refused as well: ``INSERT OR REPLACE`` deletes without a DELETE. Triggers
stop mistakes and narrow roles; a database administrator is found out by the Merkle tree, not stopped.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
OCTETS = sa.LargeBinary()

INSERT_ONLY = ("ledger_entries", "ledger_hashes", "ledger_heads", "ledger_records")
"""Neither UPDATE nor DELETE."""
REPLACED = {
    "ledger_entries": "idx = NEW.idx",
    "ledger_hashes": "level = NEW.level AND idx = NEW.idx",
    "ledger_heads": "size = NEW.size AND note <> NEW.note",
    "ledger_records": "digest = NEW.digest AND body <> NEW.body",
}
"""Table -> which row an INSERT would replace. Inserting the same head or record again is fine."""
NEVER_CHANGED = ("ledger_evidence",)
"""No UPDATE; a DELETE is an erasure."""
NEVER_DELETED = ("ledger_tail",)
"""No DELETE; every append is an UPDATE."""


def _key(name: str, type_: sa.types.TypeEngine) -> sa.Column:
    return sa.Column(name, type_, primary_key=True, autoincrement=False)


def _value(name: str, type_: sa.types.TypeEngine) -> sa.Column:
    return sa.Column(name, type_, nullable=False)


def _null(name: str, type_: sa.types.TypeEngine) -> sa.Column:
    return sa.Column(name, type_, nullable=True)


def upgrade() -> None:
    _create_ledger()
    _create_bookkeeping()
    _create_rows()
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()


def _refused_events() -> list[tuple[str, str]]:
    """(table, UPDATE or DELETE) that a trigger refuses."""
    found = [(table, event) for table in INSERT_ONLY for event in ("UPDATE", "DELETE")]
    found += [(table, "UPDATE") for table in NEVER_CHANGED]
    return found + [(table, "DELETE") for table in NEVER_DELETED]


def _guard_sqlite() -> None:
    for table, event in _refused_events():
        op.execute(
            f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is insert-only'); END"
        )
    for table, replaced in REPLACED.items():
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - constants
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {replaced}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} is insert-only'); END"
        )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION broker_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '% is insert-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege'; "
        "END $$"
    )
    for table, event in _refused_events():
        op.execute(
            f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION broker_refuse_change()"
        )
    for table in (*INSERT_ONLY, *NEVER_CHANGED, *NEVER_DELETED):
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION broker_refuse_change()"
        )


def _create_ledger() -> None:
    op.create_table(
        "ledger_entries",
        _key("idx", INT),
        _value("entry", OCTETS),
        _value("leaf_hash", OCTETS),
    )
    op.create_table(
        "ledger_hashes",
        _key("level", INT),
        _key("idx", INT),
        _value("hash", OCTETS),
    )
    op.create_table(
        "ledger_heads",
        _key("size", INT),
        _value("note", TEXT),
    )
    op.create_table(
        "ledger_records",
        _key("digest", TEXT),
        _value("body", OCTETS),
    )
    op.create_table(
        "ledger_evidence",
        _key("idx", INT),
        _value("salt", OCTETS),
        _value("body", OCTETS),
    )
    op.create_table(
        "ledger_index",
        _key("idx", INT),
        _value("time", INT),
        _value("type", TEXT),
        _null("principal", TEXT),
        _null("jkt", TEXT),
        _null("action", TEXT),
        _null("artifact", TEXT),
        _null("version", TEXT),
        _null("decision", TEXT),
        _value("policies", TEXT),
        _null("bytes", INT),
        _null("grant", TEXT),
        _null("purpose", TEXT),
    )
    op.create_index("ix_ledger_index_action", "ledger_index", ["action", "idx"])
    op.create_index("ix_ledger_index_artifact", "ledger_index", ["artifact", "idx"])
    op.create_index("ix_ledger_index_decision", "ledger_index", ["decision", "idx"])
    op.create_index("ix_ledger_index_grant", "ledger_index", ["grant", "idx"])
    op.create_index("ix_ledger_index_jkt", "ledger_index", ["jkt", "idx"])
    op.create_index("ix_ledger_index_principal", "ledger_index", ["principal", "idx"])
    op.create_index("ix_ledger_index_purpose", "ledger_index", ["purpose", "idx"])
    op.create_index("ix_ledger_index_time", "ledger_index", ["time", "idx"])
    op.create_index("ix_ledger_index_type", "ledger_index", ["type", "idx"])
    op.create_index("ix_ledger_index_version", "ledger_index", ["version", "idx"])
    op.create_table(
        "ledger_tail",
        _key("id", INT),
        _value("size", INT),
        _value("root", OCTETS),
        _value("frontier", OCTETS),
        _value("state_epoch", INT),
        _value("tail_mac", OCTETS),
        sa.CheckConstraint("id = 0", name="ck_ledger_tail_one_row"),
    )


def _create_bookkeeping() -> None:
    op.create_table(
        "replays",
        _key("jkt", TEXT),
        _key("jti_hash", OCTETS),
        _value("keep_until", INT),
    )
    op.create_index("ix_replays_keep_until", "replays", ["keep_until"])
    op.create_table(
        "requests",
        _key("jkt", TEXT),
        _key("request_id", TEXT),
        _value("body_digest", OCTETS),
        _value("entry_idx", INT),
    )
    op.create_table(
        "meters",
        _key("holder", TEXT),
        _value("opened_bytes", INT),
    )
    op.create_table(
        "opened",
        _key("holder", TEXT),
        _key("version_id", OCTETS),
        _value("bitmap", OCTETS),
    )
    op.create_table(
        "enrolment_failures",
        _key("enrolment_id", TEXT),
        _value("failures", INT),
    )


def _create_rows() -> None:
    op.create_table(
        "principals",
        _key("id", TEXT),
        _value("roles", TEXT),
        _value("groups", TEXT),
        _value("disabled", INT),
        _value("created", INT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "groups",
        _key("name", TEXT),
        _value("parents", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "keys",
        _key("jkt", TEXT),
        _value("principal", TEXT),
        _value("jwk", TEXT),
        _value("uses", TEXT),
        _value("status", TEXT),
        _value("created", INT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index("ix_keys_principal", "keys", ["principal"])
    op.create_table(
        "enrolments",
        _key("id", TEXT),
        _value("principal", TEXT),
        _value("secret_hash", OCTETS),
        _value("expires", INT),
        _value("status", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index("ix_enrolments_principal", "enrolments", ["principal"])
    op.create_table(
        "tokens",
        _key("id", TEXT),
        _value("principal", TEXT),
        _value("jkt", TEXT),
        _value("limits", TEXT),
        _value("chain", TEXT),
        _value("issued", INT),
        _value("expires", INT),
        _value("status", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index("ix_tokens_jkt", "tokens", ["jkt"])
    op.create_index("ix_tokens_principal", "tokens", ["principal"])
    op.create_table(
        "collections",
        _key("name", TEXT),
        _value("readers", TEXT),
        _value("publishers", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "artifacts",
        _key("collection", TEXT),
        _key("name", TEXT),
        _value("kind", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "versions",
        _key("collection", TEXT),
        _key("name", TEXT),
        _key("version", TEXT),
        _value("version_id", OCTETS),
        _value("kind", TEXT),
        _value("labels", TEXT),
        _value("manifest", TEXT),
        _value("files", INT),
        _value("bytes", INT),
        _value("publisher", TEXT),
        _value("publisher_jkt", TEXT),
        _value("binding", INT),
        _value("wrapped_key", OCTETS),
        _value("committed", INT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index(
        "ix_versions_collection_name_committed_entry",
        "versions",
        ["collection", "name", "committed", "entry"],
    )
    op.create_index("ix_versions_collection_name_manifest", "versions", ["collection", "name", "manifest"])
    op.create_table(
        "manifests",
        _key("digest", TEXT),
        _value("body", OCTETS),
        _value("signature", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "uploads",
        _key("id", TEXT),
        _value("collection", TEXT),
        _value("name", TEXT),
        _value("version", TEXT),
        _value("version_id", OCTETS),
        _value("kind", TEXT),
        _value("labels", TEXT),
        _value("extent_size", INT),
        _value("files", TEXT),
        _value("principal", TEXT),
        _value("jkt", TEXT),
        _value("wrapped_key", OCTETS),
        _value("status", TEXT),
        _value("created", INT),
        _value("expires", INT),
        _value("parts", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index("ix_uploads_collection_name_version", "uploads", ["collection", "name", "version"])
    op.create_index("ix_uploads_jkt", "uploads", ["jkt"])
    op.create_index("ix_uploads_status_expires", "uploads", ["status", "expires"])
    op.create_table(
        "grants",
        _key("id", TEXT),
        _value("principal", TEXT),
        _value("jkt", TEXT),
        _value("token", TEXT),
        _value("collection", TEXT),
        _value("name", TEXT),
        _value("version", TEXT),
        _value("version_id", OCTETS),
        _value("manifest", TEXT),
        _value("selection", TEXT),
        _value("files", INT),
        _value("bytes", INT),
        _value("purpose", TEXT),
        _value("created", INT),
        _value("expires", INT),
        _value("status", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index("ix_grants_jkt", "grants", ["jkt"])
    op.create_index("ix_grants_principal", "grants", ["principal"])
    op.create_index("ix_grants_version_id", "grants", ["version_id"])
    op.create_table(
        "leases",
        _key("grant", TEXT),
        _key("number", INT),
        _value("recipient", TEXT),
        _value("extents", TEXT),
        _value("expires", INT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "policy_bundles",
        _key("digest", TEXT),
        _value("body", OCTETS),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "active_bundle",
        _key("slot", TEXT),
        _value("digest", TEXT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
