"""Enrolment: how a new machine's key comes to belong to a principal, once, without sending a secret.

The administrator's code holds an id, a secret and the fingerprint of the log's key. The client
refuses a server whose log key has another fingerprint; then it proves that it knows the secret by a
MAC over its own key's thumbprint, the server's URL and that log key. The server keeps only the
secret's hash, which is the MAC's key: a code is worth one binding of one key at one server.

Layout and vectors: ``docs/formats/enrolment-code.md``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from broker.errors import EnrolmentRefused, IntegrityFailure, InvalidRequest

PREFIX: Final = "bke1."
ID_SIZE: Final = 8
SECRET_SIZE: Final = 16
FINGERPRINT_SIZE: Final = 16

_CONTEXT: Final = b"broker/enrol/v1"
_CODE: Final = re.compile(r"bke1\.([a-z2-7]{64})")
"""40 bytes are exactly 64 characters of base32: no padding, no stray bits, one spelling."""


@dataclass(frozen=True, kw_only=True)
class EnrolmentCode:
    """A parsed code.

    Attributes:
        id: 8 bytes; names the code at the server.
        secret: 16 bytes; never sent and never stored.
        fingerprint: First 16 bytes of the SHA-256 of the log's vkey.
    """

    id: bytes
    secret: bytes = field(repr=False)
    fingerprint: bytes


def build_code(*, id: bytes, secret: bytes, vkey: str) -> str:
    """The code to hand to a person: ``bke1.`` and 64 characters of lower-case base32.

    Args:
        id: 8 random bytes.
        secret: 16 random bytes.
        vkey: The log's verifier key, as text.

    Raises:
        InvalidRequest: A part has another size.
    """
    if len(id) != ID_SIZE or len(secret) != SECRET_SIZE:
        raise InvalidRequest(f"an enrolment code has an id of {ID_SIZE} and a secret of {SECRET_SIZE} bytes")
    raw = id + secret + vkey_fingerprint(vkey)
    return PREFIX + base64.b32encode(raw).decode("ascii").lower()


def parse_code(text: str) -> EnrolmentCode:
    """The parts of a code.

    Raises:
        InvalidRequest: The text is not an enrolment code; it is not repeated in the message (I11).
    """
    found = _CODE.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise InvalidRequest("this is not an enrolment code", next="ask an administrator for a new one")
    raw = base64.b32decode(found[1].upper())
    return EnrolmentCode(
        id=raw[:ID_SIZE],
        secret=raw[ID_SIZE : ID_SIZE + SECRET_SIZE],
        fingerprint=raw[ID_SIZE + SECRET_SIZE :],
    )


def vkey_fingerprint(vkey: str) -> bytes:
    """The first 16 bytes of SHA-256 over the vkey's text."""
    return hashlib.sha256(vkey.encode("utf-8")).digest()[:FINGERPRINT_SIZE]


def verify_vkey(code: EnrolmentCode, vkey: str) -> None:
    """The server that presents this log key is the one that the code was made for.

    Raises:
        IntegrityFailure: It is another; nothing may be sent to it.
    """
    if not hmac.compare_digest(code.fingerprint, vkey_fingerprint(vkey)):
        raise IntegrityFailure(
            "the server's log key is not the one in the enrolment code",
            next="check the server's URL, and ask an administrator for a new code",
        )


def secret_hash(secret: bytes) -> bytes:
    """What the server keeps of a secret, and the key of the MAC: its SHA-256, 32 bytes."""
    return hashlib.sha256(secret).digest()


def enrolment_mac(secret_hash: bytes, *, jkt: str, url: str, vkey: str) -> bytes:
    """HMAC-SHA256 that binds a new key to a code, 32 bytes.

    The message is, each with a length of 4 bytes (big-endian) before it: ``broker/enrol/v1``, ``jkt``,
    ``url``, ``vkey``, in UTF-8.

    Args:
        secret_hash: As :func:`secret_hash` gives it.
        jkt: Thumbprint of the key that is enrolled; the request's proof is made with it.
        url: The server's public URL, as configured there.
        vkey: The log's verifier key.
    """
    parts = (_CONTEXT, jkt.encode("utf-8"), url.encode("utf-8"), vkey.encode("utf-8"))
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(secret_hash, message, hashlib.sha256)


def verify_enrolment_mac(mac: bytes, secret_hash: bytes, *, jkt: str, url: str, vkey: str) -> None:
    """The sender knew the secret, and meant this key, this server and this log. Constant time.

    Raises:
        EnrolmentRefused: The MAC does not hold.
    """
    if not hmac.compare_digest(mac, enrolment_mac(secret_hash, jkt=jkt, url=url, vkey=vkey)):
        raise EnrolmentRefused("the enrolment code is not valid", next="ask an administrator for a new one")
