"""A log that can never again extend what is known of it goes on under a new name, on record.

After a loss (the newest database is gone, an older one was restored) the log contradicts heads that it
signed, and nobody may be told otherwise. Under a new origin, with a key that clients have to pin
deliberately, it may go on: its first entry names the old origin, where the tree stood, and what is known
outside that the database does not have any more (I10).
"""

from __future__ import annotations

from broker.canonical import Json
from broker.drafts import Draft
from broker.errors import ConfigurationError, LedgerUnavailable
from broker.ledger import merkle, note
from broker.ledger.note import TreeHead
from broker.ports import TreeHeadStore, View
from broker.services.house import House
from broker.services.log_names import ORIGIN, current_name, named_keys
from broker.services.record import append, new_entry


def check_name(house: House) -> None:
    """The settings call the log what the log calls itself.

    Raises:
        ConfigurationError: They do not: heads under another name would contradict each other unseen.
    """
    with house.ledger.view() as view:
        named = current_name(view)
    if named.origin != house.log.origin:
        raise ConfigurationError(
            f"the settings name another log than the database: log_origin is {house.log.origin}",
            why=f"the log calls itself {named.origin}",
            next="set log_origin back; after a loss see docs/operations/rollback.md, section A new origin",
        )


def _find_known(view: View, heads: TreeHeadStore | None) -> TreeHead | None:
    """The newest head under that name that the outside store knows; None when it knows none."""
    newest = heads.newest() if heads is not None else None
    return None if newest is None else note.open_head(newest[1], [key.vkey for key in named_keys(view)])


def succeed(house: House, former_heads: TreeHeadStore | None, *, reason: str, force: bool) -> Json:
    """Begin the log's time under the origin that the house has; returns the entry's members.

    Args:
        house: Its log identity is the new one.
        former_heads: The outside store of the former origin's heads.
        reason: For the record.
        force: Also when the log contradicts nothing that is known outside.

    Raises:
        ConfigurationError: The log is called that already, or nothing is wrong with it.
        IntegrityFailure: The stored log, or what is outside, is not what was signed.
    """
    with house.ledger.view() as view:
        named, tail, now = current_name(view), view.tail(), view.now
        if named.origin == house.log.origin:
            raise ConfigurationError(
                f"the log is called {named.origin} already",
                next="set log_origin to a new name, and tree_heads or heads_store stay as they are",
            )
        known = _find_known(view, former_heads)
        if not force and (known is None or _extends(view, known)):
            raise ConfigurationError(
                "the log contradicts nothing that is known outside: it needs no new origin",
                why="no newer head is known"
                if known is None
                else f"it extends the head of {known.size} entries",
                next="start under the old log_origin; --force if the old key must not be used any more",
            )
        members: Json = {
            "origin": house.log.origin,
            "vkey": house.log.vkey,
            "former": {"origin": named.origin, "size": tail.size, "root": _root(tail.root)},
            "reason": reason,
        }
        if known is not None:
            members["known"] = {"size": known.size, "root": _root(known.root)}
    draft = Draft(entries=(new_entry(house, time=now, type=ORIGIN, **members),), bumps_epoch=True)
    appended, _ = append(house, draft)
    if appended.index != tail.size:
        # Somebody still serves this database under the old name: there would be two.
        raise LedgerUnavailable("another process appends to this log", next="stop every broker first")
    return {"index": appended.index, **members}


def _extends(view: View, known: TreeHead) -> bool:
    tail = view.tail()
    return known.size <= tail.size and merkle.frontier_at(known.size, view.hashes).root() == known.root


def _root(root: bytes) -> str:
    return f"sha256:{root.hex()}"
