"""The slice: what Cedar sees of the facts, built by one total function and checked for gaps.

Cedar takes what it is not shown for what is not there: with a group edge or an entity missing it
answers Allow without an error where the full set says Deny. So the slice is closed, and
:func:`find_gap` proves it before anything is decided (I13).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from broker import canonical, limits
from broker.canonical import Json
from broker.model import Collection, Group, Principal
from broker.policy.request import (
    Actor,
    AdministrationTarget,
    ArtifactTarget,
    CollectionTarget,
    Context,
    Entity,
    GrantTarget,
    LedgerTarget,
    Mint,
    PolicyRequest,
    Target,
    TokenTarget,
    Uid,
    VersionTarget,
    target_collection,
)

_GROUP: Final = "Broker::Group"
_UNKNOWN_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - stands for "not known", nothing is bound to it


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One question in Cedar's terms.

    ``entities`` are Cedar's JSON entities by uid. ``members`` are the groups that the principal is to
    be found in. Ids are always structured, never part of a text that is parsed (I04).
    """

    principal: Uid
    action: str
    resource: Uid
    context: Json
    entities: dict[Uid, Entity]
    members: frozenset[Uid]

    def as_json(self) -> Json:
        """The decision's inputs: enough to decide again, byte for byte the same for the same facts."""
        return {
            "principal": _ref(self.principal),
            "action": {"type": "Broker::Action", "id": self.action},
            "resource": _ref(self.resource),
            "context": self.context,
            "entities": [self.entities[uid] for uid in sorted(self.entities)],
        }


def build_slice(request: PolicyRequest) -> Slice:
    """Everything that the decision may depend on. Total: it leaves judging gaps to :func:`find_gap`.

    The principal with its roles and all its groups; the target with all its ancestors; the groups
    that these name.

    Raises:
        ValueError: A time or an address of the context has no form that policy could read.
    """
    principal = principal_uid(request.principal.id)
    entities = [
        principal_entity(request.principal),
        *(_entity("Broker::Role", role) for role in request.principal.roles),
        *target_entities(request.target),
        *map(group_entity, request.memberships),
        *map(group_entity, request.audience),
    ]
    return Slice(
        principal=principal,
        action=request.action,
        resource=target_uid(request.target),
        context=context_record(request.context),
        entities=_by_uid(entities),
        members=frozenset((_GROUP, group.name) for group in request.memberships),
    )


def find_gap(slice: Slice) -> str | None:
    """What keeps the slice from being complete, or None.

    1. Every entity that is named, as principal, resource, parent or attribute, is there.
    2. The groups that the principal is in, by parents, are exactly its memberships.
    3. What is no group is above the principal or the resource, by parents.
    4. Nothing is there that nothing leads to: it would be the trace of an edge that is gone.
    """
    ends = [slice.principal, slice.resource]
    named = {*ends, *(uid for entity in slice.entities.values() for uid in _named(entity))}
    if missing := sorted(named - slice.entities.keys()):
        return f"{_show(missing[0])} is not known"
    if reachable_groups(slice.principal, slice.entities) != slice.members:
        return "the principal's groups are not all of its groups"
    things = {uid for uid in slice.entities if uid[0] != _GROUP}
    stray = (things - _reach(slice.entities, ends, _parents)) | (
        slice.entities.keys() - _reach(slice.entities, ends, _named)
    )
    if stray:
        return f"{_show(min(stray))} is there, but nothing leads to it"
    groups = len(slice.entities) - len(things)
    return "too many groups" if groups > limits.MAX_SLICE_GROUPS else None


def reachable_groups(principal: Uid, entities: Mapping[Uid, Entity]) -> frozenset[Uid]:
    """The groups above a principal, by parents.

    Raises:
        KeyError: An entity is named that is not there.
    """
    return frozenset(uid for uid in _reach(entities, [principal], _parents) if uid[0] == _GROUP)


def _reach(
    entities: Mapping[Uid, Entity], start: list[Uid], edges: Callable[[Entity], Iterator[Uid]]
) -> set[Uid]:
    reached: set[Uid] = set()
    waiting = list(start)
    while waiting:
        uid = waiting.pop()
        if uid not in reached:
            reached.add(uid)
            waiting.extend(edges(entities[uid]))
    return reached


def _parents(entity: Entity) -> Iterator[Uid]:
    return ((parent["type"], parent["id"]) for parent in entity["parents"])


def _named(entity: Entity) -> Iterator[Uid]:
    yield from _parents(entity)
    for value in entity["attrs"].values():
        for member in value if isinstance(value, list) else (value,):
            if isinstance(member, dict) and "__entity" in member:
                yield member["__entity"]["type"], member["__entity"]["id"]


def _show(uid: Uid) -> str:
    return f"{uid[0]} {uid[1][: limits.MAX_NAME_IN_LEDGER]!a}"


# -- each thing as an entity ------------------------------------------------------------------------------


def principal_uid(id: str) -> Uid:
    """``user:ana`` is ``Broker::User``, anything else ``Broker::Workload``; the id is the whole text."""
    return ("Broker::User" if id.startswith("user:") else "Broker::Workload"), id


def principal_entity(principal: Principal) -> Entity:
    """A principal, member of its roles and groups; ``enabled`` is the positive fact.

    What an issuer said of a workload are its tags. Without any there is no such member: a schema of
    the first release has no tags there, and goes on deciding about everybody else.
    """
    kind, id = principal_uid(principal.id)
    parents = [("Broker::Role", role) for role in principal.roles]
    parents += [(_GROUP, group) for group in principal.groups]
    made = _entity(kind, id, {"id": principal.id, "enabled": principal.disabled is False}, parents)
    tags = dict(principal.attributes) if isinstance(principal, Actor) else {}
    return {**made, "tags": tags} if tags else made


def group_entity(group: Group) -> Entity:
    """A group, member of its parents."""
    return _entity(_GROUP, group.name, {}, [(_GROUP, parent) for parent in group.parents])


def collection_entity(collection: Collection) -> Entity:
    """A collection with the groups that may read and publish."""
    attrs = {
        "collection": _entity_value(("Broker::Collection", collection.name)),
        "readers": [_entity_value((_GROUP, group)) for group in collection.readers],
        "publishers": [_entity_value((_GROUP, group)) for group in collection.publishers],
    }
    return _entity("Broker::Collection", collection.name, attrs)


def target_uid(target: Target) -> Uid:
    """The entity that a target is."""
    match target:
        case CollectionTarget():
            return "Broker::Collection", target.collection.name
        case ArtifactTarget():
            return "Broker::Artifact", f"{target.collection.name}/{target.name}"
        case VersionTarget():
            return "Broker::Version", f"{target.collection.name}/{target.name}@{target.version}"
        case LedgerTarget():
            return "Broker::Ledger", "log"
        case AdministrationTarget():
            return "Broker::Administration", target.area
        case GrantTarget():
            return "Broker::Grant", target.id
        case TokenTarget():
            return "Broker::Token", target.id


def target_entities(target: Target) -> list[Entity]:
    """The target and all its ancestors."""
    kind, id = target_uid(target)
    collection = target_collection(target)
    if collection is None:
        attrs = {"owner": target.owner} if isinstance(target, GrantTarget | TokenTarget) else {}
        return [_entity(kind, id, attrs)]
    found = [collection_entity(collection)]
    if isinstance(target, ArtifactTarget | VersionTarget):
        found.append(_artifact_entity(collection, target.name, target.kind))
    if isinstance(target, VersionTarget):
        found.append(_version_entity(target))
    return found


def _artifact_entity(collection: Collection, name: str, kind: str) -> Entity:
    parent = ("Broker::Collection", collection.name)
    attrs = {"collection": _entity_value(parent), "kind": kind}
    return _entity("Broker::Artifact", f"{collection.name}/{name}", attrs, [parent])


def _version_entity(target: VersionTarget) -> Entity:
    collection = ("Broker::Collection", target.collection.name)
    artifact = ("Broker::Artifact", f"{target.collection.name}/{target.name}")
    attrs = {
        "collection": _entity_value(collection),
        "artifact": _entity_value(artifact),
        "kind": target.kind,
        # A version without a tier has the empty one, which no policy takes for standard.
        "tier": target.labels.get("tier", ""),
    }
    return {**_entity(*target_uid(target), attrs, [artifact]), "tags": dict(target.labels)}


def context_record(context: Context) -> Json:
    """The context as ``Broker::Context`` of the schema.

    Raises:
        ValueError: The time or the address has no such form.
    """
    try:
        time = {
            "now": canonical.format_time(context.now),
            "weekday": datetime.fromtimestamp(context.now // 1000, tz=UTC).isoweekday(),
        }
    except (OverflowError, OSError, TypeError) as exc:
        raise ValueError("the time is out of range") from exc
    record = {
        "purpose": context.purpose,
        "network": _network(context.address),
        "time": time,
        "usage": {"asked": context.asked_bytes, "opened": context.opened_bytes},
        "risk": {"incidents": context.incidents},
        "approvals": list(context.approvals),
    }
    return record if context.mint is None else {**record, "mint": _mint(context.mint)}


def _mint(mint: Mint) -> Json:
    return {
        "own_key": mint.own_key,
        "ttl": mint.ttl,
        "max_bytes": mint.max_bytes,
        "types": list(mint.types),
        "actions": list(mint.actions),
        "identifiers": list(mint.identifiers),
    }


def _network(address: str | None) -> Json:
    if address is None:
        return {"known": False, "address": _UNKNOWN_ADDRESS}
    parsed = ipaddress.ip_address(address)
    # ::ffff:10.0.0.1 is 10.0.0.1 to whoever wrote a range of IPv4 addresses.
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return {"known": True, "address": str(mapped or parsed)}


def _ref(uid: Uid) -> Json:
    return {"type": uid[0], "id": uid[1]}


def _entity_value(uid: Uid) -> Json:
    return {"__entity": _ref(uid)}


def _entity(kind: str, id: str, attrs: Json | None = None, parents: Iterable[Uid] = ()) -> Entity:
    return {"uid": _ref((kind, id)), "attrs": attrs or {}, "parents": [_ref(parent) for parent in parents]}


def _by_uid(entities: Iterable[Entity]) -> dict[Uid, Entity]:
    return {(entity["uid"]["type"], entity["uid"]["id"]): entity for entity in entities}
