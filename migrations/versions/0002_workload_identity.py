"""Workload identity: issuers, the pins of their tokens, and what a token knows of its holder.

Access tokens that were issued before are deleted. They live for fifteen minutes, the MAC of their
rows does not cover the new columns, and a client that meets a dead token asks for a new one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
OCTETS = sa.LargeBinary()


def _key(name: str, type_: sa.types.TypeEngine) -> sa.Column:
    return sa.Column(name, type_, primary_key=True, autoincrement=False)


def _value(name: str, type_: sa.types.TypeEngine) -> sa.Column:
    return sa.Column(name, type_, nullable=False)


def upgrade() -> None:
    _give_tokens_an_identity()
    op.create_table(
        "issuers",
        _key("name", TEXT),
        _value("url", TEXT),
        _value("kind", TEXT),
        _value("audience", TEXT),
        _value("jwks_uri", TEXT),
        _value("jwks", TEXT),
        _value("ca", TEXT),
        _value("mapping", TEXT),
        _value("status", TEXT),
        _value("created", INT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_table(
        "subject_uses",
        _key("digest", TEXT),
        _value("jkt", TEXT),
        _value("issuer", TEXT),
        _value("principal", TEXT),
        _value("expires", INT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index("ix_subject_uses_expires", "subject_uses", ["expires"])


def _give_tokens_an_identity() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # In place: whoever has rights on the table keeps them.
        op.execute("DELETE FROM tokens")
        op.add_column("tokens", _value("identity", TEXT))
        op.add_column("tokens", _value("delegated", INT))
        return
    # SQLite adds no column that is NOT NULL without a default, which would stay in the schema for
    # ever: the table is made anew, which is what deleting its rows comes to.
    op.drop_table("tokens")
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
        _value("identity", TEXT),
        _value("delegated", INT),
        _value("entry", INT),
        _value("mac", OCTETS),
    )
    op.create_index("ix_tokens_jkt", "tokens", ["jkt"])
    op.create_index("ix_tokens_principal", "tokens", ["principal"])
