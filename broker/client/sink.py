"""Where verified plaintext goes: unfinished files in ``.broker/partial``, whole ones under their names.

A file gets its final name only when every one of its extents was verified and written (I09).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Final

from broker import limits
from broker.client.folder import Folder, disk_error
from broker.client.resume import Journal, partial_path
from broker.envelope.manifest import Manifest
from broker.errors import IntegrityFailure, UsageError

WRITE_PIECE: Final = 256 * limits.KIB
"""Bytes of one write: larger ones are slower into a prepared file."""


class Sink:
    """The files of one download. Safe for any number of threads.

    Args:
        missing: For each file that is not there yet, how many of its extents are not.
        replace: Whether a file of the final name may be replaced.
        durable: Whether a file is forced to the disk before it gets its final name.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        missing: Mapping[int, int],
        journal: Journal,
        *,
        replace: bool,
        durable: bool,
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._missing = dict(missing)
        self._journal = journal
        self._replace = replace
        self._durable = durable
        self._open: dict[int, int] = {}
        self._discarded: dict[int, int | None] = {}
        self._lock = threading.Lock()
        self.finished: list[int] = []

    def open(self, file: int) -> int:
        """Descriptor of the unfinished file, with room for all of it.

        Raises:
            DiskFull: There is none.
            IntegrityFailure: The file was discarded.
        """
        with self._lock:
            if file in self._discarded:
                raise IntegrityFailure("another part of this file is not what its publisher signed")
            if file not in self._open:
                size = self._manifest.files[file].size
                self._open[file] = self._folder.open_write(partial_path(file), size=size)
            return self._open[file]

    def write(self, fd: int, view: memoryview, offset: int) -> None:
        """Write all of ``view`` at ``offset``.

        Raises:
            DiskFull: The disk has no room after all.
        """
        try:
            for at in range(0, len(view), WRITE_PIECE):
                piece = view[at : at + WRITE_PIECE]
                while len(piece):
                    written = os.pwrite(fd, piece, offset + at)
                    at, piece = at + written, piece[written:]
        except OSError as exc:
            raise disk_error(exc, str(self._folder.path)) from exc

    def finish_extent(self, file: int, index: int) -> None:
        """An extent is verified and written; the last one of a file gives the file its name."""
        self._journal.add(file, index)
        with self._lock:
            self._missing[file] -= 1
            if self._missing[file]:
                return
            fd = self._open.pop(file)
        try:
            if self._durable:
                os.fsync(fd)
        except OSError as exc:
            raise disk_error(exc, str(self._folder.path)) from exc
        finally:
            os.close(fd)
        self.finish_file(file)

    def finish_whole(self, file: int) -> None:
        """A file that needs no extent any more: an empty one, or one that a former run left unnamed.

        Raises:
            DiskFull, UsageError: It cannot be made or named.
        """
        size = self._manifest.files[file].size
        os.close(self._folder.open_write(partial_path(file), size=size))
        self.finish_file(file)

    def finish_file(self, file: int) -> None:
        """Give a file, all of whose extents are there, its final name.

        Raises:
            UsageError: Something of that name has appeared meanwhile.
        """
        path = self._manifest.files[file].path
        if not self._replace and self._folder.exists(path):
            raise UsageError(f"{self._folder.path / path} appeared during the download", next="--force")
        # Crash here: the whole file is under its partial name; the next run finds it and renames it.
        self._folder.rename(partial_path(file), path)
        self.finished.append(file)

    def discard(self, file: int) -> None:
        """Remove an unfinished file whose object turned out to be tampered with (I09)."""
        with self._lock:
            # Other threads may be writing to it: the number is not free for another file before close().
            self._discarded.setdefault(file, self._open.pop(file, None))
            self._folder.remove(partial_path(file))

    def close(self) -> None:
        """Close every unfinished file, once no thread writes any more; they stay for the next run."""
        with self._lock:
            for fd in (*self._open.values(), *self._discarded.values()):
                if fd is not None:
                    os.close(fd)
            self._open.clear()
            self._discarded.clear()
