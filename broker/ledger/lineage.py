"""From one key of a log to the next: each names its successor in the log, under its own signature.

The entry ``key-rotation`` names the key before and the key after. Its receipt, under a tree head that the
key before signed, is the statement that whoever holds that key follows. A key says nothing of the keys
before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger import note, receipt
from broker.ledger.entry import parse_entry
from broker.ledger.note import TreeHead, Verifier

TYPE: Final = "key-rotation"
USE: Final = "log"


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where the statements lead.

    Attributes:
        keys: The key that they were followed from, and each that it led to, oldest first.
        heads: The tree head of each statement that was followed, in their order. A later head of the log
            has to extend each of them.
    """

    keys: tuple[Verifier, ...]
    heads: tuple[TreeHead, ...]

    @property
    def key(self) -> Verifier:
        """The newest key; the one that they were followed from when none speaks of it."""
        return self.keys[-1]


def follow(vkey: str, statements: Sequence[str]) -> Lineage:
    """Follow a log's statements from a key that is trusted.

    Args:
        vkey: The trusted key.
        statements: Receipts of the log's ``key-rotation`` entries, oldest first. Those of keys before
            ``vkey`` are passed over.

    Raises:
        IntegrityFailure: A statement of a trusted key does not hold, or is not one.
        ConfigurationError: ``vkey`` is not a verifier key.
    """
    keys, heads = [note.parse_vkey(vkey)], []
    for text in statements:
        # Not believed yet: what it says only picks the one that the trusted key must have signed.
        entry = parse_entry(receipt.parse_receipt(text).entry_bytes)
        if entry["type"] != TYPE or entry.get("previous_kid") != keys[-1].key_id.hex():
            continue
        verified = receipt.verify_receipt(text, keys[-1])
        keys.append(_successor(keys[-1], verified.entry.get("use"), verified.entry.get("vkey")))
        heads.append(verified.head)
    return Lineage(keys=tuple(keys), heads=tuple(heads))


def _successor(key: Verifier, use: object, vkey: object) -> Verifier:
    if use != USE or not isinstance(vkey, str):
        raise IntegrityFailure("a statement of the log's key names no other key of the log")
    try:
        found = note.parse_vkey(vkey)
    except ConfigurationError as exc:
        raise IntegrityFailure("a statement of the log's key names no verifier key", why=exc.what) from exc
    if found.name != key.name or found.public == key.public:
        raise IntegrityFailure("a statement of the log's key names the key of another log, or itself")
    return found
