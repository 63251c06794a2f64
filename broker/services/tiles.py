"""The log as C2SP tiles: hash tiles for everybody, entry bundles for auditors."""

from __future__ import annotations

from broker.errors import NotFound
from broker.ledger import tiles
from broker.ledger.tiles import Tile
from broker.ports import LedgerReader
from broker.services import auditing, authn
from broker.services.house import House


def hash_tile(house: House, level: str, place: str) -> bytes:
    """A hash tile of the tree as it stands: at most 8 KiB, the same bytes for ever.

    Nothing secret is in it: an entry's hash covers 16 random bytes. It is read, not verified; whoever
    uses it verifies it against a signed tree head, as C2SP asks of every client.

    Args:
        house: The broker.
        level: The tile's level, as the path has it.
        place: The rest of the path.

    Raises:
        NotFound: No tile has that name, or the tree has not grown that far.
        IntegrityFailure: Stored hashes are missing.

    Source: C2SP tlog-tiles, "Merkle Tree".
    """
    tile = tiles.parse_tile(level, place)
    with house.ledger.view() as view:
        _check_there(view, tile)
        return tiles.tile_bytes(view.hashes, tile)


def entry_bundle(house: House, request: authn.SignedRequest, place: str) -> bytes:
    """The entries under a level 0 tile, for an auditor; the read is itself recorded.

    Raises:
        NotFound: No bundle has that name, or the log has not grown that far.

    Source: C2SP tlog-tiles, "Log Entries".
    """
    auditing.authorize(house, request, "read", "entry bundles", to_verify=True)
    tile = tiles.parse_tile("entries", place)
    with house.ledger.view() as view:
        _check_there(view, tile)
        return bundle(view, tile)


def bundle(reader: LedgerReader, tile: Tile) -> bytes:
    """The bytes of an entry bundle, as the log is stored.

    Raises:
        IntegrityFailure: Stored entries are missing or too long.
    """
    return tiles.bundle_bytes([data for _, data, _ in reader.entries(tile.start, tile.stop)])


def _check_there(reader: LedgerReader, tile: Tile) -> None:
    size = reader.tail().size
    if not tile.fits(size):
        raise NotFound("the log has no such tile yet", why=f"it has {size} entries")
