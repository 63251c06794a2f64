"""One library for all readers of a process that read as the same caller; a forked child starts anew.

Libraries of filesystems are made when many threads, and the workers that they fork, open files by the
thousand: they share connections, tokens, verified manifests and readers.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from broker.client import settings
from broker.client.library import Library
from broker.client.reading import Reader
from broker.client.sdk import Client
from broker.client.tree import FileTree, build_tree
from broker.client.versions import TrustedVersion
from broker.errors import ConfigurationError
from broker.names import Ref

TREES_KEPT: Final = 16


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who reads, and how: the same options in the same environment are the same caller.

    Attributes:
        profile: Name of a profile; None for what the environment says.
        profile_dir: Its folder instead.
        purpose: Recorded with every grant.
        jobs: Connections that one long read uses at most.
        environment: As it was when the caller was named.
    """

    profile: str | None
    profile_dir: str | None
    purpose: str | None
    jobs: int
    environment: settings.Environment


def caller_environment() -> settings.Environment:
    """The environment as far as it is a value: two that are equal name the same callers.

    Raises:
        ConfigurationError: A variable is not valid.
    """
    # Left out are an object that is another one each time (the client looks for it by itself), and what
    # says nothing about who reads.
    return replace(settings.read_environment(), actions=None, output=None, no_color=False)


def name_caller(
    *, profile: str | None, profile_dir: str | None, purpose: str | None, jobs: int | None
) -> Caller:
    """The caller with these options in this environment; options come first.

    Raises:
        ConfigurationError: ``jobs``, or a variable, is not valid.
    """
    environment = caller_environment()
    return Caller(
        profile=profile,
        profile_dir=profile_dir,
        purpose=environment.purpose if purpose is None else purpose,
        jobs=environment.jobs or settings.DEFAULT_JOBS if jobs is None else settings.check_jobs(jobs),
        environment=environment,
    )


class SharedLibrary:
    """A caller's library and the trees of its versions. Safe to share between threads.

    Raises:
        ConfigurationError: There is no such profile, or the environment has changed since the caller was
            named.
    """

    def __init__(self, caller: Caller) -> None:
        if caller.profile_dir is None:
            if caller_environment() != caller.environment:
                # Who reads was settled when the caller was named: never somebody else without a word.
                raise ConfigurationError(
                    "the environment is another one than when this filesystem was made",
                    next="make the filesystem again",
                )
            client = Client.from_profile(caller.profile)
        else:
            client = Client(settings.load_profile(Path(caller.profile_dir), url=caller.environment.url))
        self.library: Library = client.library(purpose=caller.purpose, jobs=caller.jobs)
        self._trees: OrderedDict[str, FileTree] = OrderedDict()
        self._lock = threading.Lock()

    def version(self, ref: Ref) -> TrustedVersion:
        """The version that a reference names (Raises: as ``Library.version``)."""
        return self.library.version(ref.collection, ref.name, ref.version)

    def reader(self, ref: Ref) -> Reader:
        """The reader of that version."""
        return self.library.reader(self.version(ref))

    def tree(self, version: TrustedVersion) -> FileTree:
        """The version's files as folders, kept for the versions that were looked at last."""
        with self._lock:
            if (found := self._trees.get(version.digest)) is None:
                found = self._trees[version.digest] = build_tree(version.manifest)
            self._trees.move_to_end(version.digest)
            while len(self._trees) > TREES_KEPT:
                self._trees.popitem(last=False)
            return found


class _Process:
    """The libraries of this process."""

    def __init__(self) -> None:
        self.libraries: dict[Caller, SharedLibrary] = {}
        self.lock = threading.Lock()
        self.parent: _Process | None = None


_process = _Process()


def shared_library(caller: Caller) -> SharedLibrary:
    """The library of a caller in this process.

    Raises:
        ConfigurationError: There is no such profile, or it is not valid.
    """
    here = _process
    with here.lock:
        if (found := here.libraries.get(caller)) is None:
            found = here.libraries[caller] = SharedLibrary(caller)
        return found


def _start_anew(**_: Any) -> None:
    """In a forked child: connections, keys, nonces, threads and locks of its own.

    What the parent had is kept out of reach instead of being freed: to close it here could wait for a
    thread that does not exist in the child, or say goodbye in a conversation that the parent still has.
    """
    global _process
    parent, _process = _process, _Process()
    _process.parent = parent


os.register_at_fork(after_in_child=_start_anew)
