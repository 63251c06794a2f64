"""Entries: the leaves of the ledger, RFC 8785 JSON of at most 65,535 bytes.

An entry says who asked for what, under which decision, and commits by digest to what does not belong
into it: ``selection.digest`` to the record (kept for ever), ``evidence`` to the signed request and the
decision's inputs (erasable: the commitment has its own salt, which is erased with it). The entry's
salt keeps a leaf hash from being guessed from the few values that an entry has.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from broker import limits
from broker.canonical import (
    Json,
    b64url,
    canonical_bytes,
    drop_absent,
    format_time,
    parse_canonical,
    parse_time,
    sha256_digest,
)
from broker.errors import (
    ConfigurationError,
    IntegrityFailure,
    InternalError,
    InvalidRequest,
    MalformedRequest,
    TooLarge,
)
from broker.ledger.members import (
    ALWAYS,
    COMMON,
    EFFECTS_OF,
    MEMBERS,
    SALT_SIZE,
    SCHEMA,
    TYPES,
    is_unsafe,
)
from broker.ledger.note import parse_vkey
from broker.model import IndexRow

EVIDENCE_SALT_SIZE: Final = 32

__all__ = [
    "EVIDENCE_SALT_SIZE",
    "SALT_SIZE",
    "SCHEMA",
    "TYPES",
    "build_entry",
    "compose_entry",
    "cut_name",
    "evidence_commitment",
    "index_row",
    "parse_entry",
    "record_digest",
]


def build_entry(*, type: str, time: int, salt: bytes, **members: Any) -> bytes:
    """The exact bytes of an entry, which :func:`parse_entry` takes: see :func:`compose_entry`."""
    return compose_entry(type=type, time=time, salt=salt, **members)[0]


def compose_entry(*, type: str, time: int, salt: bytes, **members: Any) -> tuple[bytes, Json]:
    """The exact bytes of an entry, and the object that they are the canonical form of.

    Args:
        type: One of :data:`TYPES`.
        time: Milliseconds since 1970.
        salt: 16 random bytes.
        members: Further members by name; None means absent.

    Raises:
        InvalidRequest: The type is unknown, or a member is unknown, missing or against its rule.
        TooLarge: The entry would have more than 65,535 bytes.
        InternalError: The salt has another size, or a fixed member is given again.
    """
    if len(salt) != SALT_SIZE:
        raise InternalError(f"the salt of an entry has {SALT_SIZE} bytes")
    fixed = {"schema": SCHEMA, "salt": b64url(salt), "time": format_time(time), "type": type}
    if not ALWAYS.isdisjoint(members):
        raise InternalError("a fixed member of an entry is given twice")
    entry = drop_absent({**members, **fixed})
    check_entry(entry)
    try:
        data = canonical_bytes(entry)
    except MalformedRequest as exc:
        raise InvalidRequest("an entry has no canonical form") from exc
    if len(data) > limits.MAX_ENTRY:
        raise TooLarge(f"a ledger entry is larger than {limits.MAX_ENTRY} bytes")
    return data, entry


def parse_entry(data: bytes) -> Json:
    """The entry that these bytes are.

    Raises:
        IntegrityFailure: More than 65,535 bytes, not canonical JSON, an unknown schema or type, or a
            member that is unknown, missing or against its rule.
    """
    if len(data) > limits.MAX_ENTRY:
        raise IntegrityFailure(f"a ledger entry is larger than {limits.MAX_ENTRY} bytes")
    try:
        entry = parse_canonical(data)
        check_entry(entry)
    except (InvalidRequest, MalformedRequest) as exc:
        raise IntegrityFailure("a ledger entry is not of a known form", why=exc.what) from exc
    return entry


def check_entry(entry: Json) -> None:
    """An object is an entry: known schema and type, no unknown member, none missing, each by its rule.

    Raises:
        InvalidRequest: It is not; the message names the member.
    """
    kind = entry.get("type")
    rule = TYPES.get(kind) if isinstance(kind, str) else None
    if kind is None or rule is None:
        raise InvalidRequest("a ledger entry is of no known type")
    missing = (ALWAYS | rule.required) - entry.keys()
    unknown = entry.keys() - ALWAYS - COMMON - rule.required - rule.optional
    if missing:
        raise InvalidRequest(f"a ledger entry of type {kind} has no {', '.join(sorted(missing))}")
    if unknown:
        known = ", ".join(sorted(MEMBERS.keys() & unknown)) or "of another name"
        raise InvalidRequest(f"a ledger entry of type {kind} has no place for members ({known})")
    for name, value in entry.items():
        if name != "type":
            _check_member(name, value)
    _check_whole(kind, entry)


def _check_member(name: str, value: Any) -> None:
    try:
        MEMBERS[name](value)
    except (InvalidRequest, MalformedRequest, ConfigurationError) as exc:
        raise InvalidRequest(
            f"member {name} of a ledger entry does not fit", why=exc.why or exc.what
        ) from exc


def _check_whole(kind: str, entry: Json) -> None:
    effects = EFFECTS_OF.get(kind)
    if effects is not None and entry["decision"]["effect"] not in effects:
        raise InvalidRequest(f"a ledger entry of type {kind} says {' or '.join(effects)}")
    if kind in ("genesis", "origin") and parse_vkey(entry["vkey"]).name != entry["origin"]:
        raise InvalidRequest(f"a ledger entry of type {kind} names the key of another log")


def index_row(entry: Json) -> IndexRow:
    """The search columns of an entry: every value follows from the entry alone (I10).

    ``jkt`` of an enrolment is the key that it bound, unless another key signed the request.

    Args:
        entry: An entry as :func:`parse_entry` gives it.
    """
    decision = entry.get("decision", {})
    return IndexRow(
        time=parse_time(entry["time"]),
        type=entry["type"],
        principal=entry.get("principal"),
        jkt=entry.get("jkt") or entry.get("key", {}).get("jkt"),
        action=entry.get("action"),
        artifact=entry.get("artifact"),
        version=entry.get("version"),
        decision=decision.get("effect"),
        policies=tuple(decision.get("policies", ())),
        bytes=entry.get("bytes"),
        grant=entry.get("grant"),
        purpose=entry.get("purpose"),
    )


# -- commitments and names ----------------------------------------------------------------------------------


def evidence_commitment(salt: bytes, evidence: bytes) -> str:
    """``sha256:<hex>`` of the salt (32 random bytes) followed by the evidence.

    Without the salt, which is erased together with the evidence, the commitment says nothing about
    what was erased: the evidence cannot be guessed and checked against it.

    Raises:
        InternalError: The salt is not 32 bytes.
    """
    if len(salt) != EVIDENCE_SALT_SIZE:
        raise InternalError(f"the salt of evidence has {EVIDENCE_SALT_SIZE} bytes")
    return "sha256:" + hashlib.sha256(salt + evidence).hexdigest()


def record_digest(record: bytes) -> str:
    """``sha256:<hex>`` of a record's exact bytes: what ``selection.digest`` is."""
    return sha256_digest(record)


def cut_name(text: str, *, size: int = limits.MAX_NAME_IN_LEDGER) -> str:
    r"""A text of unknown origin, made fit for an entry (I11, I17).

    Control, format and separator characters and lone surrogates are written as ``\u{HEX}``; then
    it is cut to ``size`` bytes of UTF-8, between characters. Doing it twice changes nothing more.
    """
    kept: list[str] = []
    room = size
    for character in text:
        piece = f"\\u{{{ord(character):x}}}" if is_unsafe(character) else character
        room -= len(piece.encode())
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept)
