"""What a decision is asked about: who, which act, on what, in which circumstances.

A request holds rows of one snapshot and nothing else; :mod:`broker.policy.entities` turns it into
what Cedar sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from broker import limits
from broker.canonical import Json
from broker.model import Collection, Group, Principal

ACTIONS: Final = (
    "describe",
    "read",
    "publish",
    "create-collection",
    "audit",
    "administer",
    "revoke-own",
    "mint",
)
"""Every act that policy decides on."""

AREAS: Final = ("principals", "collections", "issuers", "policies", "revocations", "keys")
"""What ``administer`` may be asked for."""


@dataclass(frozen=True, kw_only=True)
class Actor(Principal):
    """A workload as it asks now: its row, with what its own token added under the issuer's mapping.

    ``roles`` and ``groups`` are those of the row and of the mapping together; ``attributes`` become
    the entity's tags. Never stored: two jobs of one principal may differ.
    """

    attributes: Mapping[str, str] = field(default_factory=dict)


Effect = Literal["allow", "deny", "needs-approval"]
Reason = Literal["permitted", "forbidden", "not-permitted", "incomplete", "unfit", "error"]


@dataclass(frozen=True, kw_only=True)
class CollectionTarget:
    """A collection, as stored or (see :func:`new_collection`) as the first publish would make it."""

    collection: Collection


@dataclass(frozen=True, kw_only=True)
class ArtifactTarget:
    """``collection/name`` of a kind (``checkpoint`` or ``dataset``)."""

    collection: Collection
    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class VersionTarget:
    """A version, committed or about to be published. ``labels`` without ``tier`` fit no tier."""

    collection: Collection
    name: str
    version: str
    kind: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LedgerTarget:
    """The ledger."""


@dataclass(frozen=True, kw_only=True)
class AdministrationTarget:
    """One of :data:`AREAS`."""

    area: str


@dataclass(frozen=True, kw_only=True)
class GrantTarget:
    """A grant, and the id of the principal that it was made for."""

    id: str
    owner: str


@dataclass(frozen=True, kw_only=True)
class TokenTarget:
    """An access token, and the id of the principal that it was issued to."""

    id: str
    owner: str


Target: TypeAlias = (
    CollectionTarget
    | ArtifactTarget
    | VersionTarget
    | LedgerTarget
    | AdministrationTarget
    | GrantTarget
    | TokenTarget
)


@dataclass(frozen=True, kw_only=True)
class Mint:
    """The token that somebody wants to derive from the one that they hold.

    ``own_key``: it is bound to the key that asks, not to another. ``ttl`` is in seconds;
    ``max_bytes`` the most that it may open, 0 when nothing bounds it. ``types``, ``actions`` and
    ``identifiers`` are all that its ``authorization_details`` name.
    """

    own_key: bool
    ttl: int
    max_bytes: int
    types: tuple[str, ...]
    actions: tuple[str, ...]
    identifiers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The circumstances of a request. Every member must be said: policy never meets a missing one.

    ``now`` is milliseconds since 1970; ``purpose`` is empty when none was given; ``address`` is the
    caller's IPv4 or IPv6 address, None when it is not known; ``asked_bytes`` is the plaintext size of
    what this request asks for; ``opened_bytes`` what keys given to this principal have opened so far;
    ``incidents`` counts open incidents about the principal; ``approvals`` are the ids of the principals
    who approved this very request. ``mint`` belongs to the action of that name, and to no other.
    """

    now: int
    purpose: str
    address: str | None
    asked_bytes: int
    opened_bytes: int
    incidents: int
    approvals: tuple[str, ...]
    mint: Mint | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyRequest:
    """One question to policy, with everything that the answer may depend on.

    ``memberships`` is the transitive closure of ``principal.groups``, ``audience`` that of the readers
    and publishers of the collection (empty when the target has none): exactly, as
    :func:`close_groups` makes them. A closure that lacks a group is a deny, never a guess (I13).
    """

    principal: Principal
    memberships: tuple[Group, ...]
    action: str
    target: Target
    audience: tuple[Group, ...]
    context: Context


@dataclass(frozen=True, kw_only=True)
class PolicyDecision:
    """The answer, with what determined it.

    ``policies`` are the sorted ``@id`` of the policies that permitted, or of those that forbade; empty
    when nothing permits. ``bundle`` is the digest of the bundle that decided. ``detail`` says for
    ``incomplete``, ``unfit`` and ``error`` what was wrong; it is for the log, not for the caller.
    """

    effect: Effect
    policies: tuple[str, ...]
    bundle: str
    reason: Reason
    detail: str = ""

    def as_json(self) -> Json:
        """``effect``, ``policies`` and ``bundle``, as an entry of the ledger records them."""
        return {"effect": self.effect, "policies": list(self.policies), "bundle": self.bundle}


def target_collection(target: Target) -> Collection | None:
    """The collection that a target lies in, or None for what lies in none."""
    if isinstance(target, CollectionTarget | ArtifactTarget | VersionTarget):
        return target.collection
    return None


def audience_names(target: Target) -> tuple[str, ...]:
    """Names of the groups that may read or publish where the target lies."""
    collection = target_collection(target)
    return (*collection.readers, *collection.publishers) if collection else ()


def new_collection(name: str) -> Collection:
    """The collection that a first publish makes: read and published by the group of the same name."""
    return Collection(name=name, readers=(name,), publishers=(name,))


def close_groups(names: Iterable[str], find: Callable[[str], Group | None]) -> tuple[Group, ...]:
    """The groups of these names and all their ancestors, sorted by name.

    A group that ``find`` does not know is left out, and so is everything past
    ``limits.MAX_SLICE_GROUPS`` groups or ``limits.MAX_GROUP_DEPTH`` levels: the engine then denies,
    because the closure is not complete.

    Args:
        names: Where to begin.
        find: Looks a group up in the snapshot that the decision is made on.
    """
    found: dict[str, Group] = {}
    level = list(dict.fromkeys(names))
    for _ in range(limits.MAX_GROUP_DEPTH):
        groups = [group for name in level if name not in found and (group := find(name)) is not None]
        found.update((group.name, group) for group in groups[: limits.MAX_SLICE_GROUPS - len(found)])
        level = list(dict.fromkeys(parent for group in groups for parent in group.parents))
    return tuple(sorted(found.values(), key=_name))


def _name(group: Group) -> str:
    return group.name


def collect_request(
    *,
    principal: Principal,
    action: str,
    target: Target,
    context: Context,
    find_group: Callable[[str], Group | None],
) -> PolicyRequest:
    """A request whose groups are looked up in one snapshot.

    Args:
        principal: Who asks.
        action: One of :data:`ACTIONS`.
        target: On what.
        context: In which circumstances.
        find_group: Looks a group up in the snapshot that the other rows came from.
    """
    return PolicyRequest(
        principal=principal,
        memberships=close_groups(principal.groups, find_group),
        action=action,
        target=target,
        audience=close_groups(audience_names(target), find_group),
        context=context,
    )


Uid: TypeAlias = tuple[str, str]
"""(entity type, entity id)."""
Entity: TypeAlias = dict[str, Any]
