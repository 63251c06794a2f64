"""Signed notes and tree heads: text that a named Ed25519 key vouches for.

A tree head is the text ``origin``, ``size``, ``root`` in three lines (C2SP calls it a checkpoint) in
a signed note. It holds no time, and Ed25519 is deterministic, so every replica that signs the same
tree makes the same bytes. Verification here is strict: whatever is not exactly of the form is an
IntegrityFailure, as is a bad signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker import limits
from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger.merkle import HASH_SIZE

ED25519_NOTE: Final = b"\x01"
"""Signature type of a plain Ed25519 note signature. Source: C2SP signed-note, "Signature types"."""
_SIGNATURE_SIZE: Final = 64
_NAME_RE: Final = re.compile(r"[^\s+\x00-\x20]+")
_SIGNATURE_LINE_RE: Final = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_VKEY_RE: Final = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")
_SIZE_RE: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_CONTROL_RE: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")

Sign = Callable[[bytes], bytes]
"""Makes the Ed25519 signature (64 bytes) over the given bytes; the key may live elsewhere."""


# -- verifier keys ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NamedKey:
    """A named Ed25519 key; its id says what its signatures are over, so that none passes for another kind.

    Attributes:
        name: The key's name.
        public: The public key, 32 bytes.
    """

    kind: ClassVar[bytes]
    """The signature type, 1 byte. Source: C2SP signed-note, "Signature types"."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        check_origin(self.name)
        if len(self.public) != 32:
            raise ConfigurationError("an Ed25519 public key has 32 bytes")

    @property
    def key_id(self) -> bytes:
        """SHA-256(name || 0x0A || signature type || public key), the first 4 bytes."""
        return make_key_id(self.name, self.kind, self.public)

    @property
    def vkey(self) -> str:
        """The text ``name+<key id, 8 hex>+<base64 of signature type || public key>``."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(self.kind + self.public)}"


@dataclass(frozen=True, kw_only=True)
class Verifier(NamedKey):
    """A key that may vouch for a note; for a log its name is the log's origin."""

    kind: ClassVar[bytes] = ED25519_NOTE


def make_key_id(name: str, kind: bytes, public: bytes) -> bytes:
    """SHA-256(name || 0x0A || signature type || public key), the first 4 bytes.

    Args:
        name: The key's name.
        kind: The signature type, 1 byte.
        public: The public key.

    Source: C2SP signed-note, "Signatures".
    """
    return hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def check_origin(origin: str) -> None:
    """The name of a log or key: not empty, at most 256 bytes, no space, plus or control character.

    Raises:
        ConfigurationError: It is something else.

    Source: C2SP signed-note (key names), C2SP tlog-checkpoint (origin).
    """
    fits = isinstance(origin, str) and _NAME_RE.fullmatch(origin) is not None
    if not fits or len(origin.encode("utf-8", "surrogatepass")) > limits.MAX_ORIGIN or _is_lone(origin):
        raise ConfigurationError(
            "a log's origin is not a valid key name",
            why=f"1 to {limits.MAX_ORIGIN} bytes without spaces, '+' or control characters",
            next="choose a name such as example.com/broker-log",
        )


def _is_lone(text: str) -> bool:
    """Whether the text has a surrogate, and so no UTF-8 form."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def vkey(origin: str, public: bytes | Ed25519PublicKey) -> str:
    """The verifier key of a log, as clients pin it.

    Args:
        origin: The log's name.
        public: Its Ed25519 public key (32 bytes, or the key object).

    Raises:
        ConfigurationError: The name or the key does not fit.
    """
    raw = public if isinstance(public, bytes) else public.public_bytes_raw()
    return Verifier(name=origin, public=raw).vkey


def parse_vkey(text: str) -> Verifier:
    """The verifier that a ``vkey`` text names; its key id must be the right one.

    Raises:
        ConfigurationError: Another form, another signature type, or a key id that does not fit.

    Source: C2SP signed-note (key ids); the text form is that of Go's ``sumdb/note``.
    """
    name, public = split_vkey(text, ED25519_NOTE)
    return Verifier(name=name, public=public)


def split_vkey(text: str, kind: bytes) -> tuple[str, bytes]:
    """Name and public key of a ``vkey`` text of that signature type; its key id must be the right one.

    Raises:
        ConfigurationError: Another form, another signature type, or a key id that does not fit.
    """
    match = _VKEY_RE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigurationError("a verifier key is not NAME+KEYID+KEY")
    try:
        encoded = parse_base64(match[3])
    except IntegrityFailure as exc:
        raise ConfigurationError("a verifier key is not base64") from exc
    if encoded[:1] != kind:
        raise ConfigurationError(
            f"a verifier key is not of signature type {kind[0]}",
            why="1 is the key of a log, 4 that of a witness",
        )
    if make_key_id(match[1], kind, encoded[1:]).hex() != match[2]:
        raise ConfigurationError("a verifier key does not fit its key id", why="it was mistyped or changed")
    return match[1], encoded[1:]


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding, as C2SP formats have it. Source: RFC 4648 section 4."""
    return base64.b64encode(data).decode("ascii")


def parse_base64(text: str) -> bytes:
    """The bytes of a standard base64 text in its only valid spelling.

    Raises:
        IntegrityFailure: Foreign characters, wrong padding or stray trailing bits.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise IntegrityFailure("a value is not base64") from exc
    if encode_base64(data) != text:
        raise IntegrityFailure("a base64 value has stray trailing bits")
    return data


# -- notes ----------------------------------------------------------------------------------------------


def sign_note(text: str, verifier: Verifier, sign: Sign) -> str:
    """A signed note over ``text`` with one signature; it opens under ``verifier``, which is checked.

    Args:
        text: The text, ending in a newline.
        verifier: Name and public key of the signer.
        sign: Signs with the private key, wherever it is kept.

    Raises:
        IntegrityFailure: ``text`` cannot be a note's text, or ``sign`` signs with another key.

    Source: C2SP signed-note, "Format".
    """
    signature = sign(text.encode("utf-8", "surrogatepass"))
    note = f"{text}\n— {verifier.name} {encode_base64(verifier.key_id + signature)}\n"
    # A key that is not the pinned one, or a faulty signer, must not put out a head that nobody accepts.
    if open_note(note, [verifier]) != text:
        raise IntegrityFailure("a text does not survive being signed as a note")
    return note


def join_notes(notes: Sequence[str]) -> str:
    """One note with the signatures of several over the same text, in their order.

    Raises:
        IntegrityFailure: There is none, or they differ in their text.

    Source: C2SP signed-note, "Format".
    """
    texts = {note.rpartition("\n\n")[0] for note in notes}
    if len(texts) != 1:
        raise IntegrityFailure("signed notes over different texts cannot be joined")
    return f"{texts.pop()}\n\n" + "".join(note.rpartition("\n\n")[2] for note in notes)


def open_note(note: str, vkeys: Iterable[str | Verifier]) -> str:
    """The text of a note that at least one of the given keys signed.

    Signatures of unknown keys are ignored; one of a known key that does not hold refuses the note.

    Args:
        note: The note: text, empty line, 1 to 64 signature lines; at most 64 KiB.
        vkeys: The keys that are trusted for it, as text or parsed.

    Returns:
        The text, with its final newline.

    Raises:
        IntegrityFailure: Not a note, no signature of a known key, or a bad one.
        ConfigurationError: One of ``vkeys`` is not a verifier key.

    Source: C2SP signed-note, "Format" and "Signatures".
    """
    known = {(key.name, key.key_id): key for key in map(_to_verifier, vkeys)}
    text, signatures = split_note(note)
    trusted = False
    for name, signature in signatures:
        key = known.get((name, signature[:4]))
        if key is not None:
            _verify(key, signature[4:], text.encode())
            trusted = True
    if not trusted:
        raise IntegrityFailure("a signed note has no signature by a known key")
    return text


def _to_verifier(key: str | Verifier) -> Verifier:
    return key if isinstance(key, Verifier) else parse_vkey(key)


def split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a signed note, and its signatures as (key name, key id + signature); none is verified.

    Raises:
        IntegrityFailure: It is no signed note.

    Source: C2SP signed-note, "Format".
    """
    if not isinstance(note, str) or _is_lone(note) or len(note.encode()) > limits.MAX_NOTE:
        raise IntegrityFailure(f"a signed note is not a text of at most {limits.MAX_NOTE} bytes")
    if _CONTROL_RE.search(note):
        raise IntegrityFailure("a signed note has a control character")
    text, blank, rest = note.rpartition("\n\n")
    lines = rest.split("\n")
    if not blank or lines.pop() != "" or not 1 <= len(lines) <= limits.MAX_NOTE_SIGNATURES:
        raise IntegrityFailure("a signed note does not end in an empty line and 1 to 64 signature lines")
    return text + "\n", [parse_signature_line(line) for line in lines]


def parse_signature_line(line: str) -> tuple[str, bytes]:
    """(key name, key id + signature) of one line of a signed note, without its newline.

    Raises:
        IntegrityFailure: It is not of the form.
    """
    match = _SIGNATURE_LINE_RE.fullmatch(line)
    if match is None:
        raise IntegrityFailure("a line of a signed note is not a signature")
    signature = parse_base64(match[2])
    if len(signature) <= 4:
        raise IntegrityFailure("a signature of a note is too short")
    return match[1], signature


def _verify(key: Verifier, signature: bytes, text: bytes) -> None:
    if len(signature) != _SIGNATURE_SIZE:
        raise IntegrityFailure("a note's signature by a known key has another length")
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, text)
    except (InvalidSignature, ValueError) as exc:
        raise IntegrityFailure("a note's signature by a known key does not hold") from exc


# -- tree heads -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TreeHead:
    """What a log vouches for: the root of its tree at one size.

    Attributes:
        origin: The log's name.
        size: Number of entries, below 2^53.
        root: Root of the tree of that size, 32 bytes.
    """

    origin: str
    size: int
    root: bytes


def head_text(head: TreeHead) -> str:
    """The three lines that are signed: origin, size in decimal, root in base64.

    Raises:
        IntegrityFailure: The size or root is out of range.
        ConfigurationError: The origin is not a valid name.

    Source: C2SP tlog-checkpoint, "Note text" (we write no extension lines).
    """
    check_origin(head.origin)
    if not 0 <= head.size <= limits.MAX_TREE_SIZE or len(head.root) != HASH_SIZE:
        raise IntegrityFailure("a tree head has no size and root that could be signed")
    return f"{head.origin}\n{head.size}\n{encode_base64(head.root)}\n"


def parse_head(text: str) -> TreeHead:
    """The tree head that a note's text says; extension lines are refused.

    Raises:
        IntegrityFailure: It is not exactly the form that :func:`head_text` writes.

    Source: C2SP tlog-checkpoint, "Note text".
    """
    lines = text.split("\n")
    if len(lines) != 4 or not _SIZE_RE.fullmatch(lines[1]):
        raise IntegrityFailure("a tree head is not the three lines origin, size and root")
    head = TreeHead(origin=lines[0], size=int(lines[1]), root=parse_base64(lines[2]))
    try:
        same = head_text(head) == text
    except ConfigurationError as exc:
        raise IntegrityFailure("a tree head names no valid origin") from exc
    if not same:
        raise IntegrityFailure("a tree head is not in its only form")
    return head


def sign_head(head: TreeHead, verifier: Verifier, sign: Sign) -> str:
    """The tree head as a note, signed wherever the log's key is kept. See :func:`sign_note`.

    Raises:
        IntegrityFailure: The verifier belongs to another log, or ``sign`` signs with another key.
    """
    if verifier.name != head.origin:
        raise IntegrityFailure("a tree head is signed under its log's own name only")
    return sign_note(head_text(head), verifier, sign)


def open_head(note: str, vkey: str | Verifier | Iterable[str | Verifier]) -> TreeHead:
    """The tree head of a note that was signed by the log that it names.

    Args:
        note: The signed note; signatures of witnesses beside the log's own are ignored.
        vkey: The log's verifier key, or several (other logs; older keys of the same log).

    Raises:
        IntegrityFailure: Not a tree head, not signed by one of these keys, or signed by a key of
            another name than the head's origin.
        ConfigurationError: A verifier key is not one.
    """
    keys = [vkey] if isinstance(vkey, str | Verifier) else vkey
    origin = note.partition("\n")[0] if isinstance(note, str) else ""
    # Only keys of that very log count: a head of log A signed by log B's key says nothing.
    return parse_head(open_note(note, [key for key in map(_to_verifier, keys) if key.name == origin]))
