"""Receipts: an entry, its inclusion proof and a signed tree head, as one text that verifies offline.

The text is a C2SP ``tlog-proof``; its ``extra`` line carries the exact bytes of the entry. That line
is not authenticated by the format itself: here it is, because the leaf hash is computed from it and
the proof must lead from there to the signed root.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from broker import limits
from broker.canonical import Json
from broker.errors import IntegrityFailure
from broker.ledger.entry import parse_entry
from broker.ledger.merkle import HASH_SIZE, leaf_hash, verify_inclusion
from broker.ledger.note import TreeHead, Verifier, encode_base64, open_head, parse_base64
from broker.ledger.quorum import Policy

MAGIC: Final = "c2sp.org/tlog-proof@v1"
FILE_EXTENSION: Final = ".tlog-proof"
_INDEX_RE: Final = re.compile(r"index (0|[1-9][0-9]{0,15})")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The parts of a receipt as it was read; nothing of it is verified yet.

    Attributes:
        entry_bytes: The entry, exactly as it is in the log.
        index: Index of the entry in the log.
        proof: Hashes of 32 bytes, from the leaf's sibling to the root's child.
        note: The signed tree head.
    """

    entry_bytes: bytes
    index: int
    proof: tuple[bytes, ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class VerifiedReceipt:
    """What a receipt proves: this entry is at this index of the log that signed this head.

    Attributes:
        entry: The entry as an object.
        entry_bytes: Its exact bytes.
        index: Its index in the log.
        leaf_hash: Its Merkle leaf hash, 32 bytes.
        head: The signed tree head that covers it.
    """

    entry: Json
    entry_bytes: bytes
    index: int
    leaf_hash: bytes
    head: TreeHead


def build_receipt(entry: bytes, index: int, proof: Sequence[bytes], note: str) -> str:
    """The receipt's text.

    Args:
        entry: The entry's exact bytes.
        index: Its index in the log.
        proof: Its inclusion proof in the tree of the head's size.
        note: The signed tree head, ending in a newline.

    Source: C2SP tlog-proof, "Format".
    """
    lines = [MAGIC, f"extra {encode_base64(entry)}", f"index {index}", *map(encode_base64, proof), "", note]
    return "\n".join(lines)


def parse_receipt(text: str) -> Receipt:
    """The parts of a receipt, in the only form that :func:`build_receipt` writes. Verifies nothing.

    Raises:
        IntegrityFailure: It is not such a text, or larger than ``limits.MAX_RECEIPT``.

    Source: C2SP tlog-proof, "Format" (the ``extra`` line is optional there and required here).
    """
    if not isinstance(text, str) or len(text) > limits.MAX_RECEIPT:
        raise IntegrityFailure(f"a receipt is not a text of at most {limits.MAX_RECEIPT} characters")
    front, blank, note = text.partition("\n\n")
    magic, *lines = front.split("\n")
    if magic != MAGIC or not blank or len(lines) < 2:
        raise IntegrityFailure(f"a receipt is not a {MAGIC} text with an entry")
    extra, index, *proof = lines
    match = _INDEX_RE.fullmatch(index)
    if not extra.startswith("extra ") or match is None or len(proof) > limits.MAX_PROOF_HASHES:
        raise IntegrityFailure("a receipt has no entry, no index, or too many hashes")
    return Receipt(
        entry_bytes=parse_base64(extra[6:]),
        index=int(match[1]),
        proof=tuple(_parse_hash(line) for line in proof),
        note=note,
    )


def verify_receipt(
    text: str, vkeys: str | Verifier | Iterable[str | Verifier], *, policy: Policy | None = None
) -> VerifiedReceipt:
    """The entry that a receipt proves, and the signed tree head that covers it.

    What it does not say: that the entry is the caller's own request (compare it), or that the log
    extends what was seen before (verify the consistency of the head).

    Args:
        text: The receipt.
        vkeys: Verifier key of the log, or several (logs, or older keys of one log).
        policy: Whose quorum of witnesses must have cosigned the tree head as well.

    Raises:
        IntegrityFailure: The form, a signature, the proof or the entry does not hold, or the quorum is
            not there.
        ConfigurationError: A verifier key is not one.
    """
    receipt = parse_receipt(text)
    head = open_head(receipt.note, vkeys)
    if policy is not None:
        policy.check(receipt.note)
    leaf = leaf_hash(receipt.entry_bytes)
    verify_inclusion(leaf, receipt.index, head.size, receipt.proof, head.root)
    return VerifiedReceipt(
        entry=parse_entry(receipt.entry_bytes),
        entry_bytes=receipt.entry_bytes,
        index=receipt.index,
        leaf_hash=leaf,
        head=head,
    )


def _parse_hash(line: str) -> bytes:
    value = parse_base64(line)
    if len(value) != HASH_SIZE:
        raise IntegrityFailure(f"a hash in a receipt has {len(value)} bytes")
    return value
