"""Cosignatures: what a witness puts under a tree head once it has seen that the log only grew.

A witness keeps the newest head of each log that it knows, takes a larger one only with a consistency proof,
and signs it with the time. Whoever demands a quorum of them believes no log that shows different heads to
different people (I18).

Only Ed25519 cosignatures (``cosignature/v1``) are made and read; those of other kinds are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker import limits
from broker.errors import IntegrityFailure, InvalidRequest
from broker.ledger.merkle import HASH_SIZE
from broker.ledger.note import (
    NamedKey,
    Sign,
    encode_base64,
    parse_base64,
    parse_signature_line,
    split_note,
    split_vkey,
)

COSIGNATURE_V1: Final = b"\x04"
"""Signature type of an Ed25519 cosignature. Source: C2SP tlog-cosignature, "Format"."""
MAX_PROOF_LINES: Final = 63
"""Hashes that a request to a witness may bring. Source: C2SP tlog-witness, "add-checkpoint"."""
MAX_REQUEST: Final = limits.MAX_NOTE + (MAX_PROOF_LINES + 2) * 64
"""Bytes of a request to a witness."""
MAX_RESPONSE: Final = 16 * 1024
"""Bytes of a witness's answer: a few signature lines."""
MAX_TIME: Final = 2**63 - 1
_SIGNATURE_SIZE: Final = 8 + 64
_OLD_RE: Final = re.compile(r"old (0|[1-9][0-9]{0,15})")


@dataclass(frozen=True, kw_only=True)
class CosignerKey(NamedKey):
    """The key by which a witness is known."""

    kind: ClassVar[bytes] = COSIGNATURE_V1


def parse_cosigner(text: str) -> CosignerKey:
    """The key that a witness's ``vkey`` text names.

    Raises:
        ConfigurationError: Another form, another signature type, or a key id that does not fit.
    """
    name, public = split_vkey(text, COSIGNATURE_V1)
    return CosignerKey(name=name, public=public)


# -- signatures -------------------------------------------------------------------------------------------


def signed_message(head_text: str, time_s: int) -> bytes:
    """The bytes that a cosignature is over: two lines, then the head's whole text.

    Source: C2SP tlog-cosignature, "Ed25519 signed message".
    """
    return f"cosignature/v1\ntime {time_s}\n{head_text}".encode()


def cosign(head_text: str, key: CosignerKey, sign: Sign, time_s: int) -> str:
    """The signature line (without its newline) of a witness under a tree head's text.

    Args:
        head_text: Origin, size and root, three lines, as :func:`broker.ledger.note.head_text` writes them.
        key: The witness's key, under which the line is verified before it is returned.
        sign: Signs with the private key.
        time_s: Seconds since 1970, at least 1.

    Raises:
        IntegrityFailure: ``sign`` signs with another key, or the time is out of range.
    """
    if not 1 <= time_s <= MAX_TIME:
        raise IntegrityFailure("a cosignature has no time that could be signed")
    signature = time_s.to_bytes(8, "big") + sign(signed_message(head_text, time_s))
    _verify(head_text, key, signature)
    return f"— {key.name} {encode_base64(key.key_id + signature)}"


def cosignatures(note: str, keys: Iterable[CosignerKey]) -> dict[str, int]:
    """Which of the keys cosigned a note: their vkeys, each with its newest time (seconds since 1970).

    Signatures of other keys are ignored.

    Raises:
        IntegrityFailure: Not a signed note, or a line of one of the keys does not hold.
    """
    known = {(key.name, key.key_id): key for key in keys}
    text, signatures = split_note(note)
    found: dict[str, int] = {}
    for name, signature in signatures:
        key = known.get((name, signature[:4]))
        if key is not None:
            time_s = _verify(text, key, signature[4:])
            found[key.vkey] = max(time_s, found.get(key.vkey, 0))
    return found


def _verify(head_text: str, key: CosignerKey, signature: bytes) -> int:
    if len(signature) != _SIGNATURE_SIZE:
        raise IntegrityFailure("a cosignature by a known witness has another length")
    time_s = int.from_bytes(signature[:8], "big")
    if not 1 <= time_s <= MAX_TIME:
        raise IntegrityFailure("a cosignature by a known witness has no time")
    try:
        public = Ed25519PublicKey.from_public_bytes(key.public)
        public.verify(signature[8:], signed_message(head_text, time_s))
    except (InvalidSignature, ValueError) as exc:
        raise IntegrityFailure("a cosignature by a known witness does not hold") from exc
    return time_s


def merge(note: str, lines: Sequence[str]) -> str:
    """The note with these signature lines after its own; lines that it has already are not repeated.

    Raises:
        IntegrityFailure: Not a signed note, a line is no signature, or there would be more than 64.
    """
    split_note(note)
    for line in lines:
        parse_signature_line(line)
    head, _, own = note.rpartition("\n\n")
    every = dict.fromkeys([*own.split("\n")[:-1], *lines])
    merged = f"{head}\n\n" + "".join(f"{line}\n" for line in every)
    split_note(merged)
    return merged


# -- asking a witness -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AddCheckpoint:
    """A request to a witness.

    Attributes:
        old_size: Size of the head that the witness cosigned last, as the asker believes; 0 for none.
        proof: Consistency proof from there, hashes of 32 bytes, at most 63.
        note: The signed tree head.
    """

    old_size: int
    proof: tuple[bytes, ...]
    note: str


def build_request(old_size: int, proof: Sequence[bytes], note: str) -> bytes:
    """The body of a POST to ``add-checkpoint``. Source: C2SP tlog-witness, "add-checkpoint"."""
    lines = [f"old {old_size}", *map(encode_base64, proof), "", note]
    return "\n".join(lines).encode()


def parse_request(body: bytes) -> AddCheckpoint:
    """The request that a body is; the note in it is not verified yet.

    Raises:
        InvalidRequest: It is larger than :data:`MAX_REQUEST`, or not of the form.
    """
    if len(body) > MAX_REQUEST:
        raise InvalidRequest(f"a request to a witness has at most {MAX_REQUEST} bytes")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest("a request to a witness is not UTF-8") from exc
    before, blank, note = text.partition("\n\n")
    first, *lines = before.split("\n")
    old = _OLD_RE.fullmatch(first)
    if not blank or old is None or len(lines) > MAX_PROOF_LINES or int(old[1]) > limits.MAX_TREE_SIZE:
        raise InvalidRequest(
            "a request to a witness is not of the form",
            why="old SIZE, up to 63 hashes, an empty line, a note",
        )
    try:
        proof = tuple(map(parse_base64, lines))
        split_note(note)
    except IntegrityFailure as exc:
        raise InvalidRequest("a request to a witness is not of the form", why=exc.what) from exc
    if any(len(node) != HASH_SIZE for node in proof):
        raise InvalidRequest("a consistency proof is hashes of 32 bytes")
    return AddCheckpoint(old_size=int(old[1]), proof=proof, note=note)


def parse_response(body: bytes) -> tuple[str, ...]:
    """The signature lines of a witness's answer, without newlines; none of them is verified.

    Raises:
        IntegrityFailure: It is larger than 16 KiB, or is not one or more signature lines.
    """
    try:
        lines = body.decode("utf-8").split("\n") if len(body) <= MAX_RESPONSE else []
    except UnicodeDecodeError as exc:
        raise IntegrityFailure("a witness's answer is not UTF-8") from exc
    if len(lines) < 2 or lines.pop() != "" or len(lines) > limits.MAX_NOTE_SIGNATURES:
        raise IntegrityFailure("a witness's answer is not a few signature lines")
    for line in lines:
        parse_signature_line(line)
    return tuple(lines)
