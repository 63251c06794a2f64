"""How far each destination of forwarding has come, and who is sending to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "forward_cursors",
        sa.Column("name", TEXT, primary_key=True, autoincrement=False),
        sa.Column("next", INT, nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("until", INT, nullable=False),
        sa.Column("moved", INT, nullable=False),
        sa.Column("failures", INT, nullable=False),
        sa.Column("error", TEXT, nullable=False),
    )
