"""What a token comes to: its levels, joined to one list that a person can read.

Deciding never uses this: :func:`broker.identity.scope.permits` asks every level. Where a request is
covered by one detail of each level, it is covered by one element of the list, which holds everything
that those details say together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker import limits
from broker.canonical import Json, drop_absent
from broker.errors import InvalidRequest
from broker.identity import scope

ANYTHING: Final = "*"


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """A level's ceiling: the id of the token whose bytes it counts, and the bytes."""

    holder: str
    max_bytes: int


@dataclass(frozen=True, kw_only=True)
class Effective:
    """One detail of each level, all of which apply.

    Attributes:
        type: As in :class:`~broker.identity.scope.Detail`.
        actions: What every one of them allows; never empty.
        identifiers: What a request has to lie in, all of them; the narrower stands for the wider.
        paths: Lists of patterns; every selected path matches one of each list.
        purpose: The purpose that a request must state, where the action is about content.
        ceilings: Each level's own, oldest first.
    """

    type: str
    actions: frozenset[str]
    identifiers: tuple[str, ...] = ()
    paths: tuple[tuple[str, ...], ...] = ()
    purpose: str | None = None
    ceilings: tuple[Ceiling, ...] = ()

    def as_json(self, opened: Mapping[str, int]) -> Json:
        """The element as introspection shows it.

        Args:
            opened: Token id -> bytes opened under it so far.
        """
        return drop_absent(
            {
                "type": self.type,
                "actions": sorted(self.actions),
                "identifiers": list(self.identifiers) or None,
                "paths": [list(patterns) for patterns in self.paths] or None,
                "purpose": self.purpose,
                "ceilings": [_ceiling_json(each, opened.get(each.holder, 0)) for each in self.ceilings]
                or None,
            }
        )


def _ceiling_json(ceiling: Ceiling, opened: int) -> Json:
    return {
        "token": ceiling.holder,
        "max_bytes": ceiling.max_bytes,
        "opened": opened,
        "left": max(0, ceiling.max_bytes - opened),
    }


def effective(levels: Sequence[Sequence[Json]], holders: Sequence[str]) -> tuple[tuple[Effective, ...], bool]:
    """What the levels come to, and whether that is all of it.

    A combination that covers nothing, because its details have no action or no artifact in common, is
    left out, and so is what repeats. At most ``limits.MAX_EFFECTIVE`` combinations are looked at from
    one level to the next (I17); what is beyond is not shown, and the second value is False.

    Args:
        levels: The token's ``limits``.
        holders: The token id of each level: the chain and the token itself.
    """
    if not levels or len(levels) != len(holders):
        return (), True
    whole = True
    found = _level(levels[0], holders[0])
    for level, holder in zip(levels[1:], holders[1:], strict=True):
        joined = [_join(left, right) for left in found for right in _level(level, holder)]
        found = list(dict.fromkeys(each for each in joined if each is not None))
        whole = whole and len(found) <= limits.MAX_EFFECTIVE
        found = found[: limits.MAX_EFFECTIVE]
    return tuple(found), whole


def _level(level: Sequence[Any], holder: str) -> list[Effective]:
    found = []
    for detail in level[: limits.MAX_DETAILS]:
        try:
            [parsed] = scope.parse_details([detail])
        except InvalidRequest:
            continue  # I03: what is not understood grants nothing
        found.append(_single(parsed, detail, holder))
    return found


def _single(parsed: scope.Detail, raw: Json, holder: str) -> Effective:
    return Effective(
        type=parsed.type,
        actions=parsed.actions,
        identifiers=(raw["identifier"],) if "identifier" in raw else (),
        paths=(tuple(raw["paths"]),) if "paths" in raw else (),
        purpose=parsed.purpose,
        ceilings=() if parsed.max_bytes is None else (Ceiling(holder=holder, max_bytes=parsed.max_bytes),),
    )


def _join(left: Effective, right: Effective) -> Effective | None:
    actions = left.actions & right.actions
    identifiers = _join_identifiers(left.identifiers, right.identifiers)
    purposes = {purpose for purpose in (left.purpose, right.purpose) if purpose is not None}
    if len(purposes) > 1:
        # No request states two purposes; what needs none is still there.
        actions, purposes = actions - scope.CONTENT_ACTIONS, set()
    if left.type != right.type or not actions or identifiers is None:
        return None
    return Effective(
        type=left.type,
        actions=actions,
        identifiers=identifiers,
        paths=tuple(dict.fromkeys((*left.paths, *right.paths))),
        purpose=next(iter(purposes), None),
        ceilings=(*left.ceilings, *right.ceilings),
    )


def _join_identifiers(left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...] | None:
    """Those that are not wider than another one; None when two have nothing in common."""
    every = tuple(dict.fromkeys((*left, *right)))
    if any(not _overlap(one, other) for one in every for other in every):
        return None
    return tuple(one for one in every if not any(one != other and _covers(one, other) for other in every))


def _covers(wide: str, narrow: str) -> bool:
    """Whether everything in ``narrow`` is in ``wide``. Whole names are compared (I05)."""
    if wide in (ANYTHING, narrow):
        return True
    if wide.endswith("/*"):
        return narrow != ANYTHING and narrow.partition("/")[0] == wide.partition("/")[0]
    return "@" not in wide and narrow.partition("@")[0] == wide


def _overlap(one: str, other: str) -> bool:
    if _covers(one, other) or _covers(other, one):
        return True
    name, _, version = one.partition("@")
    other_name, _, other_version = other.partition("@")
    # A name and a digest may be the same version; only the catalogue knows.
    named = version.startswith("sha256:") != other_version.startswith("sha256:")
    return name == other_name and named
