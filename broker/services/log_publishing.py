"""The log put where others read it: tiles first, the checkpoint that names them last.

What is published is one more thing that is known outside the database: a checkpoint there that this log
does not extend, or a tile that is another, is a rollback or a fork (I10).

**Source**: C2SP tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.errors import Conflict, RollbackDetected, StoreUnavailable
from broker.ledger import merkle, note, tiles
from broker.ledger.tiles import ENTRIES, Tile
from broker.ports import LogSite, View
from broker.services.cosigned import head_note, with_cosignatures
from broker.services.house import House
from broker.services.log_names import own_verifiers
from broker.services.tiles import bundle

_TRIES: Final = 8
STRIDE: Final = 65_536
"""Entries that one checkpoint goes further at most: after a crash no more than that is looked at again."""


class LogPublisher:
    """Publishes what is new. Any number of replicas may do so at once; for one thread each.

    Args:
        house: Whose log.
        site: Where to.
        entries: Whether the entries go there too, and not their hashes only. They say who read what:
            only where nobody reads who must not.
    """

    def __init__(self, house: House, site: LogSite, *, entries: bool) -> None:
        self._house = house
        self._site = site
        self._entries = entries

    def publish(self, *, until: Callable[[], bool] = lambda: False) -> int:
        """Publish everything up to the tail; returns how many entries the checkpoint there covers now.

        Args:
            until: Asked after each stride of a long backlog; where it says yes the rest is left for later.

        Raises:
            RollbackDetected: What is there is not this log, or more of it than the database has.
            IntegrityFailure: The checkpoint there is not signed by this log, or stored hashes are missing.
            StoreUnavailable, LedgerUnavailable: The site or the database does not answer. What was
                published is a whole, older log.
        """
        lost = 0
        while lost < _TRIES:
            self._house.guard.check()
            # First what is published, the log after it: another replica publishes only what is durable, so
            # a later snapshot has it. The other way round its newer checkpoint would look like a rollback.
            found = self._site.checkpoint()
            with self._house.ledger.view() as view:
                size = 0 if found is None else self._check_extends(view, found[0])
                tail = view.tail().size
                reach = min(tail, size + STRIDE)
                self._put_tiles(view, size, reach)
                text = head_note(self._house, view, reach)
            text = with_cosignatures(self._house, text, reach)
            # Crash here: tiles that no checkpoint names yet. They are the right ones, and found there later.
            try:
                if found is None or found[0] != text:
                    self._site.move(text, None if found is None else found[1])
            except Conflict:
                lost += 1  # another replica was faster: see what it published
                continue
            if reach == tail or until():
                return reach
        raise StoreUnavailable("the published checkpoint changes whenever it is to be moved")

    def _check_extends(self, view: View, published: str) -> int:
        """Size of the checkpoint that is there, which the log extends."""
        head = note.open_head(published, own_verifiers(self._house, view))
        tail = view.tail()
        if head.size > tail.size or merkle.frontier_at(head.size, view.hashes).root() != head.root:
            raise self._shut(
                f"a checkpoint of {head.size} entries is published, the database has {tail.size}"
            )
        return head.size

    def _put_tiles(self, view: View, size: int, reach: int) -> None:
        for tile in tiles.tiles_for(size, reach):
            if tile.level == ENTRIES and not self._entries:
                continue
            try:
                self._site.create(tiles.tile_path(tile), self._bytes(view, tile))
            except Conflict as exc:
                raise self._shut(f"{tiles.tile_path(tile)} is published with another content") from exc

    def _bytes(self, view: View, tile: Tile) -> bytes:
        return bundle(view, tile) if tile.level == ENTRIES else tiles.tile_bytes(view.hashes, tile)

    def _shut(self, why: str) -> RollbackDetected:
        found = RollbackDetected(
            "the ledger does not extend what was published of it",
            why=why,
            next="stop the broker and restore the newest database; see docs/operations/rollback.md",
        )
        self._house.guard.shut(found)
        return found
