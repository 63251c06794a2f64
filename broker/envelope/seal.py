"""Sealing to one recipient: HPKE in base mode with one suite.

MLKEM768-X25519 (KEM 0x647a, also known as X-Wing), HKDF-SHA256, AES-256-GCM. What is sealed opens only
for that recipient and under exactly the same ``info``, which names the ledger entry that released it;
the opener builds ``info`` from its own knowledge and the *verified* receipt. Anybody may seal to a
public key, so this gives no integrity: that comes from the manifest.

::

    public key    ML-KEM-768 encapsulation key (1,184) | X25519 (32)
    sealed        ML-KEM ciphertext (1,088) | ephemeral X25519 (32) | ciphertext | tag (16)

**Source**: RFC 9180 section 6.1 (single-shot base mode); draft-connolly-cfrg-xwing-kem section 5;
``docs/formats/lease.md``.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from broker.canonical import parse_digest, parse_time, sha256_digest
from broker.envelope.extents import DIGEST_SIZE
from broker.errors import IntegrityFailure, InternalError, InvalidRequest

KEM: Final = "MLKEM768-X25519"
"""The name of the recipient's kind of key in requests."""
PUBLIC_SIZE: Final = 1216
ENC_SIZE: Final = 1120
OVERHEAD: Final = ENC_SIZE + 16
"""Bytes that sealing adds."""

_MLKEM_PUBLIC: Final = 1184
_MAX_PART: Final = 0xFFFF
_LEASE: Final = b"broker/lease/v1"
_UPLOAD: Final = b"broker/upload/v1"
_SUITE: Final = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_PROBE: Final = x25519.X25519PrivateKey.from_private_bytes(bytes(32))


class Recipient:
    """A key pair that one answer is sealed to. It lives in memory only and shows its digest only.

    Attributes:
        public_bytes: The public key, 1,216 bytes.
        digest: ``sha256:<hex>`` of it, as ledger entries name it.
    """

    __slots__ = ("_private", "digest", "public_bytes")

    def __init__(self, mlkem_key: mlkem.MLKEM768PrivateKey, x25519_key: x25519.X25519PrivateKey) -> None:
        self._private = hpke.MLKEM768X25519PrivateKey(mlkem_key, x25519_key)
        self.public_bytes = (
            mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
        )
        self.digest = recipient_digest(self.public_bytes)

    @classmethod
    def generate(cls) -> Recipient:
        """A fresh pair; the library draws it from the operating system's generator."""
        return cls(mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate())

    def __repr__(self) -> str:
        return f"Recipient({self.digest!r})"

    def __reduce__(self) -> str:
        raise TypeError("a recipient's private key is not pickled")


def recipient_digest(public_bytes: bytes) -> str:
    """``sha256:<hex>`` of a recipient's public key."""
    return sha256_digest(public_bytes)


def parse_recipient(public_bytes: bytes) -> hpke.MLKEM768X25519PublicKey:
    """A recipient's public key that can be sealed to.

    What could not be sealed to is refused here, at the door: after the entry is recorded it would be
    too late.

    Raises:
        InvalidRequest: Not 1,216 bytes, an ML-KEM part out of range, or an X25519 point of small order.

    Source: FIPS 203 section 7.2 (modulus check), RFC 7748 section 6.1 (all-zero shared secret).
    """
    if len(public_bytes) != PUBLIC_SIZE:
        raise InvalidRequest(f"a recipient's key is not {PUBLIC_SIZE} bytes")
    try:
        lattice = mlkem.MLKEM768PublicKey.from_public_bytes(public_bytes[:_MLKEM_PUBLIC])
        curve = x25519.X25519PublicKey.from_public_bytes(public_bytes[_MLKEM_PUBLIC:])
        # Every clamped scalar takes a point of small order to zero, so any one scalar tells.
        _PROBE.exchange(curve)
    except ValueError as exc:
        raise InvalidRequest("a recipient's key is not a usable MLKEM768-X25519 key") from exc
    return hpke.MLKEM768X25519PublicKey(lattice, curve)


def lease_info(
    *, grant: str, number: int, leaf_hash: bytes, jkt: str, recipient_digest: str, expires_at: str
) -> bytes:
    """What a sealed lease is bound to.

    Args:
        grant: The grant's id.
        number: The lease's number in its grant (u32).
        leaf_hash: Leaf hash (32 bytes) of the entry that released it.
        jkt: Thumbprint of the requester's key.
        recipient_digest: ``sha256:<hex>`` of the recipient's public key.
        expires_at: The lease's expiry, as the entry writes it.

    Raises:
        MalformedRequest: The digest or the time has another form.
        InternalError: A part is empty or too long, or the leaf hash not 32 bytes.
    """
    parse_time(expires_at)
    return _info(
        _LEASE,
        grant.encode("utf-8"),
        number.to_bytes(4, "big"),
        _leaf(leaf_hash),
        jkt.encode("utf-8"),
        parse_digest(recipient_digest),
        expires_at.encode("ascii"),
    )


def upload_info(*, upload: str, leaf_hash: bytes, jkt: str, recipient_digest: str) -> bytes:
    """What a publisher's sealed version key is bound to.

    Args:
        upload: The upload's id.
        leaf_hash: Leaf hash (32 bytes) of the entry that released it.
        jkt: Thumbprint of the publisher's key.
        recipient_digest: ``sha256:<hex>`` of the recipient's public key.

    Raises:
        MalformedRequest: The digest has another form.
        InternalError: A part is empty or too long, or the leaf hash not 32 bytes.
    """
    return _info(
        _UPLOAD,
        upload.encode("utf-8"),
        _leaf(leaf_hash),
        jkt.encode("utf-8"),
        parse_digest(recipient_digest),
    )


def seal(plaintext: bytes, public_bytes: bytes, info: bytes) -> bytes:
    """``plaintext`` for one recipient: 1,136 bytes longer, different every time.

    Raises:
        InvalidRequest: The recipient's key is not usable.

    Source: RFC 9180 section 6.1.
    """
    return _SUITE.encrypt(plaintext, parse_recipient(public_bytes), info)


def open_sealed(ciphertext: bytes, recipient: Recipient, info: bytes) -> bytes:
    """What was sealed to this recipient under this ``info``.

    Raises:
        IntegrityFailure: It was changed or cut, or sealed to another recipient or under another info.

    Source: RFC 9180 section 6.1.
    """
    try:
        return _SUITE.decrypt(ciphertext, recipient._private, info)
    except (InvalidTag, ValueError) as exc:
        raise IntegrityFailure("a sealed answer does not open for this recipient and entry") from exc


def _leaf(leaf_hash: bytes) -> bytes:
    if len(leaf_hash) != DIGEST_SIZE:
        raise InternalError("a leaf hash has 32 bytes")
    return leaf_hash


def _info(*parts: bytes) -> bytes:
    if any(not 0 < len(part) <= _MAX_PART for part in parts):
        raise InternalError("a part of a seal's info is empty or too long")
    # The length before each part: no two lists of parts give the same bytes.
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)
