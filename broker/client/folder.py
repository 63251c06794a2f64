"""The folder that a download lands in. Nothing outside of it is ever read or written.

Every path is walked from the folder's own descriptor, component by component, without following a
symlink; so neither a link that was there before nor one that appears meanwhile leads out (I04).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker.errors import BrokerError, ConfigurationError, DiskFull, UsageError

STATE: Final = ".broker"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def disk_error(exc: OSError, what: str) -> BrokerError:
    """What a failed write means: a full disk keeps what is done, anything else is a configuration fault."""
    if exc.errno in _FULL:
        return DiskFull(
            "the disk is full", why=what, next="make room, then run the same command again: it resumes"
        )
    return ConfigurationError(f"cannot write {what}", why=exc.strerror or type(exc).__name__)


class Folder:
    """A folder, held open. Its state lives in ``.broker`` below it.

    Args:
        path: Made (with parents) when ``create`` is set.

    Raises:
        UsageError: It is not a folder, or does not exist and may not be made.
        ConfigurationError: It cannot be made or opened.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        try:
            if create:
                path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as exc:
            raise UsageError(f"{path} is not a folder") from exc
        except OSError as exc:
            raise disk_error(exc, str(path)) from exc

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._fd)

    @contextlib.contextmanager
    def parent(self, path: str, *, create: bool) -> Iterator[tuple[int, str]]:
        """Descriptor of the folder that holds ``path``, and the last component.

        Args:
            path: Relative, as :func:`broker.names.parse_path` takes it, or one of our own below ``.broker``.
            create: Make the folders on the way.

        Raises:
            UsageError: A component is a symlink or not a folder.
            FileNotFoundError: A folder is missing and ``create`` is not set.
            DiskFull, ConfigurationError: A folder cannot be made.
        """
        *folders, name = path.split("/")
        fd = os.dup(self._fd)
        try:
            for folder in folders:
                inner = self._step(fd, folder, path, create=create)
                os.close(fd)
                fd = inner
            yield fd, name
        finally:
            os.close(fd)

    def _step(self, fd: int, folder: str, path: str, *, create: bool) -> int:
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, dir_fd=fd)
            return os.open(folder, _FOLDER, dir_fd=fd)
        except FileNotFoundError:
            raise
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UsageError(
                    f"{self.path / path}: {folder!r} on the way is a symlink or not a folder",
                    why="nothing is written through symlinks",
                    next="move it away, or choose another destination",
                ) from exc
            raise disk_error(exc, str(self.path / path)) from exc

    def open_read(self, path: str) -> int | None:
        """A descriptor of an existing regular file, or None when there is none.

        Raises:
            UsageError: Something else is in its place (a symlink, a folder, a device).
        """
        try:
            with self.parent(path, create=False) as (fd, name):
                found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._in_the_way(path) from exc
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise self._in_the_way(path)
        return found

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[int | None]:
        """:meth:`open_read`, closed at the end."""
        fd = self.open_read(path)
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)

    def _in_the_way(self, path: str) -> UsageError:
        return UsageError(
            f"{self.path / path} is in the way",
            why="it is a symlink, a folder or not readable",
            next="move it away, or choose another destination",
        )

    def open_write(self, path: str, *, size: int) -> int:
        """A descriptor of a file of exactly ``size`` bytes with room on the disk; what it held stays.

        Raises:
            DiskFull: There is no room for it.
            ConfigurationError, UsageError: It cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with self.parent(path, create=True) as (fd, name):
                found = os.open(name, flags, 0o666, dir_fd=fd)
        except OSError as exc:
            raise disk_error(exc, str(self.path / path)) from exc
        try:
            # Room is taken now: a disk that is too small is found before the bytes are fetched, and
            # writing into space that is already there is far faster.
            os.ftruncate(found, size)
            if size:
                _allocate(found, size)
        except OSError as exc:
            os.close(found)
            raise disk_error(exc, str(self.path / path)) from exc
        return found

    def rename(self, old: str, new: str) -> None:
        """Give a finished file its final name, in one step.

        Raises:
            UsageError: A folder is in its place, or a component is a symlink.
            DiskFull, ConfigurationError: It cannot be done.
        """
        try:
            with (
                self.parent(old, create=False) as (old_fd, old_name),
                self.parent(new, create=True) as (new_fd, new_name),
            ):
                os.rename(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        except (IsADirectoryError, NotADirectoryError) as exc:
            raise self._in_the_way(new) from exc
        except OSError as exc:
            raise disk_error(exc, str(self.path / new)) from exc

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        with contextlib.suppress(FileNotFoundError), self.parent(path, create=False) as (fd, name):
            os.unlink(name, dir_fd=fd)

    def exists(self, path: str) -> bool:
        """Whether anything has that name, a dangling symlink included."""
        try:
            with self.parent(path, create=False) as (fd, name):
                os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def list(self, path: str) -> list[str]:
        """Names in a folder of ours; empty when there is none."""
        try:
            with self.parent(f"{path}/-", create=False) as (fd, _):
                return os.listdir(fd)
        except FileNotFoundError:
            return []

    def read(self, path: str, *, most: int) -> bytes | None:
        """The bytes of a file of our own of at most ``most`` bytes; None when there is none such."""
        fd = self.open_read(path)
        if fd is None:
            return None
        with os.fdopen(fd, "rb") as file:
            data = file.read(most + 1)
        return data if len(data) <= most else None

    def write(self, path: str, data: bytes) -> None:
        """Replace a small file of our own in one step.

        Raises:
            DiskFull, ConfigurationError: It cannot be written.
        """
        fresh = f"{path}.new"
        try:
            with self.parent(fresh, create=True) as (fd, name):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o666, dir_fd=fd), "wb") as file:
                    file.write(data)
        except OSError as exc:
            raise disk_error(exc, str(self.path / path)) from exc
        self.rename(fresh, path)

    def open_append(self, path: str) -> int:
        """A descriptor that appends to a file of our own.

        Raises:
            DiskFull, ConfigurationError: It cannot be opened.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with self.parent(path, create=True) as (fd, name):
                return os.open(name, flags, 0o666, dir_fd=fd)
        except OSError as exc:
            raise disk_error(exc, str(self.path / path)) from exc

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other downloads out of this folder.

        Raises:
            UsageError: One is running.
        """
        fd = self.open_append(f"{STATE}/lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as exc:
            raise UsageError(f"another download into {self.path} is running") from exc
        finally:
            os.close(fd)


def _allocate(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as exc:
        # Some file systems have no such call; the writes themselves will say when the disk is full.
        if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
