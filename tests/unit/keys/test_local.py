"""Keys in files: modes, uses, distinctness, and what a wrap is bound to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker import jose
from broker.canonical import b64url, parse_b64url
from broker.errors import ConfigurationError, IntegrityFailure
from broker.keys.local import (
    ALGORITHMS,
    WRAPPED_SIZE,
    KeyPaths,
    LocalCustody,
    create_key_file,
    create_missing_keys,
    key_id,
    load_key_ring,
    read_key_file,
)

NOW = 1_763_900_123_456


class Counting:
    """Entropy that never repeats and is the same in every run."""

    def __init__(self) -> None:
        self._drawn = 0

    def random_bytes(self, size: int) -> bytes:
        self._drawn += 1
        return self._drawn.to_bytes(4, "big") * (size // 4)

    def uuid(self) -> str:
        return "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def paths(tmp_path: Path) -> KeyPaths:
    found = KeyPaths.in_folder(tmp_path / "keys")
    create_missing_keys(found, dev=True, entropy=Counting(), now=NOW)
    return found


def _rewrite(path: Path, **changes: Any) -> None:
    body = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in body.items() if value is not None}))


@pytest.mark.parametrize("use", list(ALGORITHMS))
def test_a_key_file_is_private_and_reads_back(tmp_path: Path, use: str) -> None:
    path = tmp_path / "key.json"
    made = create_key_file(path, use, dev=False, entropy=Counting(), now=NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path, use) == made
    assert json.loads(path.read_text())["created"] == "2025-11-23T12:15:23.456Z"
    assert os.listdir(tmp_path) == ["key.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o777])
def test_a_file_that_others_can_touch_is_refused(paths: KeyPaths, mode: int) -> None:
    paths.log.chmod(mode)
    with pytest.raises(ConfigurationError, match="by others"):
        read_key_file(paths.log, "log")


@pytest.mark.parametrize("use", list(ALGORITHMS))
def test_a_key_of_another_use_is_refused(paths: KeyPaths, use: str) -> None:
    for other, path in paths.uses():
        if other != use:
            with pytest.raises(ConfigurationError, match="another use"):
                read_key_file(path, use)


def test_an_existing_file_is_never_replaced(paths: KeyPaths) -> None:
    before = paths.log.read_bytes()
    with pytest.raises(ConfigurationError):
        create_key_file(paths.log, "log", dev=True, entropy=Counting(), now=NOW)
    assert create_missing_keys(paths, dev=True, entropy=Counting(), now=NOW) == []
    assert paths.log.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "broker/key/v2"},
        {"schema": None},
        {"use": "other"},
        {"use": ["kek"]},
        {"alg": "none"},
        {"key": None},
        {"key": "AAAA"},
        {"key": b64url(bytes(31))},
        {"key": b64url(bytes(33))},
        {"key": b64url(bytes(32)) + "="},
        {"key": 7},
        {"dev": "yes"},
        {"dev": False},
        {"created": "yesterday"},
        {"kinds": ["at+jwt"]},
        {"unknown": 1},
    ],
)
def test_a_symmetric_key_file_has_one_form(paths: KeyPaths, changes: dict[str, Any]) -> None:
    _rewrite(paths.kek[0], **changes)
    with pytest.raises(ConfigurationError):
        read_key_file(paths.kek[0], "kek")


@pytest.mark.parametrize("member", ["d", "x", "crv", "kty"])
def test_a_signing_key_file_has_one_form(paths: KeyPaths, member: str) -> None:
    jwk = json.loads(paths.log.read_text())["jwk"]
    for changed in ({**jwk, member: b64url(bytes(32))}, {k: v for k, v in jwk.items() if k != member}):
        _rewrite(paths.log, jwk=changed)
        with pytest.raises(ConfigurationError):
            read_key_file(paths.log, "log")


@pytest.mark.parametrize("kinds", [None, [], "at+jwt", [["at+jwt"]]])
def test_I14_a_token_key_names_what_it_signs(paths: KeyPaths, kinds: Any) -> None:
    _rewrite(paths.token[0], kinds=kinds)
    with pytest.raises(ConfigurationError):
        read_key_file(paths.token[0], "token")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"use":"log"}', b" " * 20_000])
def test_other_content_is_refused_without_showing_it(paths: KeyPaths, content: bytes) -> None:
    paths.log.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is not a key file"):
        read_key_file(paths.log, "log")


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        read_key_file(tmp_path / "none.json", "log")
    with pytest.raises(ConfigurationError):
        create_key_file(tmp_path / "none" / "log.json", "log", dev=True, entropy=Counting(), now=NOW)
    with pytest.raises(ConfigurationError):
        create_key_file(tmp_path / "log.json", "other", dev=True, entropy=Counting(), now=NOW)


def test_the_ring_has_every_key_and_shows_none(paths: KeyPaths) -> None:
    ring = load_key_ring(paths, entropy=Counting())
    shown = repr(ring)
    for use, path in paths.uses():
        secret = read_key_file(path, use).secret
        assert b64url(secret) not in shown
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    assert ring.dev
    assert len(ring.row_mac) == len(ring.nonce) == 32
    Ed25519PublicKey.from_public_bytes(ring.log.public).verify(ring.log.sign(b"text"), b"text")


def test_I14_the_token_key_signs_access_tokens_and_nothing_else(paths: KeyPaths) -> None:
    key = load_key_ring(paths, entropy=Counting()).tokens[0]
    token = jose.sign_jwt({"a": 1}, key=key, typ="at+jwt")
    assert jose.verify_jwt(token, jwk=key.jwk, typ="at+jwt").claims == {"a": 1}
    with pytest.raises(IntegrityFailure):
        jose.sign_jwt({"a": 1}, key=key, typ="dpop+jwt")


def test_equal_keys_for_different_uses_are_refused(paths: KeyPaths) -> None:
    _rewrite(paths.nonce, key=json.loads(paths.row_mac.read_text())["key"])
    with pytest.raises(ConfigurationError, match="same key"):
        load_key_ring(paths, entropy=Counting())


def test_equal_keys_are_found_across_algorithms(paths: KeyPaths) -> None:
    _rewrite(paths.kek[0], key=json.loads(paths.log.read_text())["jwk"]["d"])
    with pytest.raises(ConfigurationError, match="same key"):
        load_key_ring(paths, entropy=Counting())


def test_older_keys_still_unwrap_and_verify(paths: KeyPaths, tmp_path: Path) -> None:
    entropy = Counting()
    before = load_key_ring(paths, entropy=entropy)
    wrapped = before.custody.wrap(bytes(range(32)), b"aad")
    for index, use in enumerate(("kek", "token")):
        for _ in range(20 + index):
            entropy.random_bytes(32)
        create_key_file(tmp_path / f"new-{use}.json", use, dev=False, entropy=entropy, now=NOW)
    after = load_key_ring(
        KeyPaths(
            kek=(tmp_path / "new-kek.json", *paths.kek),
            log=paths.log,
            token=(tmp_path / "new-token.json", *paths.token),
            row_mac=paths.row_mac,
            nonce=paths.nonce,
        ),
        entropy=entropy,
    )
    assert after.custody.unwrap(wrapped, b"aad") == bytes(range(32))
    assert after.tokens[1].jkt == before.tokens[0].jkt != after.tokens[0].jkt
    renewed = after.custody.wrap(bytes(range(32)), b"aad")
    with pytest.raises(IntegrityFailure):
        before.custody.unwrap(renewed, b"aad")


def test_a_ring_without_a_key_is_refused(paths: KeyPaths) -> None:
    without = KeyPaths(kek=(), log=paths.log, token=paths.token, row_mac=paths.row_mac, nonce=paths.nonce)
    with pytest.raises(ConfigurationError):
        load_key_ring(without, entropy=Counting())
    with pytest.raises(ConfigurationError):
        LocalCustody([], entropy=Counting())
    with pytest.raises(ConfigurationError):
        LocalCustody([bytes(31)], entropy=Counting())


def test_a_wrap_has_its_documented_layout() -> None:
    kek = bytes(range(32))
    wrapped = LocalCustody([kek], entropy=Counting()).wrap(b"k" * 32, b"aad")
    assert len(wrapped) == WRAPPED_SIZE == 69
    assert wrapped[:9] == b"\x01" + key_id(kek)
    assert AESGCM(kek).decrypt(wrapped[9:21], wrapped[21:], wrapped[:9] + b"aad") == b"k" * 32


def test_a_wrap_vector() -> None:
    """Fixed, so that a change of the format cannot go unseen; the format page shows the same."""
    page = Path(__file__).parents[3] / "docs" / "formats" / "keys.md"
    assert VECTOR in page.read_text()
    custody = LocalCustody([bytes(range(32))], entropy=Counting())
    wrapped = custody.wrap(bytes(range(32, 64)), b"associated data")
    assert b64url(wrapped) == VECTOR
    assert custody.unwrap(parse_b64url(VECTOR), b"associated data") == bytes(range(32, 64))


VECTOR = "AXltBskJO0LsAAAAAQAAAAEAAAAB7zXgdn9PifWmODIf1UM3Oj2UIok5SNK00rxs6ibC4uM2sIozpFoxp5AmELXMR9VD"


def test_any_change_of_a_wrap_or_its_aad_is_refused() -> None:
    custody = LocalCustody([bytes(32)], entropy=Counting())
    wrapped = custody.wrap(b"k" * 32, b"aad")
    for index in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[index] ^= 1
        with pytest.raises(IntegrityFailure):
            custody.unwrap(bytes(changed), b"aad")
    for bad in (b"", wrapped[:-1], wrapped + b"\0", wrapped[1:]):
        with pytest.raises(IntegrityFailure):
            custody.unwrap(bad, b"aad")
    for aad in (b"", b"aae", b"aad\0"):
        with pytest.raises(IntegrityFailure):
            custody.unwrap(wrapped, aad)
    assert custody.unwrap(wrapped, b"aad") == b"k" * 32


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_only_keys_of_32_bytes_are_wrapped(size: int) -> None:
    with pytest.raises(IntegrityFailure):
        LocalCustody([bytes(32)], entropy=Counting()).wrap(bytes(size), b"aad")


def test_two_wraps_of_one_key_differ() -> None:
    custody = LocalCustody([bytes(32)], entropy=Counting())
    assert custody.wrap(bytes(32), b"") != custody.wrap(bytes(32), b"")
