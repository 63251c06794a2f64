"""Server nonces: good under their key and in their time, on any replica; nothing else is."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from broker import limits
from broker.canonical import b64url, parse_b64url
from broker.errors import ConfigurationError, NonceRequired
from broker.identity import nonce

KEY = bytes(range(32))
NOW = 1_800_000_000_123


def test_the_layout_is_time_and_tag():
    stamp = NOW.to_bytes(8, "big")
    tag = hmac.new(KEY, b"broker/nonce/v1" + stamp, hashlib.sha256).digest()[:16]
    assert nonce.issue_nonce(KEY, NOW) == b64url(stamp + tag)
    assert len(nonce.issue_nonce(KEY, NOW)) == 32


def test_the_life_of_a_nonce_is_exact():
    issued = nonce.issue_nonce(KEY, NOW)
    last, first = NOW + limits.NONCE_TTL * 1000, NOW - limits.PROOF_WINDOW * 1000
    for now in (first, NOW, last):
        nonce.verify_nonce(issued, key=KEY, now=now)
    for now in (first - 1, last + 1):
        with pytest.raises(NonceRequired) as caught:
            nonce.verify_nonce(issued, key=KEY, now=now)
        nonce.verify_nonce(caught.value.nonce, key=KEY, now=now)


def test_another_key_is_another_server():
    with pytest.raises(NonceRequired):
        nonce.verify_nonce(nonce.issue_nonce(bytes(32), NOW), key=KEY, now=NOW)


def test_no_byte_of_a_nonce_can_be_changed():
    raw = parse_b64url(nonce.issue_nonce(KEY, NOW))
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(NonceRequired):
            nonce.verify_nonce(b64url(changed), key=KEY, now=NOW)


@pytest.mark.parametrize(
    "value", [None, "", "A" * 31, "A" * 32, "A" * 33, "=" * 32, "\u0430" * 32], ids=ascii
)
def test_junk_asks_for_a_nonce(value: str | None):
    with pytest.raises(NonceRequired) as caught:
        nonce.verify_nonce(value, key=KEY, now=NOW)
    assert caught.value.nonce == nonce.issue_nonce(KEY, NOW)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_is_a_mistake_of_the_operator(size: int):
    with pytest.raises(ConfigurationError):
        nonce.issue_nonce(bytes(size), NOW)
