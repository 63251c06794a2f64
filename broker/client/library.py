"""What the caller may see and read, as folders of versions: the ground of filesystems and endpoints.

Listings are asked for each time. What a version *is* never changes, so a version whose trust path was
verified is kept by its digest; which version is the newest, or has a name, is asked again after a few
seconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from broker.canonical import parse_time
from broker.client.catalogue import Catalogue
from broker.client.reading import Reader
from broker.client.session import Session
from broker.client.settings import Profile
from broker.client.trust import LogMemory
from broker.client.versions import TrustedVersion, check_asked, fetch_version
from broker.errors import BrokerError, IntegrityFailure
from broker.names import Ref, parse_artifact, parse_part, parse_version

NAME_KEPT: Final = 5_000
"""Milliseconds that the digest behind a version's name is believed."""
MOST_KEPT: Final = 64
"""Versions, readers and names that are kept; the longest unused goes first."""

_DIGEST: Final = "sha256:"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An artifact in a listing: its kind, and the name of its newest version, if it has one."""

    collection: str
    name: str
    kind: str
    newest: str | None


@dataclass(frozen=True, kw_only=True)
class VersionListed:
    """A version in a listing; ``committed_ms`` is milliseconds since 1970."""

    name: str
    digest: str
    committed_ms: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Library:
    """Artifacts, versions and readers of one caller. Safe to share between threads.

    Args:
        session: The caller's session.
        log: What is known of the log.
        profile: Whose ``store_hosts`` may be contacted.
        purpose: Recorded with every grant, and a matter of policy.
        jobs: Connections that one long read uses at most.
    """

    def __init__(
        self,
        session: Session,
        log: LogMemory,
        profile: Profile,
        *,
        purpose: str | None = None,
        jobs: int = 4,
    ) -> None:
        self._session, self._log, self._profile = session, log, profile
        self._purpose, self._jobs = purpose, jobs
        self._catalogue = Catalogue(session, log)
        self._versions: OrderedDict[tuple[str, str], TrustedVersion] = OrderedDict()
        self._names: OrderedDict[Ref, tuple[int, str]] = OrderedDict()
        self._readers: OrderedDict[tuple[str, str], Reader] = OrderedDict()
        self._lock = threading.Lock()

    # -- listings -----------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        """Collections that hold an artifact which the caller may see, by name."""
        return sorted({listed.collection for listed in self.artifacts()})

    def artifacts(self, collection: str | None = None) -> list[Listed]:
        """Artifacts that the caller may see, by name; those of one collection, or all.

        Raises:
            InvalidName: ``collection`` is not a name.
        """
        within = None if collection is None else parse_part(collection, "collection")
        return [_parse_listed(item) for item in self._catalogue.iter_artifacts(within)]

    def versions(self, collection: str, name: str) -> list[VersionListed]:
        """The versions of an artifact, oldest first.

        Raises:
            NotFound: It does not exist, or is not visible.
        """
        ref = _ref(collection, name, None)
        try:
            return [_parse_version_listed(item) for item in self._catalogue.artifact(ref)["versions"]]
        except (KeyError, TypeError) as exc:
            raise IntegrityFailure("a listing of versions has another form than it must have") from exc

    # -- versions -----------------------------------------------------------------------------------------

    def version(self, collection: str, name: str, version: str | None = None) -> TrustedVersion:
        """A version, its trust path verified.

        Args:
            collection: Of the artifact.
            name: Of the artifact.
            version: Its name, or its digest ``sha256:<hex>``; None for the newest.

        Raises:
            NotFound: It does not exist, or is not visible.
            InvalidName: A name is not one.
            IntegrityFailure: The trust path does not hold.
        """
        ref = _ref(collection, name, version)
        found = self._find_kept(ref)
        if found is None:
            found = fetch_version(self._session, self._log, ref)
            with self._lock:
                # The same object for every name of a version: readers are kept by it.
                found = _touch(self._versions, (ref.artifact, found.digest)) or found
                _keep(self._versions, (ref.artifact, found.digest), found)
                _keep(self._names, ref, (self._session.clock.now(), found.digest))
        manifest = found.manifest
        check_asked(ref, artifact=manifest.artifact, version=manifest.version, digest=found.digest)
        return found

    def reader(self, version: TrustedVersion) -> Reader:
        """The reader of a version; the same one for every caller of this library."""
        place = version.manifest.artifact, version.digest
        with self._lock:
            found = _touch(self._readers, place)
            if found is None:
                found = Reader(
                    self._session,
                    self._log,
                    self._profile,
                    version,
                    purpose=self._purpose,
                    jobs=self._jobs,
                )
                _keep(self._readers, place, found)
            return found

    def close(self) -> None:
        """Close every reader."""
        with self._lock:
            readers = list(self._readers.values())
            self._readers.clear()
        for reader in readers:
            reader.close()

    def _find_kept(self, ref: Ref) -> TrustedVersion | None:
        """The version, if it is kept and still the one that the reference names."""
        digest = ref.version
        if digest is None or not digest.startswith(_DIGEST):
            digest = self._find_digest(ref)
        with self._lock:
            return None if digest is None else _touch(self._versions, (ref.artifact, digest))

    def _find_digest(self, ref: Ref) -> str | None:
        """The digest behind a name that was looked up before: remembered, or asked for again."""
        now = self._session.clock.now()
        with self._lock:
            kept = self._names.get(ref)
        if kept is None or 0 <= now - kept[0] <= NAME_KEPT:
            return None if kept is None else kept[1]
        digest = self._catalogue.version(ref).get("manifest")
        if not isinstance(digest, str):
            raise IntegrityFailure("the broker names a version without its digest")
        with self._lock:
            _keep(self._names, ref, (now, digest))
        return digest


def _ref(collection: str, name: str, version: str | None) -> Ref:
    return Ref(
        collection=parse_part(collection, "collection"),
        name=parse_part(name, "name"),
        version=None if version is None else parse_version(version),
    )


def _touch(kept: OrderedDict[Any, T], place: Any) -> T | None:
    if place in kept:
        kept.move_to_end(place)
    return kept.get(place)


def _keep(kept: OrderedDict[Any, T], place: Any, value: T) -> None:
    kept[place] = value
    kept.move_to_end(place)
    while len(kept) > MOST_KEPT:
        # Not closed: somebody may be reading through it. Its connections end with it.
        kept.popitem(last=False)


def _parse_listed(item: Any) -> Listed:
    try:
        collection, name = parse_artifact(item["artifact"])
        newest = None if item["newest"] is None else parse_version(item["newest"])
        return Listed(collection=collection, name=name, kind=str(item["kind"]), newest=newest)
    except (KeyError, TypeError, BrokerError) as exc:
        raise IntegrityFailure("a listing of artifacts has another form than it must have") from exc


def _parse_version_listed(item: Any) -> VersionListed:
    try:
        labels = {str(key): str(value) for key, value in item["labels"].items()}
        return VersionListed(
            name=parse_version(item["version"]),
            digest=parse_version(item["manifest"]),
            committed_ms=parse_time(item["committed_at"]),
            labels=labels,
        )
    except (KeyError, TypeError, AttributeError, BrokerError) as exc:
        raise IntegrityFailure("a listing of versions has another form than it must have") from exc
