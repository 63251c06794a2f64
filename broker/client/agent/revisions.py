"""Repositories and revisions, as a Hub client names them, and the versions behind them.

A repository is an artifact. Its revision ``main`` is the newest version; a version is a tag; and the
commit of a version is the first 40 hex digits of its manifest's digest, so a commit names exactly one
content for ever, as Hub clients rely on when they keep files.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from broker.client.library import Library, VersionListed
from broker.client.versions import TrustedVersion
from broker.errors import InvalidRequest, NotFound
from broker.names import parse_part, parse_version

MAIN: Final = "main"
COMMIT_DIGITS: Final = 40
REPO_TYPES: Final = {"model": "checkpoint", "dataset": "dataset"}
"""What a Hub client calls a repository, and the kind of the artifact."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_DIGEST: Final = "sha256:"
_MOST_KEPT: Final = 1024


class Missing(NotFound):
    """Something that a Hub client named is not there, or not visible.

    Args:
        part: What it is: ``Repo``, ``Revision`` or ``Entry``.
        commit: The commit in which an entry is missing.
    """

    def __init__(
        self, what: str, *, part: str, commit: str = "", why: str | None = None, next: str | None = None
    ) -> None:
        super().__init__(what, why=why, next=next)
        self.part = part
        self.commit = commit


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository as it was named: ``kind`` is ``model`` or ``dataset``; the names are not checked yet."""

    kind: str
    collection: str
    name: str

    @property
    def id(self) -> str:
        """``collection/name``."""
        return f"{self.collection}/{self.name}"


def commit_of(digest: str) -> str:
    """The commit of the version with this manifest digest: 40 hex digits."""
    return digest.removeprefix(_DIGEST)[:COMMIT_DIGITS]


class Revisions:
    """Finds the version that a revision means. Safe to share between threads."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._digests: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, repo: Repo, revision: str = MAIN) -> TrustedVersion:
        """The version behind a revision: ``main``, a commit, a version's name or its manifest digest.

        Raises:
            Missing: There is no such repository of that type, or no such revision in it.
            IntegrityFailure: The version's trust path does not hold.
        """
        _check_name(repo)
        version = self._version(repo, revision)
        if version.manifest.kind != REPO_TYPES[repo.kind]:
            found = next(name for name, kind in REPO_TYPES.items() if kind == version.manifest.kind)
            raise Missing(
                f"{repo.id} is a {found}, not a {repo.kind}",
                part="Repo",
                next=f"ask for the repo type {found}",
            )
        self._remember(repo, version.digest)
        return version

    def _version(self, repo: Repo, revision: str) -> TrustedVersion:
        wanted = None if revision == MAIN else self._name_of(repo, revision)
        try:
            return self._library.version(repo.collection, repo.name, wanted)
        except InvalidRequest as exc:
            raise _no_revision(repo, revision) from exc
        except NotFound as exc:
            self.versions(repo)  # raises when the whole repository is not there
            raise _no_revision(repo, revision) from exc

    def _name_of(self, repo: Repo, revision: str) -> str:
        """What the broker knows the revision as. 40 hex digits are a commit, never the name of a version.

        Clients keep files under a commit and pin it: whoever may publish must not choose what it means.
        """
        if not _COMMIT.fullmatch(revision):
            return _parse_revision(repo, revision)
        with self._lock:
            known = self._digests.get((repo.id, revision))
        if known is not None:
            return known
        found = [item.digest for item in self.versions(repo) if commit_of(item.digest) == revision]
        # Two contents under one commit would need a collision: then it names neither.
        if len(found) != 1:
            raise _no_revision(repo, revision)
        return found[0]

    def versions(self, repo: Repo) -> list[VersionListed]:
        """The versions of a repository of either type, oldest first.

        Raises:
            Missing: It is not there, or not visible.
        """
        _check_name(repo)
        try:
            return self._library.versions(repo.collection, repo.name)
        except NotFound as exc:
            raise no_repo(repo) from exc

    def _remember(self, repo: Repo, digest: str) -> None:
        with self._lock:
            self._digests[repo.id, commit_of(digest)] = digest
            while len(self._digests) > _MOST_KEPT:
                self._digests.popitem(last=False)


def _check_name(repo: Repo) -> None:
    try:
        parse_part(repo.collection, "collection")
        parse_part(repo.name, "name")
    except InvalidRequest as exc:
        raise no_repo(repo) from exc


def _parse_revision(repo: Repo, revision: str) -> str:
    try:
        return parse_version(revision)
    except InvalidRequest as exc:
        raise _no_revision(repo, revision) from exc


def no_repo(repo: Repo) -> Missing:
    """That a repository does not exist, or is not visible."""
    return Missing(
        f"there is no {repo.kind} {repo.id[:200]!a}, or it is not visible to you",
        part="Repo",
        next="broker ls",
    )


def _no_revision(repo: Repo, revision: str) -> Missing:
    return Missing(
        f"{repo.id} has no version {revision[:200]!a}", part="Revision", next=f"broker ls {repo.id}"
    )
