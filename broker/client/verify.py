"""``verify``: are these local files what the publisher signed?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from broker.client.folder import STATE, Folder
from broker.client.resume import LocalReader
from broker.client.session import Session
from broker.client.trust import LogMemory
from broker.client.versions import TrustedVersion, fetch_version, include_of, selected_files
from broker.envelope.manifest import Manifest
from broker.errors import IntegrityFailure, NotFound, UsageError
from broker.names import Ref

_MOST_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How local files differ from a version. All three empty: they do not.

    Attributes:
        differing: In both, with other content.
        missing: In the version only.
        extra: On disk only (the client's own ``.broker`` aside); empty when a path was asked for.
    """

    artifact: str
    version: str
    manifest: str
    files: int
    bytes: int
    differing: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every file of the version is there as it was signed. Extra files do not matter."""
        return not self.differing and not self.missing


def compare(session: Session, log: LogMemory, root: Path, ref: Ref) -> Comparison:
    """Read local files and compare them with a version, its manifest's trust path included.

    Args:
        session: Whom to ask for the manifest.
        log: What is known of the log.
        root: The folder, or the one file that ``ref`` names by a path or that the version consists of.
        ref: The version, or one file or folder of it.

    Raises:
        NotFound: No such version or path in it.
        UsageError: There is nothing at ``root``.
        IntegrityFailure: The manifest's trust path does not hold.
    """
    version = fetch_version(session, log, ref)
    files = selected_files(version.manifest, include_of(ref, ()), ())
    if not files:
        raise NotFound(f"there is no such file in {version.ref}")
    if root.is_file() and len(files) == 1:
        return _compare_file(version, files[0], root)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder")
    return _compare_folder(version, files, root, whole=ref.path is None)


def check_same(found: Comparison) -> None:
    """The local files are what the publisher signed.

    Raises:
        IntegrityFailure: They are not; the message names the files.
    """
    if found.same:
        return
    listed = [f"{path} differs" for path in found.differing] + [
        f"{path} is missing" for path in found.missing
    ]
    more = f"; and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    raise IntegrityFailure(
        f"the local files are not {found.artifact}@{found.version}",
        why="; ".join(listed[:_MOST_NAMED]) + more,
        next=f"broker get {found.artifact}@{found.version} into an empty folder",
    )


def _compare_file(version: TrustedVersion, file: int, root: Path) -> Comparison:
    fd = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        same = LocalReader().matches(fd, version.manifest, file)
    finally:
        os.close(fd)
    differing = () if same else (version.manifest.files[file].path,)
    return _result(version, (file,), differing=differing, missing=(), extra=())


def _compare_folder(
    version: TrustedVersion, files: tuple[int, ...], root: Path, *, whole: bool
) -> Comparison:
    differing, missing = [], []
    reader, folder = LocalReader(), Folder(root, create=False)
    try:
        for file in files:
            path = version.manifest.files[file].path
            state = _look(reader, folder, version.manifest, file)
            if state is None:
                missing.append(path)
            elif not state:
                differing.append(path)
    finally:
        folder.close()
    known = {version.manifest.files[file].path for file in files}
    extra = tuple(sorted(path for path in _local_paths(root) if path not in known)) if whole else ()
    return _result(version, files, differing=tuple(differing), missing=tuple(missing), extra=extra)


def _look(reader: LocalReader, folder: Folder, manifest: Manifest, file: int) -> bool | None:
    try:
        with folder.reading(manifest.files[file].path) as fd:
            return None if fd is None else reader.matches(fd, manifest, file)
    except UsageError:
        return False  # a symlink or a folder in its place


def _local_paths(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        if inside == ".":
            folders[:] = [name for name in folders if name != STATE]
        for name in files:
            yield name if inside == "." else f"{inside}/{name}"


def _result(
    version: TrustedVersion,
    files: tuple[int, ...],
    *,
    differing: tuple[str, ...],
    missing: tuple[str, ...],
    extra: tuple[str, ...],
) -> Comparison:
    return Comparison(
        artifact=version.manifest.artifact,
        version=version.manifest.version,
        manifest=version.digest,
        files=len(files),
        bytes=sum(version.manifest.files[file].size for file in files),
        differing=differing,
        missing=missing,
        extra=extra,
    )
