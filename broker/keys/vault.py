"""The key-encryption key in HashiCorp Vault or OpenBao: their transit engine wraps and unwraps.

The key never leaves the server, and every use of it is in the server's own audit log. What a wrap is
bound to is the associated data of its AES-256-GCM, so a wrap that was moved or relabelled does not
open (I19). A server that ignores associated data would bind nothing, without a word: the first use in
every process proves that it does not.

**Source**: ``docs/formats/keys.md``, section "Wrapped key: version 2"; the HTTP API of the transit
engine (``openbao.org/api-docs/secret/transit``): ``keys``, ``encrypt``, ``decrypt``.
"""

from __future__ import annotations

import base64
import re
import threading
from typing import Final

from broker.canonical import Json
from broker.errors import ConfigurationError, IntegrityFailure
from broker.keys.vault_server import Answer, Refused, VaultServer

KEY_SIZE: Final = 32
KEY_TYPE: Final = "aes256-gcm96"
"""The one type of transit key that wraps: AES-256-GCM with nonces of 96 bits."""
_WRAP_VERSION: Final = b"\x02"
_NUMBER_SIZE: Final = 4
_SEALED_SIZE: Final = 12 + KEY_SIZE + 16
WRAPPED_SIZE: Final = 1 + _NUMBER_SIZE + _SEALED_SIZE
"""Bytes of a wrapped key: version, number of the transit key's version, nonce, ciphertext, tag."""
_CIPHERTEXT: Final = re.compile(r"vault:v([1-9][0-9]{0,9}):([A-Za-z0-9+/]{80})")
_MUST_BE_OFF: Final = ("derived", "exportable", "allow_plaintext_backup")
_PROBE: Final = bytes(KEY_SIZE)


class VaultCustody:
    """Implements ``ports.KeyCustody`` with a transit key; safe to share between threads.

    The transit key is made and rotated by whoever runs the server, never by the broker. After a
    rotation there, new wraps use the new version and older wraps still open.

    Args:
        server: The server, with the broker's login.
        key: Name of the transit key, of type :data:`KEY_TYPE`.
        mount: Where the transit engine is mounted.
    """

    def __init__(self, server: VaultServer, *, key: str, mount: str = "transit") -> None:
        self._server = server
        self._key = key
        self._mount = mount
        self._lock = threading.Lock()
        self._proven = False

    def __repr__(self) -> str:
        return f"VaultCustody({self._server.url!r}, mount={self._mount!r}, key={self._key!r})"

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def check(self) -> None:
        """The server answers and its key is fit for use; what it does with it is proven once a process.

        Raises:
            ConfigurationError: There is no such key, it is of another type, it can be taken out of the
                server, the login does not allow what is needed, or wraps are not bound.
            Unavailable: The server does not answer.
        """
        try:
            self._check_key()
            self._prove()
        except Refused as exc:
            allowed = f"read {self._path('keys')}, update {self._path('encrypt')} and {self._path('decrypt')}"
            raise ConfigurationError(exc.what, why=exc.why, next=f"let its login {allowed}") from exc

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``aad``; returns :data:`WRAPPED_SIZE` bytes.

        Raises:
            IntegrityFailure: The key is not 32 bytes.
            ConfigurationError: See :meth:`check`.
            Unavailable: The server does not answer, or refuses the broker.
        """
        if len(key) != KEY_SIZE:
            raise IntegrityFailure(f"a key to be wrapped has {KEY_SIZE} bytes")
        if not self._proven:
            # Encrypting under a name that is not there would make a key, where a policy allows it.
            self._check_key()
            self._prove()
        return self._encrypt(key, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """The 32 bytes again.

        Raises:
            IntegrityFailure: The wrap was changed, belongs elsewhere (``aad``), or to no key there.
            ConfigurationError: The transit key is gone, or older versions of it are switched off.
            Unavailable: The server does not answer, or refuses the broker.
        """
        number = int.from_bytes(wrapped[1 : 1 + _NUMBER_SIZE], "big")
        # The server takes version 0 for version 1: one wrap would have two forms.
        if len(wrapped) != WRAPPED_SIZE or wrapped[:1] != _WRAP_VERSION or number == 0:
            raise IntegrityFailure("a wrapped key is not one of this broker's")
        text = f"vault:v{number}:{_b64(wrapped[1 + _NUMBER_SIZE :])}"
        answer = self._call("decrypt", {"ciphertext": text, "associated_data": _b64(_WRAP_VERSION + aad)})
        if answer.status == 400:
            self._refuse_to_open(number)
        self._check_found(answer)
        return _parse_key(answer.data.get("plaintext"))

    # -- the transit engine -----------------------------------------------------------------------------

    def _path(self, operation: str) -> str:
        return f"{self._mount}/{operation}/{self._key}"

    def _call(self, operation: str, body: dict[str, str]) -> Answer:
        return self._server.call("POST", self._path(operation), body)

    def _encrypt(self, key: bytes, aad: bytes) -> bytes:
        answer = self._call("encrypt", {"plaintext": _b64(key), "associated_data": _b64(_WRAP_VERSION + aad)})
        self._check_found(answer)
        return _parse_wrap(answer.data.get("ciphertext"))

    def _describe(self) -> Json:
        answer = self._server.call("GET", self._path("keys"))
        self._check_found(answer)
        return answer.data

    def _check_found(self, answer: Answer) -> None:
        if answer.status != 200:
            raise ConfigurationError(
                f"Vault has no usable key {self._path('keys')}",
                why=f"it answered {answer.status}",
                next=f"make a transit key of type {KEY_TYPE}, or correct keys.vault",
            )

    def _check_key(self) -> None:
        found = self._describe()
        if found.get("type") != KEY_TYPE or found.get("supports_encryption") is not True:
            raise ConfigurationError(
                f"the transit key {self._path('keys')} is of another type",
                next=f"make one of type {KEY_TYPE}",
            )
        wrong = [name for name in _MUST_BE_OFF if found.get(name) is not False]
        if wrong:
            raise ConfigurationError(
                f"the transit key {self._path('keys')} is not fit to hold other keys",
                why=f"{' and '.join(wrong)} must be off",
                next="make another one; what was once allowed for a key cannot be taken back",
            )

    def _prove(self) -> None:
        with self._lock:
            if self._proven:
                return
            wrapped = self._encrypt(_PROBE, b"probe")
            if self.unwrap(wrapped, b"probe") != _PROBE:
                raise ConfigurationError("Vault does not give back the key that it wrapped")
            try:
                self.unwrap(wrapped, b"another")
            except IntegrityFailure:
                self._proven = True
                return
        raise ConfigurationError(
            "Vault does not bind a wrapped key to its associated data",
            next="use OpenBao, or Vault 1.13 or newer",
        )

    def _refuse_to_open(self, number: int) -> None:
        # Asking is surer than reading the server's words, which differ between its versions.
        oldest = self._describe().get("min_decryption_version")
        if isinstance(oldest, int) and number < oldest:
            raise ConfigurationError(
                f"version {number} of the transit key {self._path('keys')} is switched off",
                next=f"set its min_decryption_version to {number}, or to a lower one",
            )
        raise IntegrityFailure("a wrapped key does not open", why="it was changed, or moved or relabelled")


def _b64(data: bytes) -> str:
    """Base64 with padding, as this API has it. Source: RFC 4648 section 4."""
    return base64.b64encode(data).decode()


def _parse_wrap(text: object) -> bytes:
    found = _CIPHERTEXT.fullmatch(text) if isinstance(text, str) else None
    number = int(found[1]) if found else 0
    if found is None or number >= 1 << 8 * _NUMBER_SIZE:
        raise ConfigurationError(f"Vault does not wrap as a key of type {KEY_TYPE} does")
    # 80 letters are 60 bytes: no padding, so no spare bits that could be changed.
    return _WRAP_VERSION + number.to_bytes(_NUMBER_SIZE, "big") + base64.b64decode(found[2])


def _parse_key(text: object) -> bytes:
    try:
        key = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError as exc:
        raise IntegrityFailure("a wrapped key opens to something else than a key") from exc
    if len(key) != KEY_SIZE:
        raise IntegrityFailure("a wrapped key opens to something else than a key")
    return key
