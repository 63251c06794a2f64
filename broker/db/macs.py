"""MACs over what the database holds but must not be able to change by itself (I19), and the alarm.

The keys are derived from one integrity key that lives outside the database. Each kind of MAC has a
key of its own, so that a value of one kind never passes as another.
"""

from __future__ import annotations

import hmac
import logging
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.canonical import Json, b64url, canonical_bytes, sha256_digest
from broker.errors import ConfigurationError, IntegrityFailure

MAC_SIZE: Final = 32
_ALARM: Final = logging.getLogger("broker.alarm")


def alarm(what: str, *, why: str | None = None) -> IntegrityFailure:
    """Log to ``broker.alarm`` that stored data is not what the broker wrote; returns the error to raise."""
    _ALARM.critical("%s%s", what, f" ({why})" if why else "")
    return IntegrityFailure(what, why=why)


def _derive(integrity_key: bytes, purpose: str) -> bytes:
    info = b"broker/integrity/v1/" + purpose.encode("ascii")
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(integrity_key)


class Macs:
    """HMAC-SHA256 of rows and of the tail, 32 bytes each.

    Args:
        integrity_key: At least 32 bytes, kept outside the database.

    Raises:
        ConfigurationError: The key is too short.

    Source: RFC 2104, RFC 5869.
    """

    def __init__(self, integrity_key: bytes) -> None:
        if len(integrity_key) < 32:
            raise ConfigurationError("the integrity key has fewer than 32 bytes")
        self._row_key = _derive(integrity_key, "row")
        self._tail_key = _derive(integrity_key, "tail")

    def row(self, *, table: str, key: list[Any], columns: Json, entry: int) -> bytes:
        """The MAC of a row: of its place as well as of its content, so that it cannot be moved.

        Raises:
            MalformedRequest: A value has no canonical form (an integer of 2^53, a lone surrogate).
        """
        covered = canonical_bytes(
            {"schema": "broker/row/v1", "table": table, "key": key, "columns": columns, "entry": entry}
        )
        return hmac.digest(self._row_key, covered, "sha256")

    def tail(self, *, size: int, root: bytes, epoch: int, frontier: bytes) -> bytes:
        """The MAC of the ledger's tail.

        Raises:
            MalformedRequest: A number is 2^53 or more.
        """
        covered = canonical_bytes(
            {
                "schema": "broker/tail/v1",
                "size": size,
                "root": b64url(root),
                "epoch": epoch,
                "frontier": sha256_digest(frontier),
            }
        )
        return hmac.digest(self._tail_key, covered, "sha256")
