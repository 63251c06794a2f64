"""The database: the ledger, its search index, and the rows that decide who may do what.

SQLAlchemy Core over SQLite (the embedded default) and PostgreSQL. :func:`upgrade` makes the schema,
:func:`open_engine` opens the database, :class:`LedgerStore` is the only door for changes.
"""

from broker.db.engine import open_engine, role_may_change_ledger
from broker.db.ledger_store import LedgerStore
from broker.db.migrate import current_revision, head_revision, upgrade
from broker.db.tail import TreeRules

__all__ = [
    "LedgerStore",
    "TreeRules",
    "current_revision",
    "head_revision",
    "open_engine",
    "role_may_change_ledger",
    "upgrade",
]
