"""What a token covers: ``authorization_details``, level by level.

A token carries one list of details for each exchange that led to it. A request passes only if
**every** level has **one** detail that covers all of it (I07), so a child's list needs no comparison
with its parent's: whatever it says, it can only take away. What is empty, absent, unknown or malformed
grants nothing (I03): a request for such details is refused, and in a token they count as not there.

========================  ==========================================================================
``artifact_access``       ``actions`` of describe, read, publish; ``identifier``; and, to narrow it,
                          ``paths``, ``max_bytes``, ``purpose``
``ledger_access``         ``actions`` of search, read, prove
``administration``        ``actions`` of principals, policies, revocations, keys
========================  ==========================================================================

``actions`` and ``identifier`` grant, so they are never implied. ``paths`` and ``purpose`` narrow what
``read`` and ``publish`` may touch: without them nothing is narrowed, with an empty one the detail is
malformed.

**Source**: RFC 9396 sections 2 and 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from broker import limits, names
from broker.canonical import MAX_SAFE_INTEGER, Json
from broker.errors import InvalidRequest, ScopeExceeded, TooLarge

ARTIFACT: Final = "artifact_access"
LEDGER: Final = "ledger_access"
ADMINISTRATION: Final = "administration"

INVALID_DETAILS: Final = "invalid_authorization_details"
"""``what`` of every refusal of details: the error code of OAuth answers (RFC 9396 section 5)."""

ACTIONS: Final[Mapping[str, frozenset[str]]] = {
    ARTIFACT: frozenset({"describe", "read", "publish"}),
    LEDGER: frozenset({"search", "read", "prove"}),
    ADMINISTRATION: frozenset({"principals", "policies", "revocations", "keys"}),
}
_REQUIRED: Final[Mapping[str, frozenset[str]]] = {
    ARTIFACT: frozenset({"type", "actions", "identifier"}),
    LEDGER: frozenset({"type", "actions"}),
    ADMINISTRATION: frozenset({"type", "actions"}),
}
_NARROWING: Final = frozenset({"paths", "max_bytes", "purpose"})
CONTENT_ACTIONS: Final = frozenset({"read", "publish"})
"""Actions on an artifact's files: ``paths`` and ``purpose`` bind these."""
_EVERYTHING: Final = "**"
_GLOBS_REMEMBERED: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Detail:
    """One parsed element of ``authorization_details``.

    Attributes:
        type: One of the keys of ``ACTIONS``.
        actions: What may be done; never empty.
        collection: For artifacts: the one collection, or None for all of them (identifier ``*``).
        name: The one artifact of it, or None for all of them (``c/*``).
        version: The one version of it, by name or manifest digest, or None for all of them.
        paths: Patterns of which every selected path must match one; None does not narrow.
        max_bytes: Ceiling on the bytes opened under this level; None does not narrow.
        purpose: The one purpose that a request must state; None does not narrow.
    """

    type: str
    actions: frozenset[str]
    collection: str | None = None
    name: str | None = None
    version: str | None = None
    paths: tuple[names.Glob, ...] | None = None
    max_bytes: int | None = None
    purpose: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a request wants to do, in the terms that details are written in.

    Attributes:
        type: One of the keys of ``ACTIONS``.
        action: One action of that type.
        collection: The artifact's collection; None asks about all of them.
        name: The artifact's name in it; None asks about the whole collection.
        version: The version's name, resolved: None asks about the whole artifact.
        manifest: The version's manifest digest, if it has one yet; details may name it so.
        paths: Every path of the selection. None when the action is not about files; a ``read`` or
            ``publish`` without paths is not covered by a detail that has patterns.
        purpose: The stated purpose.
    """

    type: str = ARTIFACT
    action: str
    collection: str | None = None
    name: str | None = None
    version: str | None = None
    manifest: str | None = None
    paths: Sequence[str] | None = None
    purpose: str | None = None

    def __str__(self) -> str:
        target = "/".join(part for part in (self.collection, self.name) if part)
        version = f"@{self.version}" if self.version else ""
        return f"{self.action} of {target or self.type}{version}"


# -- parsing ------------------------------------------------------------------------------------------


def parse_details(requested: object) -> tuple[Detail, ...]:
    """A list of ``authorization_details`` of which every element grants something.

    Raises:
        InvalidRequest: ``what`` is ``INVALID_DETAILS``, ``why`` says which rule is broken: not a list of
            1 to ``limits.MAX_DETAILS`` objects, or an unknown type, member or action, or a member that
            is empty or out of range (I03).
    """
    if not isinstance(requested, list | tuple) or not 1 <= len(requested) <= limits.MAX_DETAILS:
        raise _refuse(f"it is not a list of 1 to {limits.MAX_DETAILS} details")
    return tuple(_parse_detail(detail) for detail in requested)


def _refuse(why: str) -> InvalidRequest:
    return InvalidRequest(INVALID_DETAILS, why=why)


def _parse_detail(detail: object) -> Detail:
    kind = detail.get("type") if isinstance(detail, dict) else None
    if not isinstance(detail, dict) or not isinstance(kind, str) or kind not in ACTIONS:
        raise _refuse(f"the type of a detail is one of {', '.join(sorted(ACTIONS))}")
    members = set(detail)
    allowed = _REQUIRED[kind] | (_NARROWING if kind == ARTIFACT else frozenset())
    if not _REQUIRED[kind] <= members <= allowed:
        raise _refuse(f"a detail of type {kind} lacks a member or has one that is not known")
    actions = _parse_actions(kind, detail["actions"])
    if kind != ARTIFACT:
        return Detail(type=kind, actions=actions)
    collection, name, version = _parse_identifier(detail["identifier"])
    return Detail(
        type=kind,
        actions=actions,
        collection=collection,
        name=name,
        version=version,
        paths=_parse_paths(detail["paths"]) if "paths" in detail else None,
        max_bytes=_parse_max_bytes(detail["max_bytes"]) if "max_bytes" in detail else None,
        purpose=_parse_purpose(detail["purpose"]) if "purpose" in detail else None,
    )


def _parse_actions(kind: str, actions: object) -> frozenset[str]:
    known = ACTIONS[kind]
    # I03: no actions are no actions, not all of them.
    if not isinstance(actions, list) or not 1 <= len(actions) <= len(known):
        raise _refuse(f"the actions of {kind} are a list of some of {', '.join(sorted(known))}")
    if not all(isinstance(action, str) and action in known for action in actions):
        raise _refuse(f"an action of {kind} is not one of {', '.join(sorted(known))}")
    return frozenset(actions)


def _parse_identifier(identifier: object) -> tuple[str | None, str | None, str | None]:
    if not isinstance(identifier, str):
        raise _refuse("an identifier is text")
    if identifier == "*":
        return None, None, None
    try:
        collection, slash, rest = identifier.partition("/")
        if slash and rest == "*":
            return names.parse_part(collection, "collection"), None, None
        ref = names.parse_ref(identifier)
    except InvalidRequest as exc:
        raise _refuse(f"an identifier is c/n, c/n@v, c/* or *: {exc.what}") from exc
    if ref.path is not None or identifier.startswith(names.SCHEME):
        raise _refuse("an identifier is c/n, c/n@v, c/* or *")
    return ref.collection, ref.name, ref.version


def _parse_paths(paths: object) -> tuple[names.Glob, ...]:
    if not isinstance(paths, list) or not 1 <= len(paths) <= limits.MAX_GLOBS:
        raise _refuse(f"paths are a list of 1 to {limits.MAX_GLOBS} patterns")
    if not all(isinstance(pattern, str) for pattern in paths):
        raise _refuse("a pattern of paths is text")
    try:
        return tuple(_parse_glob(pattern) for pattern in paths)
    except InvalidRequest as exc:
        raise _refuse(exc.what) from exc


@lru_cache(maxsize=_GLOBS_REMEMBERED)
def _parse_glob(pattern: str) -> names.Glob:
    return names.parse_glob(pattern)


def _parse_max_bytes(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_SAFE_INTEGER:
        raise _refuse("max_bytes is a whole number of bytes from 1 to 2^53 - 1")
    return value


def _parse_purpose(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _refuse("a purpose is printable text")
    if len(value.encode("utf-8")) > limits.MAX_PURPOSE:
        raise _refuse(f"a purpose has at most {limits.MAX_PURPOSE} bytes")
    return value


# -- narrowing ----------------------------------------------------------------------------------------


def derive_limits(
    parent: Sequence[Sequence[Json]], requested: Sequence[Json]
) -> tuple[tuple[Json, ...], ...]:
    """The levels of a token exchanged for one with the levels ``parent``: those verbatim, and one more.

    Args:
        parent: The parent's levels; empty for a token that has no parent.
        requested: The new level.

    Raises:
        InvalidRequest: The request grants nothing, see :func:`parse_details`, or the chain would be
            longer than ``limits.MAX_LIMITS_LEVELS``.
    """
    parse_details(requested)
    if len(parent) >= limits.MAX_LIMITS_LEVELS:
        raise InvalidRequest(f"a token is narrowed at most {limits.MAX_LIMITS_LEVELS - 1} times")
    return (*(tuple(level) for level in parent), tuple(requested))


# -- deciding -----------------------------------------------------------------------------------------


def permits(levels: Sequence[Sequence[Json]], ask: Ask) -> None:
    """Every level has one detail that covers the whole of ``ask``; a selection is never narrowed.

    Args:
        levels: The token's ``limits``.
        ask: What the request wants.

    Raises:
        ScopeExceeded: A level has none, or there is no level, or there are too many (I03, I07).
        TooLarge: Paths times patterns exceed ``limits.MAX_SCOPE_MATCHES`` or ``MAX_MATCH_STEPS`` (I17).
    """
    _covering(levels, ask)


def byte_ceilings(
    levels: Sequence[Sequence[Json]], holders: Sequence[str], ask: Ask
) -> tuple[tuple[str, int], ...]:
    """The ceilings that ``ask`` is charged against, for each level that has one: (token id, bytes).

    The bytes are those opened under that token and all of its descendants. Where several details of a
    level cover the request, the lowest of their ceilings counts.

    Args:
        levels: The token's ``limits``.
        holders: The token id of each level: the chain and the token itself.
        ask: What the request wants.

    Raises:
        ScopeExceeded: The request is not permitted, or there is not one holder for each level.
        TooLarge: As :func:`permits`.
    """
    if len(holders) != len(levels):
        raise ScopeExceeded("the token's levels and its chain do not belong together")
    ceilings = []
    for holder, covering in zip(holders, _covering(levels, ask), strict=True):
        bounds = [detail.max_bytes for detail in covering if detail.max_bytes is not None]
        if bounds:
            ceilings.append((holder, min(bounds)))
    return tuple(ceilings)


def _covering(levels: Sequence[Sequence[Json]], ask: Ask) -> list[list[Detail]]:
    """For each level the details that cover ``ask``; none of the lists is empty."""
    if not 1 <= len(levels) <= limits.MAX_LIMITS_LEVELS:
        raise ScopeExceeded("the token covers nothing")
    near = [[detail for detail in _granting(level) if _covers_target(detail, ask)] for level in levels]
    _check_effort(near, ask)
    found = [[detail for detail in level if _covers_content(detail, ask)] for level in near]
    for number, level in enumerate(found, start=1):
        if not level:
            raise ScopeExceeded(
                f"the token's scope does not cover {ask}",
                why=f"no detail of level {number} of {len(found)} covers all of it",
                next="ask for a token with a wider scope, or select less",
            )
    return found


def _granting(level: Sequence[Any]) -> list[Detail]:
    """The details of a token's level that mean something; the others grant nothing (I03)."""
    if len(level) > limits.MAX_DETAILS:
        return []
    found = []
    for detail in level:
        try:
            found.append(_parse_detail(detail))
        except InvalidRequest:
            # Fail closed: what this version of the broker does not understand it does not honour.
            continue
    return found


def _covers_target(detail: Detail, ask: Ask) -> bool:
    if detail.type != ask.type or ask.action not in detail.actions:
        return False
    # I05: whole names are compared, so `acme/*` is one collection and `acme/llama` one artifact.
    return (
        detail.collection in (None, ask.collection)
        and detail.name in (None, ask.name)
        and (detail.version is None or detail.version in (ask.version, ask.manifest))
    )


def _covers_content(detail: Detail, ask: Ask) -> bool:
    if ask.type != ARTIFACT or ask.action not in CONTENT_ACTIONS:
        return True
    if detail.purpose is not None and detail.purpose != ask.purpose:
        return False
    if detail.paths is None:
        return True
    if ask.paths is None:
        return False
    patterns = _narrowing_patterns(detail)
    return not patterns or all(any(glob.matches(path) for glob in patterns) for path in ask.paths)


def _narrowing_patterns(detail: Detail) -> tuple[names.Glob, ...]:
    """The patterns that have to be tried; none when one of them matches every path."""
    patterns = detail.paths or ()
    return () if any(glob.text == _EVERYTHING for glob in patterns) else patterns


def _check_effort(near: Sequence[Sequence[Detail]], ask: Ask) -> None:
    # I17: the caller chooses both factors, and 100,000 paths times every pattern of a token is minutes.
    patterns = [glob.text for level in near for detail in level for glob in _narrowing_patterns(detail)]
    names.check_match_effort(ask.paths or (), patterns)
    if len(patterns) * len(ask.paths or ()) > limits.MAX_SCOPE_MATCHES:
        raise TooLarge(
            "the selection is too large for the number of patterns in the token's scope",
            next="select fewer files, or ask for a token with fewer patterns",
        )
