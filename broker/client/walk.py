"""What is published: the files below a path, their plaintext digests, and whether they hold still.

Each file is read twice: once to digest it, once to encrypt it. The second pass is compared with the first,
segment by segment, and the file's size, time and inode before and after: a file that changes meanwhile is
an error, never a version that nobody can read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker import limits, names
from broker.envelope import digest, extents
from broker.envelope.manifest import ManifestFile
from broker.errors import Conflict, TooLarge, UsageError

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_HIDDEN_STATE: Final = ".broker"


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file to publish: its path in the version, and what it was when the walk saw it."""

    path: str
    source: Path
    size: int
    mtime_ns: int
    inode: int


def walk_files(root: Path) -> list[LocalFile]:
    """The files of a folder (dotfiles included), or the one file, ascending by the bytes of their path.

    Raises:
        UsageError: Nothing there, a symlink or a special file, or a name that no version can have.
        TooLarge: More files than a version has.
    """
    try:
        status = root.lstat()
        found = list(_walk(root, status))
    except OSError as exc:
        raise UsageError(f"cannot read {exc.filename or root}", why=exc.strerror) from exc
    if not found:
        raise UsageError(f"there is no file in {root}")
    found.sort(key=lambda file: file.path.encode("utf-8"))
    names.check_distinct_paths(file.path for file in found)
    return found


def _walk(root: Path, status: os.stat_result) -> Iterator[LocalFile]:
    if stat.S_ISREG(status.st_mode):
        yield _local_file(root, root.name, status)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _refuse_kind(root)
    waiting, count = [(root, "")], 0
    while waiting:
        folder, prefix = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                # The client's own state of an earlier download into this folder is not part of it.
                if path == _HIDDEN_STATE:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((Path(entry.path), path + "/"))
                    continue
                count += 1
                if count > limits.MAX_FILES:
                    raise TooLarge(f"a version has at most {limits.MAX_FILES} files")
                yield _local_file(Path(entry.path), path, entry.stat(follow_symlinks=False))


def _local_file(source: Path, path: str, status: os.stat_result) -> LocalFile:
    if not stat.S_ISREG(status.st_mode):
        raise _refuse_kind(source)
    return LocalFile(
        path=names.parse_path(path),
        source=source,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        inode=status.st_ino,
    )


def _refuse_kind(source: Path) -> UsageError:
    return UsageError(
        f"{source} is a symlink or not a regular file",
        why="a version holds regular files only; symlinks are not followed",
        next="replace it by what it points to, or leave it out",
    )


def open_file(file: LocalFile) -> int:
    """A descriptor of the file that the walk saw.

    Raises:
        Conflict: It is another one now.
        UsageError: It cannot be read.
    """
    try:
        fd = os.open(file.source, _READ)
    except OSError as exc:
        raise UsageError(f"cannot read {file.source}", why=exc.strerror) from exc
    try:
        check_unchanged(file, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_unchanged(file: LocalFile, fd: int) -> None:
    """Size, modification time and inode are what the walk saw.

    Raises:
        Conflict: They are not.
    """
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns, now.st_ino) != (file.size, file.mtime_ns, file.inode):
        raise changed(file)


def changed(file: LocalFile) -> Conflict:
    """The error for a file that does not hold still."""
    return Conflict(
        f"{file.source} changed while it was read",
        why="a version is one consistent set of files",
        next="publish when nothing writes to it any more",
    )


def read_exactly(file: LocalFile, fd: int, view: memoryview, offset: int) -> None:
    """Fill the whole buffer from ``offset``.

    Raises:
        Conflict: The file ends before.
        UsageError: It cannot be read.
    """
    at = 0
    try:
        while at < len(view):
            got = os.preadv(fd, [view[at:]], offset + at)
            if not got:
                raise changed(file)
            at += got
    except OSError as exc:
        raise UsageError(f"cannot read {file.source}", why=exc.strerror) from exc


@dataclass(frozen=True, kw_only=True)
class DigestedFile:
    """A file's entry in the manifest, and the digests of every segment of each of its extents."""

    signed: ManifestFile
    segments: tuple[tuple[bytes, ...], ...]


OnExtent = Callable[[int, tuple[bytes, ...]], None]
"""Takes (extent index, digests of its segments)."""


class Digester:
    """The first pass, with one reused buffer. Not shared between threads."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(limits.SEGMENT_SIZE))

    def digest_file(
        self, file: LocalFile, extent_size: int, on_extent: OnExtent | None = None
    ) -> DigestedFile:
        """SHA-256, segment and extent digests of a file.

        Args:
            file: As the walk saw it.
            extent_size: Plaintext bytes of an extent.
            on_extent: Told about each extent as soon as it is digested.

        Raises:
            Conflict: It changed while it was read.
            UsageError: It cannot be read.
        """
        whole, listed = hashlib.sha256(), []
        fd = open_file(file)
        try:
            for index in range(extents.extent_count(file.size, extent_size)):
                plain = extents.extent_plaintext_size(file.size, extent_size, index)
                hasher = digest.ExtentHasher()
                for segment in range(extents.segment_count(plain)):
                    start, length = extents.segment_plaintext_range(plain, segment)
                    view = self._buffer[:length]
                    read_exactly(file, fd, view, index * extent_size + start)
                    whole.update(view)
                    hasher.add_segment(view)
                listed.append(tuple(hasher.segments))
                if on_extent is not None:
                    on_extent(index, listed[-1])
            check_unchanged(file, fd)
        finally:
            os.close(fd)
        segments = digest.segment_list_bytes(listed)
        signed = ManifestFile(
            path=file.path,
            size=file.size,
            sha256=whole.digest(),
            extents=tuple(digest.extent_digest(list(found)) for found in listed),
            segments=hashlib.sha256(segments).digest(),
        )
        return DigestedFile(signed=signed, segments=tuple(listed))
