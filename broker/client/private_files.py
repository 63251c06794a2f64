"""Small files of the client's own: written whole or not at all, read only when nobody else could.

A crash in the middle of a write leaves the old file. Everything here is on the profile's folder; the
files of a download have :mod:`broker.client.folder`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker.errors import ConfigurationError

MAX_SMALL_FILE: Final = 1024 * 1024
"""Bytes of a profile file that are read, unless the caller says otherwise."""
LOCK_SECONDS: Final = 20.0
"""How long a lock is waited for; it is held for the time of one small write."""
_LOCK_POLL: Final = 0.005

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by a file of exactly these bytes and mode, durably, in one step.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Crash here: the old file is still there, beside a file that the next write replaces.
        fresh.replace(path)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {path}", why=exc.strerror) from exc


def find_file(
    path: Path, *, private: bool = False, most: int = MAX_SMALL_FILE, follow: bool = False
) -> bytes | None:
    """The bytes of a small file, or None when there is none.

    Args:
        private: Refuse a file that group or others may read or write, or that is another user's.
        most: Bytes that it may have.
        follow: Follow symbolic links, which the volumes of a cluster are made of.

    Raises:
        ConfigurationError: Not a regular file, unreadable, too large, or not private.
    """
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        fd = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}", why=exc.strerror) from exc
    try:
        _check_status(path, os.fstat(fd), private=private)
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(most + 1)
    finally:
        os.close(fd)
    if len(data) > most:
        raise ConfigurationError(f"{path} is larger than any file of a profile")
    return data


def _check_status(path: Path, status: os.stat_result, *, private: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path} is not a regular file")
    if not private:
        return
    if status.st_mode & _OTHERS:
        raise ConfigurationError(
            f"{path} may be read or written by other users",
            why=f"its mode is {stat.S_IMODE(status.st_mode):04o}",
            next=f"chmod 600 {path}   (and enrol again if somebody may have read it)",
        )
    if status.st_uid != os.geteuid():
        raise ConfigurationError(f"{path} belongs to another user")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against every other process; waits for it, for a while.

    The kernel lets go of it when the holder dies. A holder that is merely stopped (Ctrl-Z) keeps it.

    Raises:
        ConfigurationError: The lock file cannot be made, or is held for longer than :data:`LOCK_SECONDS`.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigurationError(f"cannot lock {path}", why=exc.strerror) from exc
    try:
        _await_lock(fd, path)
        yield
    finally:
        os.close(fd)


def _await_lock(fd: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"another command holds {path}",
                    why="it needs the lock for milliseconds; it is probably stopped (Ctrl-Z)",
                    next="continue or end that command, then run this one again",
                ) from exc
        time.sleep(_LOCK_POLL)
