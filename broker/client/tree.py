"""The files of a version as folders: a manifest has paths only, and whoever lists wants to see a tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.envelope.manifest import Manifest, ManifestFile


@dataclass(frozen=True, kw_only=True)
class FileTree:
    """One version's files and folders.

    Attributes:
        files: Path -> file.
        folders: Path of a folder (``""`` for the root) -> paths of what is directly in it, in the order
            of the manifest. A folder exists because of a file below it; none is empty but a root.
    """

    files: Mapping[str, ManifestFile]
    folders: Mapping[str, tuple[str, ...]]


def build_tree(manifest: Manifest) -> FileTree:
    """The tree of a manifest; no path in it is both a file and a folder (names.check_distinct_paths)."""
    # Dictionaries keep the order in which a key came first: they are used as ordered sets.
    inside: dict[str, dict[str, None]] = {"": {}}
    for file in manifest.files:
        child = file.path
        while True:
            folder = child.rpartition("/")[0]
            known = folder in inside
            inside.setdefault(folder, {})[child] = None
            if known:
                break
            child = folder
    return FileTree(
        files={file.path: file for file in manifest.files},
        folders={folder: tuple(children) for folder, children in inside.items()},
    )
