"""Server nonces for signed requests: stateless, so that every replica can check every nonce.

A nonce is 32 characters: base64url of an 8-byte big-endian time (milliseconds since 1970) and the
first 16 bytes of HMAC-SHA256 over the context ``broker/nonce/v1`` and that time, under a key that
the replicas share. It proves that a proof is not older than the nonce; that a proof works once is
the replay table's affair.

**Source**: RFC 9449 section 8.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from broker import limits
from broker.canonical import b64url, parse_b64url
from broker.errors import ConfigurationError, MalformedRequest, NonceRequired

_CONTEXT: Final = b"broker/nonce/v1"
_TIME: Final = 8
_TAG: Final = 16
_KEY: Final = 32


def issue_nonce(key: bytes, now: int) -> str:
    """A nonce of 32 characters that is good for ``limits.NONCE_TTL`` seconds from ``now``.

    Args:
        key: 32 bytes, the same on every replica.
        now: Milliseconds since 1970.

    Raises:
        ConfigurationError: The key has another size.
    """
    stamp = now.to_bytes(_TIME, "big")
    return b64url(stamp + _tag(key, stamp))


def verify_nonce(nonce: str | None, *, key: bytes, now: int) -> None:
    """``nonce`` was issued under ``key`` at most ``limits.NONCE_TTL`` seconds ago.

    A nonce from the future is accepted within ``limits.PROOF_WINDOW``: replicas' clocks differ.

    Raises:
        NonceRequired: It is absent, foreign or stale; the error carries a fresh one.
        ConfigurationError: The key is not 32 bytes.
    """
    if nonce is None or not _is_live(nonce, key, now):
        raise NonceRequired(
            "the proof needs a nonce of this server",
            nonce=issue_nonce(key, now),
            next="send the request again with the nonce of the DPoP-Nonce header",
        )


def _is_live(nonce: str, key: bytes, now: int) -> bool:
    try:
        raw = parse_b64url(nonce, size=_TIME + _TAG)
    except MalformedRequest:
        return False
    stamp, tag = raw[:_TIME], raw[_TIME:]
    if not hmac.compare_digest(tag, _tag(key, stamp)):
        return False
    age = now - int.from_bytes(stamp, "big")
    return -limits.PROOF_WINDOW * 1000 <= age <= limits.NONCE_TTL * 1000


def _tag(key: bytes, stamp: bytes) -> bytes:
    if len(key) != _KEY:
        raise ConfigurationError(f"the nonce key is not {_KEY} bytes")
    return hmac.digest(key, _CONTEXT + stamp, hashlib.sha256)[:_TAG]
