"""What witnesses signed: one line for each tree head and witness, insert-only like the heads themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

TABLE = "ledger_cosignatures"
REPLACED = "size = NEW.size AND witness = NEW.witness AND (line <> NEW.line OR time <> NEW.time)"
"""Which row an INSERT would replace. Inserting the same line again is fine."""


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("size", INT, primary_key=True, autoincrement=False),
        sa.Column("witness", TEXT, primary_key=True, autoincrement=False),
        sa.Column("line", TEXT, nullable=False),
        sa.Column("time", INT, nullable=False),
    )
    op.create_index("ix_ledger_cosignatures_witness", TABLE, ["witness", "size"])
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
    else:
        _guard_sqlite()


def _guard_sqlite() -> None:
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {TABLE}_no_{event.lower()} BEFORE {event} ON {TABLE} "
            f"BEGIN SELECT RAISE(ABORT, '{TABLE} is insert-only'); END"
        )
    op.execute(
        f"CREATE TRIGGER {TABLE}_no_replace BEFORE INSERT ON {TABLE} "  # noqa: S608 - constants
        f"WHEN EXISTS (SELECT 1 FROM {TABLE} WHERE {REPLACED}) "
        f"BEGIN SELECT RAISE(ABORT, '{TABLE} is insert-only'); END"
    )


def _guard_postgresql() -> None:
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {TABLE}_no_{event.lower()} BEFORE {event} ON {TABLE} "
            "FOR EACH ROW EXECUTE FUNCTION broker_refuse_change()"
        )
    op.execute(
        f"CREATE TRIGGER {TABLE}_no_truncate BEFORE TRUNCATE ON {TABLE} "
        "FOR EACH STATEMENT EXECUTE FUNCTION broker_refuse_change()"
    )
