"""Step 3: find what was asked for. What is unknown and what is invisible get one answer."""

from __future__ import annotations

import json
from dataclasses import dataclass

from broker.errors import NotFound
from broker.model import Artifact, Collection, Principal, Version
from broker.policy import request as ask
from broker.ports import View
from broker.services import deciding
from broker.services.house import House


@dataclass(frozen=True, kw_only=True)
class Found:
    """A committed version, its collection, and the decision that made it visible."""

    collection: Collection
    version: Version
    describe: deciding.Answer

    @property
    def target(self) -> ask.VersionTarget:
        """The version as policy sees it."""
        return version_target(self.collection, self.version)


def version_target(collection: Collection, version: Version) -> ask.VersionTarget:
    """A committed version as policy sees it: its labels are those that its key is bound to."""
    return ask.VersionTarget(
        collection=collection,
        name=version.name,
        version=version.version,
        kind=version.kind,
        labels=json.loads(version.labels),
    )


def resolve_version(view: View, collection: str, name: str, version: str | None) -> Version | None:
    """The committed version of that name or manifest digest; None means the newest."""
    if version is None:
        version = view.newest_version(collection, name)
    elif version.startswith("sha256:"):
        version = view.version_by_digest(collection, name, version)
    return None if version is None else view.find(Version, collection, name, version)


def find_visible(
    house: House,
    view: View,
    principal: Principal,
    collection: str,
    name: str,
    version: str | None,
    *,
    network: str = "",
) -> Found | None:
    """The version, if it exists and policy lets the principal describe it; else None."""
    row = resolve_version(view, collection, name, version)
    home = view.find(Collection, collection)
    if row is None or home is None:
        return None
    answer = deciding.decide(house, view, principal, "describe", version_target(home, row), network=network)
    return Found(collection=home, version=row, describe=answer) if answer.allowed else None


def artifact_visible(
    house: House, view: View, principal: Principal, artifact: Artifact, *, network: str = ""
) -> bool:
    """Whether policy lets the principal describe the artifact."""
    home = view.find(Collection, artifact.collection)
    if home is None:
        return False
    target = ask.ArtifactTarget(collection=home, name=artifact.name, kind=artifact.kind)
    return deciding.decide(house, view, principal, "describe", target, network=network).allowed


def not_found(artifact: str, version: str | None) -> NotFound:
    """The one answer for what does not exist and for what the caller may not see."""
    shown = f"{artifact}@{version}" if version else artifact
    return NotFound(
        f"{shown} is not found",
        why="there is no such version, or you may not see it",
        next="broker ls, or ask the owners of the collection to add you to its readers",
    )
