"""The outside stores of tree heads, a folder or a bucket: one file or object for each size, written once."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.canonical import sha256_digest
from broker.errors import (
    ConfigurationError,
    Conflict,
    IntegrityFailure,
    LedgerUnavailable,
    RollbackDetected,
    StoreUnavailable,
)
from broker.storage.s3 import S3Store

_LARGEST: Final = 10**16 - 1
_MAX_NOTE: Final = 4096
_NAME: Final = re.compile(r"(\d{16})\.head")


def _part_of(origin: str) -> str:
    return sha256_digest(origin.encode()).removeprefix("sha256:")


def _same_head(known: bytes, data: bytes) -> bool:
    """Whether two notes say the same; while the log's key is changed replicas sign it with different keys."""
    return known.partition(b"\n\n")[0] == data.partition(b"\n\n")[0]


def _forked() -> RollbackDetected:
    return RollbackDetected(
        "another tree head of the same size was published before",
        why="the log was forked, or restored from an older copy",
    )


class FolderHeads:
    """Implements ``ports.TreeHeadStore`` in a folder that the database's administrator cannot write.

    Heads of one origin are in a folder of their own in it, so that a log that goes on under a new name
    leaves those of the old one alone.

    Args:
        folder: Made when it does not exist. Put it on another machine's disk in production.
        origin: The log's origin.

    Raises:
        ConfigurationError: Heads lie in the folder itself.
    """

    def __init__(self, folder: Path, *, origin: str) -> None:
        self._folder = folder / _part_of(origin)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(_NAME.fullmatch(name) for name in os.listdir(folder)):
            # Passed over, they would let a log go back behind what it published.
            raise ConfigurationError(
                f"there are tree heads in {folder} itself, as an earlier release kept them",
                next=f"move them into {self._folder}",
            )

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
        if not _same_head(path.read_bytes(), data):
            raise _forked()

    def newest(self) -> tuple[int, str] | None:
        """The largest head kept.

        Raises:
            LedgerUnavailable: The folder cannot be read.
            IntegrityFailure: Something else is where the newest head should be.
        """
        try:
            sizes = [int(m[1]) for name in os.listdir(self._folder) if (m := _NAME.fullmatch(name))]
            if not sizes:
                return None
            return max(sizes), (self._folder / f"{max(sizes):016d}.head").read_text()
        except UnicodeDecodeError as exc:
            raise IntegrityFailure("the outside store of tree heads holds something else") from exc
        except OSError as exc:
            raise LedgerUnavailable("the outside store of tree heads cannot be read") from exc


class S3Heads:
    """Implements ``ports.TreeHeadStore`` in a bucket that the database's administrator cannot write.

    One object for each size, made by a PUT with ``If-None-Match: *``: of two replicas that race with
    different heads of one size one is refused, whatever their order. Names count down, so the newest
    head is the first of a listing, however many there are. Safe to share between threads.

    Args:
        store: The bucket. Its credentials need to create, read and list objects, and nothing else.
        origin: The log's origin: logs that share a bucket keep apart.
    """

    def __init__(self, store: S3Store, *, origin: str) -> None:
        self._store = store
        self._prefix = f"tree-heads/{_part_of(origin)}/"

    def publish(self, size: int, note: str) -> None:
        """Keep the head of that size, durably. The same head again is fine.

        Raises:
            RollbackDetected: Another head of that size is there: the log was forked.
            LedgerUnavailable: The bucket cannot be written.
        """
        name = f"{self._prefix}{_LARGEST - size:016d}.head"
        try:
            self._put(name, note.encode())
        except StoreUnavailable as exc:
            raise LedgerUnavailable("the outside store of tree heads cannot be written", why=exc.why) from exc

    def _put(self, name: str, data: bytes) -> None:
        try:
            self._store.put(name, data)
        except Conflict as exc:
            known = self._store.read(name, most=_MAX_NOTE)
            if known is None or not _same_head(known[0], data):
                raise _forked() from exc

    def newest(self) -> tuple[int, str] | None:
        """The largest head kept, from one page of a listing.

        Raises:
            IntegrityFailure: Something else is where the newest head should be.
            LedgerUnavailable: The bucket cannot be read.
        """
        try:
            first = next(self._store.list(self._prefix), None)
            if first is None:
                return None
            name, length = first
            found = _NAME.fullmatch(name.removeprefix(self._prefix))
            if found is None or not 0 < length <= _MAX_NOTE:
                raise IntegrityFailure("the outside store of tree heads holds something else")
            text = self._store.get_range(name, 0, length).decode()
        except StoreUnavailable as exc:
            raise LedgerUnavailable("the outside store of tree heads cannot be read", why=exc.why) from exc
        except UnicodeDecodeError as exc:
            raise IntegrityFailure("the outside store of tree heads holds something else") from exc
        return _LARGEST - int(found[1]), text
