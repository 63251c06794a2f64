"""The vocabulary of entries: their types, and what each member may be.

Every value is checked by its own narrow rule, so that an entry cannot carry a secret, an unbounded
text or a list that belongs into the record behind ``selection.digest`` (I11, I17).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker import jose, limits, names
from broker.canonical import MAX_SAFE_INTEGER, parse_b64url, parse_digest, parse_time
from broker.errors import InvalidRequest
from broker.ledger.note import check_origin, parse_vkey
from broker.model import ISSUER_KINDS, KINDS, ROLES

SCHEMA: Final = "broker/entry/v1"
SALT_SIZE: Final = 16
EFFECTS: Final = ("allow", "deny", "needs-approval")
TARGET_KINDS: Final = ("all", "collection", "artifact", "version", "grant", "token", "key", "principal")
MAX_COUNTERS: Final = 64
"""Counters of one summary entry."""

_IDENTIFIER_RE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_UNSAFE_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

Check = Callable[[Any], None]


def is_unsafe(character: str) -> bool:
    """Whether a character may hide or move text when it is shown: control, format, separator, surrogate."""
    return unicodedata.category(character) in _UNSAFE_CATEGORIES


# -- rules for values -----------------------------------------------------------------------------------


def _expect(fits: bool, rule: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not fits:
        raise InvalidRequest("a member of a ledger entry does not fit its rule", why=rule)


def _text(limit: int, *, empty: bool = False) -> Check:
    def check(value: Any) -> None:
        fits = isinstance(value, str) and (empty or value != "") and not any(map(is_unsafe, value))
        _expect(fits and len(value.encode()) <= limit, f"text of at most {limit} bytes, no control character")

    return check


def _identifier(value: Any) -> None:
    fits = isinstance(value, str) and _IDENTIFIER_RE.fullmatch(value) is not None
    _expect(fits, "1 to 128 letters, digits and . _ : -, beginning with a letter or digit")


def _count(value: Any) -> None:
    _expect(type(value) is int and 0 <= value <= MAX_SAFE_INTEGER, "an integer from 0 to 2^53 - 1")


def _boolean(value: Any) -> None:
    _expect(type(value) is bool, "true or false")


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> None:
        _expect(isinstance(value, str) and value in allowed, f"one of {', '.join(allowed)}")

    return check


def _binary(size: int) -> Check:
    def check(value: Any) -> None:
        parse_b64url(value, size=size)

    return check


def _digest(value: Any) -> None:
    parse_digest(value)


def _time(value: Any) -> None:
    parse_time(value)


def _hour(value: Any) -> None:
    parse_time(value)
    _expect(value.endswith(":00:00.000Z"), "the first moment of an hour")


def _principal(value: Any) -> None:
    _expect(isinstance(value, str) and names.parse_principal(value) == value, "user:... or workload:...")


def _origin(value: Any) -> None:
    check_origin(value)


def _vkey(value: Any) -> None:
    parse_vkey(value)


def _list_of(check_item: Check, limit: int) -> Check:
    def check(value: Any) -> None:
        _expect(isinstance(value, list) and len(value) <= limit, f"a list of at most {limit}")
        for item in value:
            check_item(item)
        _expect(len(set(value)) == len(value), "a list without repetitions")

    return check


def _object(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    known = {**required, **(optional or {})}

    def check(value: Any) -> None:
        fits = isinstance(value, dict) and set(required) <= set(value) <= set(known)
        _expect(fits, f"an object with the members {', '.join(known)}")
        for name, member in value.items():
            known[name](member)

    return check


def _map_of(check_name: Check, check_member: Check, limit: int) -> Check:
    def check(value: Any) -> None:
        _expect(isinstance(value, dict) and len(value) <= limit, f"an object of at most {limit} members")
        for name, member in value.items():
            check_name(name)
            check_member(member)

    return check


def _labels(value: Any) -> None:
    _expect(isinstance(value, dict) and len(value) <= limits.MAX_LABELS, "an object of labels")
    for name, label in value.items():
        names.check_label(name, label)


def _key(value: Any) -> None:
    fits = isinstance(value, dict) and set(value) == {"jwk", "jkt"}
    _expect(fits, "an object with the members jwk, jkt")
    # The entry is what binds a key to its principal: the two names of the key must be the same key.
    _expect(jose.parse_public_jwk(value["jwk"]) == value["jwk"], "a public JWK in its one form")
    _expect(jose.thumbprint(value["jwk"]) == value["jkt"], "jkt is the thumbprint of jwk")


def _group(value: Any) -> None:
    names.parse_group(value)


def _collection(value: Any) -> None:
    names.parse_part(value, "collection")


_name = _text(limits.MAX_NAME_IN_LEDGER)
_thumbprint = _binary(32)
_groups = _list_of(_group, limits.MAX_GROUPS)
_counts = {"files": _count, "extents": _count}

MEMBERS: Final[Mapping[str, Check]] = {
    "schema": _one_of(SCHEMA),
    "salt": _binary(SALT_SIZE),
    "time": _time,
    # who asked, and with what
    "principal": _principal,
    "jkt": _thumbprint,
    "token": _identifier,
    "request_id": _identifier,
    "recipient": _digest,
    "purpose": _text(limits.MAX_PURPOSE),
    # what for
    "action": _identifier,
    "artifact": _name,
    "version": _name,
    "manifest": _digest,
    "selection": _object({"digest": _digest, **_counts}, {"segments": _count}),
    "bytes": _count,
    "served": _count,
    # what came of it
    "decision": _object(
        {"effect": _one_of(*EFFECTS), "policies": _list_of(_name, limits.MAX_POLICIES)},
        {"bundle": _digest, "reason": _identifier},
    ),
    "grant": _identifier,
    "lease": _count,
    "expires_at": _time,
    "grant_expires_at": _time,
    "evidence": _digest,
    "received": _object({**_counts, "bytes": _count}),
    # the log itself
    "origin": _origin,
    "vkey": _vkey,
    "former": _object({"origin": _origin, "size": _count, "root": _digest}),
    "known": _object({"size": _count, "root": _digest}),
    "mode": _one_of("dev", "production"),
    # keys, tokens, principals, groups
    "code": _identifier,
    "key": _key,
    "uses": _list_of(_name, 16),
    "enrolled_by": _count,
    "scope": _digest,
    "parent": _identifier,
    "issuer": _name,
    "subject": _principal,
    "subject_digest": _digest,
    "mapping": _digest,
    "minter": _object({"principal": _principal, "jkt": _thumbprint, "token": _identifier}),
    "url": _text(limits.MAX_CLAIM),
    "issuer_kind": _one_of(*ISSUER_KINDS),
    "audience": _text(limits.MAX_CLAIM),
    "trust": _digest,
    "roles": _list_of(_one_of(*ROLES), len(ROLES)),
    "groups": _groups,
    "disabled": _boolean,
    "group": _group,
    "parents": _groups,
    # publishing
    "upload": _identifier,
    "kind": _one_of(*KINDS),
    "labels": _labels,
    "version_id": _binary(16),
    "publisher": _thumbprint,
    "publisher_binding": _count,
    "wrap": _digest,
    # administration
    "collection": _collection,
    "readers": _groups,
    "publishers": _groups,
    "bundle": _digest,
    "previous": _digest,
    "target": _object({"kind": _one_of(*TARGET_KINDS), "id": _name}),
    "frozen": _boolean,
    "use": _identifier,
    "kid": _identifier,
    "previous_kid": _identifier,
    "request": _identifier,
    "approves": _digest,
    # auditors and summaries
    "query": _text(limits.MAX_QUERY, empty=True),
    "hour": _hour,
    "format": _identifier,
    "range": _object({"start": _count, "stop": _count}),
    "digest": _digest,
    "counts": _map_of(_identifier, _count, MAX_COUNTERS),
    "since": _time,
    "until": _time,
    "reason": _text(limits.MAX_PURPOSE),
}
"""Member -> the rule that its value must pass; it raises a BrokerError when it does not."""


# -- types ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TypeRule:
    """Which members an entry of one type has beside ``COMMON`` ones, and which it must have."""

    required: frozenset[str]
    optional: frozenset[str]


_WHO: Final = ("principal", "jkt", "token", "request_id", "recipient", "purpose")
_WHAT: Final = ("action", "artifact", "version", "manifest", "selection", "bytes")
_OUTCOME: Final = ("decision", "grant", "lease", "expires_at", "evidence")
COMMON: Final = frozenset((*_WHO, *_WHAT, *_OUTCOME))
"""Members that an entry of any type may have."""
ALWAYS: Final = frozenset({"schema", "salt", "time", "type"})
"""Members that every entry has."""


def _rule(required: str, optional: str = "") -> TypeRule:
    return TypeRule(required=frozenset(required.split()), optional=frozenset(optional.split()))


_READ: Final = " ".join(sorted(COMMON - {"purpose"}))

TYPES: Final[Mapping[str, TypeRule]] = {
    "genesis": _rule("origin vkey", "mode"),
    "origin": _rule("origin vkey former reason", "known"),
    "enrolment-code": _rule("subject code expires_at"),
    "enrolment": _rule("principal key", "code enrolled_by uses issuer"),
    "issuer": _rule("issuer url issuer_kind audience mapping trust disabled"),
    "token": _rule("principal jkt token expires_at", "scope parent issuer mapping subject_digest minter"),
    "grant": _rule(_READ, "grant_expires_at served"),
    "lease": _rule(_READ, "served"),
    "completion": _rule("principal jkt grant received"),
    "denial": _rule("decision", "subject"),
    "publish": _rule(
        "principal jkt request_id action artifact version decision upload", "kind labels version_id"
    ),
    "commit": _rule(
        "principal jkt artifact version manifest version_id publisher publisher_binding wrap labels",
        "upload kind",
    ),
    "abandon": _rule("upload"),
    "collection": _rule("collection readers publishers"),
    "principal": _rule("subject roles groups disabled"),
    "group": _rule("group parents"),
    "policy": _rule("bundle", "previous"),
    "approval": _rule("principal request approves decision"),
    "revocation": _rule("target"),
    "freeze": _rule("target frozen"),
    "key-rotation": _rule("use kid", "previous_kid vkey"),
    "export": _rule("principal format", "range digest"),
    "audit-query": _rule("principal query hour"),
    "erasure": _rule("principal subject until counts reason"),
    "decision": _rule("principal action decision", "subject"),
    "junk-summary": _rule("counts since until"),
    "denial-summary": _rule("principal counts since until"),
}
"""Entry type -> its rule. A type that is not here is not an entry."""

EFFECTS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "grant": ("allow",),
    "lease": ("allow",),
    "publish": ("allow",),
    "denial": ("deny", "needs-approval"),
}
"""Effects that the decision inside an entry of that type can have; any where a type is not listed."""
