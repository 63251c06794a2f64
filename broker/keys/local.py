"""Keys in files: the embedded stack's custody, and the home of the keys that any custody leaves here.

One file is one key for one use, JSON of mode 0600 (``docs/formats/keys.md``). A file that others can
read, that is of another use, or that holds a key which another use has too, is refused. The
key-encryption key belongs elsewhere in production (:mod:`broker.keys.vault`); there a file of it is
refused at the start.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker import jose
from broker.canonical import (
    Json,
    b64url,
    canonical_bytes,
    drop_absent,
    format_time,
    parse_b64url,
    parse_json_object,
    parse_time,
)
from broker.errors import BrokerError, ConfigurationError, IntegrityFailure
from broker.keys.private import read_private
from broker.ports import Entropy, KeyCustody

SCHEMA: Final = "broker/key/v1"
KEK: Final = "kek"
LOG: Final = "log"
TOKEN: Final = "token"  # noqa: S105 - the name of a use
ROW_MAC: Final = "row-mac"
NONCE: Final = "nonce"
ALGORITHMS: Final[Mapping[str, str]] = {
    KEK: "A256GCM",
    LOG: "EdDSA",
    TOKEN: "EdDSA",
    ROW_MAC: "HS256",
    NONCE: "HS256",
}
"""Use -> the one algorithm of its keys (names of RFC 7518 and RFC 8037)."""
TOKEN_KINDS: Final = ("at+jwt",)
"""What a new token key may sign (I14). Source: RFC 9068 section 2.1."""
KEY_SIZE: Final = 32
_SIGNING: Final = (LOG, TOKEN)
_WRAP_VERSION: Final = b"\x01"
_ID_SIZE: Final = 8
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
WRAPPED_SIZE: Final = 1 + _ID_SIZE + _NONCE_SIZE + KEY_SIZE + _TAG_SIZE
"""Bytes of a wrapped key: version, id of the key-encryption key, nonce, ciphertext, tag."""


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """One key as its file has it.

    Attributes:
        use: One of :data:`ALGORITHMS`.
        secret: 32 bytes: the symmetric key, or the Ed25519 seed.
        created: Milliseconds since 1970.
        dev: Whether the embedded stack made it; production refuses such keys.
        kinds: For a token key: the ``typ`` values that it may sign (I14); else empty.
    """

    use: str
    secret: bytes = field(repr=False)
    created: int
    dev: bool
    kinds: tuple[str, ...] = ()

    def signing_key(self) -> jose.PrivateKey:
        """The signing key of a file of use ``log`` or ``token``."""
        key = Ed25519PrivateKey.from_private_bytes(self.secret)
        return jose.PrivateKey(key, kinds=self.kinds)


def create_key_file(path: Path, use: str, *, dev: bool, entropy: Entropy, now: int) -> KeyFile:
    """Draw a key and write its file, durably; an existing file is never replaced.

    Args:
        path: The file; its folder exists.
        use: One of :data:`ALGORITHMS`.
        dev: Mark it as a key of the embedded stack.
        entropy: Where the key comes from.
        now: Milliseconds since 1970.

    Raises:
        ConfigurationError: Unknown use, the file exists, or it cannot be written.
    """
    if use not in ALGORITHMS:
        raise ConfigurationError("a key file has an unknown use")
    kinds = TOKEN_KINDS if use == TOKEN else ()
    key = KeyFile(use=use, secret=entropy.random_bytes(KEY_SIZE), created=now, dev=dev, kinds=kinds)
    try:
        _write_once(path, canonical_bytes(_to_json(key)) + b"\n")
    except FileExistsError as exc:
        raise ConfigurationError(f"the key file {path} exists", next="move it away first") from exc
    except OSError as exc:
        raise ConfigurationError(f"the key file {path} cannot be written", why=exc.strerror) from exc
    return key


def read_key_file(path: Path, use: str) -> KeyFile:
    """The key of a file that only its owner can read.

    Raises:
        ConfigurationError: Missing, readable by others, not a key file, or of another use.
    """
    data = read_private(path, "key file")
    try:
        key = _parse(parse_json_object(data))
    except (BrokerError, KeyError, TypeError, ValueError) as exc:
        # The reason would quote the file.
        raise ConfigurationError(f"{path} is not a key file of schema {SCHEMA}") from exc
    if key.use != use:
        raise ConfigurationError(f"the key file {path} is for another use", why=f"{key.use} is not {use}")
    return key


def _to_json(key: KeyFile) -> Json:
    body: Json = {"key": b64url(key.secret)}
    if key.use in _SIGNING:
        private = jose.PrivateKey(Ed25519PrivateKey.from_private_bytes(key.secret))
        body = {"jwk": private.to_jwk(), "kinds": list(key.kinds) or None}
    return drop_absent(
        {
            "schema": SCHEMA,
            "use": key.use,
            "alg": ALGORITHMS[key.use],
            "created": format_time(key.created),
            "dev": True if key.dev else None,
            **body,
        }
    )


def _parse(body: Json) -> KeyFile:
    use = body["use"]
    if use in _SIGNING:
        jwk = body["jwk"]
        jose.PrivateKey.from_jwk(jwk)
        secret = parse_b64url(jwk["d"], size=KEY_SIZE)
    else:
        secret = parse_b64url(body["key"], size=KEY_SIZE)
    key = KeyFile(
        use=use,
        secret=secret,
        created=parse_time(body["created"]),
        dev=body.get("dev", False),
        kinds=tuple(body.get("kinds", ())),
    )
    # One form for one key: a member that is unknown, misspelt or of another type is a difference.
    named = all(isinstance(kind, str) for kind in key.kinds)
    if _to_json(key) != body or (use == TOKEN) != bool(key.kinds) or not named:
        raise ValueError(use)
    return key


def _write_once(path: Path, data: bytes) -> None:
    # A link is create-only where a rename would replace. Crash before it: a stray dot file, no key.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -- custody --------------------------------------------------------------------------------------------


class LocalCustody:
    """Implements ``ports.KeyCustody`` with key-encryption keys in this process's memory.

    A wrapped key is 0x01, the id of the key-encryption key (8 bytes), a random nonce (12 bytes) and
    the AES-256-GCM ciphertext and tag of the 32 bytes; the associated data is the first nine bytes
    and then the caller's.

    Args:
        keys: The key that wraps, and then older ones that still unwrap; 32 bytes each.
        entropy: Where nonces come from.

    Raises:
        ConfigurationError: There is no key, or one is not 32 bytes.
    """

    def __init__(self, keys: Sequence[bytes], *, entropy: Entropy) -> None:
        if not keys or any(len(key) != KEY_SIZE for key in keys):
            raise ConfigurationError(f"a key-encryption key has {KEY_SIZE} bytes")
        self._entropy = entropy
        self._current = key_id(keys[0])
        self._held = {key_id(key): AESGCM(key) for key in keys}

    def __repr__(self) -> str:
        return f"LocalCustody(current={self._current.hex()!r}, keys={len(self._held)})"

    def check(self) -> None:
        """Always: a key that was read is fit for use."""

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``aad``; returns :data:`WRAPPED_SIZE` bytes.

        Raises:
            IntegrityFailure: The key is not 32 bytes.
        """
        if len(key) != KEY_SIZE:
            raise IntegrityFailure(f"a key to be wrapped has {KEY_SIZE} bytes")
        head = _WRAP_VERSION + self._current
        nonce = self._entropy.random_bytes(_NONCE_SIZE)
        return head + nonce + self._held[self._current].encrypt(nonce, key, head + aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """The 32 bytes again.

        Raises:
            IntegrityFailure: The wrap was changed, belongs elsewhere (``aad``), or to no key held here.
        """
        head, nonce = wrapped[: 1 + _ID_SIZE], wrapped[1 + _ID_SIZE : 1 + _ID_SIZE + _NONCE_SIZE]
        held = self._held.get(head[1:])
        if len(wrapped) != WRAPPED_SIZE or head[:1] != _WRAP_VERSION or held is None:
            raise IntegrityFailure("a wrapped key is not one of this broker's")
        try:
            return held.decrypt(nonce, wrapped[1 + _ID_SIZE + _NONCE_SIZE :], head + aad)
        except InvalidTag as exc:
            raise IntegrityFailure(
                "a wrapped key does not open", why="it was changed, or moved or relabelled"
            ) from exc


def key_id(key: bytes) -> bytes:
    """The public id of a key-encryption key: the first 8 bytes of HMAC-SHA256(key, "broker/kek-id/v1")."""
    return hmac.digest(key, b"broker/kek-id/v1", hashlib.sha256)[:_ID_SIZE]


class LogKey:
    """The log's Ed25519 key. It signs the text of tree heads and nothing else."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: Final = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"LogKey(public={b64url(self.public)!r})"

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) over ``message``. Source: RFC 8032 section 5.1.6."""
        return self._key.sign(message)


# -- the ring -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KeyPaths:
    """Where the key files are. The first of several is used; the others only still unwrap or verify."""

    kek: tuple[Path, ...]
    log: Path
    token: tuple[Path, ...]
    row_mac: Path
    nonce: Path
    log_also: tuple[Path, ...] = ()

    @classmethod
    def in_folder(cls, folder: Path) -> KeyPaths:
        """One file for each use, named after it: ``kek.json``, ``log.json``, ..."""
        return cls(
            kek=(folder / f"{KEK}.json",),
            log=folder / f"{LOG}.json",
            token=(folder / f"{TOKEN}.json",),
            row_mac=folder / f"{ROW_MAC}.json",
            nonce=folder / f"{NONCE}.json",
        )

    def uses(self) -> list[tuple[str, Path]]:
        """(use, file) of every key."""
        return [
            *((KEK, path) for path in self.kek),
            (LOG, self.log),
            *((LOG, path) for path in self.log_also),
            *((TOKEN, path) for path in self.token),
            (ROW_MAC, self.row_mac),
            (NONCE, self.nonce),
        ]


@dataclass(frozen=True, kw_only=True)
class KeyRing:
    """Every key of a broker, each for its own use only.

    Attributes:
        custody: Wraps and unwraps version keys.
        log: Signs tree heads.
        log_also: Sign them too: the key that comes next, or the one before.
        tokens: Sign and verify access tokens; the first one signs. A key's ``kid`` is its ``jkt``.
        row_mac: 32 bytes: the MACs over the tail and over rows that decide access (I19).
        nonce: 32 bytes: the MACs of DPoP nonces; the replicas share it.
        dev: Whether any of them was made by the embedded stack.
    """

    custody: KeyCustody
    log: LogKey
    log_also: tuple[LogKey, ...] = ()
    tokens: tuple[jose.PrivateKey, ...]
    row_mac: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    dev: bool


def load_key_ring(paths: KeyPaths, *, entropy: Entropy, custody: KeyCustody | None = None) -> KeyRing:
    """Read every key file.

    Args:
        paths: Where they are.
        entropy: For the nonces of later wraps.
        custody: Whoever else holds the key-encryption key; then there is no file of it.

    Raises:
        ConfigurationError: A file is missing, readable by others, malformed or of another use; or two
            uses have the same key; or there are both, or neither, a custody and a key-encryption key.
    """
    read = [(use, read_key_file(path, use)) for use, path in paths.uses()]
    check_distinct([key for _, key in read])
    by_use: dict[str, list[KeyFile]] = {}
    for use, key in read:
        by_use.setdefault(use, []).append(key)
    if (KEK in by_use) == (custody is not None) or TOKEN not in by_use:
        raise ConfigurationError("there is no one custody of the key-encryption key, or no key for tokens")
    return KeyRing(
        custody=custody or LocalCustody([key.secret for key in by_use[KEK]], entropy=entropy),
        log=LogKey(by_use[LOG][0].secret),
        log_also=tuple(LogKey(key.secret) for key in by_use[LOG][1:]),
        tokens=tuple(key.signing_key() for key in by_use[TOKEN]),
        row_mac=by_use[ROW_MAC][0].secret,
        nonce=by_use[NONCE][0].secret,
        dev=any(key.dev for _, key in read),
    )


def check_distinct(keys: Sequence[KeyFile]) -> None:
    """No key is there twice, under whatever use.

    Raises:
        ConfigurationError: One is; the message names the uses.
    """
    seen: dict[bytes, str] = {}
    for key in keys:
        if key.secret in seen:
            raise ConfigurationError(
                "two key files hold the same key", why=f"uses {seen[key.secret]} and {key.use}"
            )
        seen[key.secret] = key.use


def create_missing_keys(paths: KeyPaths, *, dev: bool, entropy: Entropy, now: int) -> list[Path]:
    """Make the key files that are not there yet; returns those that were made.

    Running it again is fine: a file that is there is kept.

    Raises:
        ConfigurationError: One cannot be written.
    """
    made = []
    for use, path in paths.uses():
        if path.exists():
            continue
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_key_file(path, use, dev=dev, entropy=entropy, now=now)
        made.append(path)
    return made
