"""A file of JSON lines, one for each entry, that other programs pick up.

Lines are durable before the delivery counts. A line that a crash tore is taken off before the next one is
written: what it was of was not delivered, and comes again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker import limits
from broker.errors import ConfigurationError, Unavailable
from broker.outbox import Forwarded

_MODE: Final = 0o640


class LineFile:
    """Implements ``outbox.Receiver``. The file is opened by name each time, so it may be renamed away.

    Args:
        path: The file; made, readable by its group, when it is not there. Its folder must be there.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    @property
    def unsure(self) -> int:
        """0: what was delivered is on the disk."""
        return 0

    def deliver(self, messages: Sequence[Forwarded]) -> None:
        """Append a line for each, durably.

        Raises:
            Unavailable: They cannot be written: no room, no folder, no permission.
            ConfigurationError: What has that name is no plain file.
        """
        data = b"".join(message.body + b"\n" for message in messages)
        try:
            fd, made = self._open()
            try:
                if made:
                    _sync_folder(self._path.parent)
                self._append(fd, data)
            finally:
                os.close(fd)
        except OSError as exc:
            raise Unavailable("the file cannot be written", why=exc.strerror) from exc

    def doubtful(self) -> int | None:
        """None: nothing that was delivered is in doubt."""
        return None

    def close(self) -> bool:
        """Nothing is open."""
        return True

    def _open(self) -> tuple[int, bool]:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(self._path, flags), False
        except FileNotFoundError:
            return os.open(self._path, flags | os.O_CREAT, _MODE), True

    def _append(self, fd: int, data: bytes) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigurationError("what is to be written to is no plain file")
        # Another forwarder, whose lease ran out while it wrote: the next try finds it done. Nobody is waited
        # for, since whoever may read the file may hold it.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), os.stat(self._path)):
            raise FileNotFoundError(errno.ENOENT, "it was moved away meanwhile")
        start = _whole_lines(fd)
        os.ftruncate(fd, start)
        try:
            _write(fd, data, start)
            # If we crash before this line, the cursor did not move and the lines are written again.
            os.fsync(fd)
        except OSError:
            # No room, most likely: not a part of these lines once more with each try.
            os.ftruncate(fd, start)
            raise


def _write(fd: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def _whole_lines(fd: int) -> int:
    """Size of the file without a torn last line of ours.

    Raises:
        ConfigurationError: It does not end as a file of ours does.
    """
    size = os.fstat(fd).st_size
    start = max(0, size - limits.MAX_FORWARD_BATCH)
    tail = os.pread(fd, size - start, start)
    end = tail.rfind(b"\n") + 1
    torn = tail[end:]
    # A file system that lost power may have made room for a line without its bytes.
    if (start > 0 and end == 0) or (torn and torn[:1] not in (b"{", b"\0")):
        raise ConfigurationError(
            "the file that lines are to be added to has something else in it",
            next="move it away, or name another one",
        )
    return start + end


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
