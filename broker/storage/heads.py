"""A folder as the outside store of tree heads: one file for each size, written once."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.errors import LedgerUnavailable, RollbackDetected

_NAME: Final = re.compile(r"(\d{16})\.head")


class FolderHeads:
    """Implements ``ports.TreeHeadStore`` in a folder that the database's administrator cannot write.

    Args:
        folder: Made when it does not exist. Put it on another machine's disk in production.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def publish(self, size: int, note: str) -> None:
        """Keep the head of that size, durably.

        Raises:
            RollbackDetected: Another head of that size is there: the log was forked.
            LedgerUnavailable: The folder cannot be written.
        """
        path = self._folder / f"{size:016d}.head"
        data = note.encode()
        try:
            if path.exists():
                self._check_same(path, data)
                return
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                # A link is create-only where a rename would replace. Crash here: a stray dot file.
                with suppress(FileExistsError):
                    os.link(file.name, path)
            self._check_same(path, data)
        except OSError as exc:
            raise LedgerUnavailable("the outside store of tree heads cannot be written") from exc

    def _check_same(self, path: Path, data: bytes) -> None:
        if path.read_bytes() != data:
            raise RollbackDetected(
                "another tree head of the same size was published before",
                why="the log was forked, or restored from an older copy",
            )

    def newest(self) -> tuple[int, str] | None:
        """The largest head kept."""
        sizes = [int(m[1]) for name in os.listdir(self._folder) if (m := _NAME.fullmatch(name))]
        if not sizes:
            return None
        return max(sizes), (self._folder / f"{max(sizes):016d}.head").read_text()
