"""What the witness has cosigned: the newest checkpoint of each log, one file each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import limits
from broker.client import private_files
from broker.errors import ConfigurationError


def origin_hash(origin: str) -> str:
    """SHA-256 of a log's origin, 64 hex digits. Source: C2SP tlog-witness, "Monitor Retrieval Mechanism"."""
    return hashlib.sha256(origin.encode()).hexdigest()


class WitnessState:
    """A folder with ``<origin hash>.checkpoint``, each the cosigned note as it was answered.

    Several threads and processes may share it: whoever looks at a log's checkpoint in order to replace it
    holds that log's lock.

    Args:
        folder: Made with mode 0700 when it does not exist. Never restore it from an older copy: the witness
            would sign again what it must not.

    Raises:
        ConfigurationError: It cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigurationError(f"cannot make {folder}", why=exc.strerror) from exc

    @contextmanager
    def locked(self, origin: str) -> Iterator[None]:
        """Nobody else replaces that log's checkpoint meanwhile."""
        with private_files.locked(self._folder / f".{origin_hash(origin)}.lock"):
            yield

    def find(self, hashed: str) -> str | None:
        """The note that was cosigned last for the log of that origin hash; None before the first.

        Raises:
            ConfigurationError: The file cannot be read.
        """
        data = private_files.find_file(self._folder / f"{hashed}.checkpoint", most=limits.MAX_NOTE)
        return None if data is None else data.decode("utf-8", "replace")

    def replace(self, origin: str, note: str) -> None:
        """Keep a cosigned note in place of the one before, durably: it is on the disk when this returns.

        Raises:
            ConfigurationError: It cannot be written. The one before is still there.
        """
        path = self._folder / f"{origin_hash(origin)}.checkpoint"
        private_files.write_file(path, note.encode(), mode=0o644)
        # The file's name must be durable as well: without it the machine could come back with the old one.
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise ConfigurationError(f"cannot write {path}", why=exc.strerror) from exc
