"""SQL over the ledger: rows are verified against a signed tree head before the first is asked for.

Rows always are files that this program made itself from entries that hash into the signed root: in a folder
that goes away with the answer, or in the profile's cache. What somebody else wrote into a Parquet file is
compared, and not asked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.canonical import Json, b64url, canonical_bytes, parse_b64url, parse_json_object
from broker.client import private_files
from broker.client.archived import ARCHIVE, ArchiveCheck
from broker.client.asking import Answer, Bounds, ask
from broker.client.parts import FORMAT, list_parts, read_part
from broker.client.static_log import verify_static_log, write_new
from broker.errors import BrokerError, ConfigurationError, IntegrityFailure, UsageError
from broker.ledger import columns, merkle
from broker.ledger.columns import RangeBuilder, Row
from broker.ledger.merkle import Frontier
from broker.ledger.note import TreeHead

if TYPE_CHECKING:
    from broker.client.ledger import LedgerClient
    from broker.client.trust import LogMemory

Counted = Callable[[int, int], None]
"""Told (entries read, entries in all)."""

CACHE: Final = "ledger-rows"
"""Folder of a profile in which rows are kept from one question to the next."""
_STATE: Final = "state.json"
_LOCK: Final = ".lock"
_SCHEMA: Final = "broker/rows/v1"
_PAGE: Final = 5000


@dataclass(frozen=True, kw_only=True)
class Queried:
    """An answer, and what it is an answer over: the first ``entries`` of the log that ``head`` signs."""

    answer: Answer
    head: TreeHead
    entries: int


def query_folder(folder: Path, vkey: str, sql: str, *, bounds: Bounds) -> Queried:
    """Answer a question over an export, or over a published log and its archive, offline.

    Where the entries are beside the tiles, the rows are made from them, all of them; else from the archive,
    as far as it goes.

    Args:
        folder: What holds ``checkpoint`` and ``tile/``.
        vkey: The log's verifier key.
        sql: One SELECT over ``entries``.
        bounds: How much it may take.

    Raises:
        IntegrityFailure: The folder does not hold what the key signed.
        UsageError: There is no log in it, or only hashes; or the question is refused.
    """
    has_entries = (folder / "tile" / "entries").is_dir()
    if not has_entries and (folder / "tile").is_dir() and not (folder / ARCHIVE).is_dir():
        raise UsageError(
            f"the log in {folder} has hashes only, and no entries", next="give the folder of an export"
        )
    with tempfile.TemporaryDirectory(prefix="broker-rows-") as name:
        place = Path(name)
        if has_entries:
            builder = RangeBuilder(_writer(place))

            def take(start: int, entries: Sequence[bytes]) -> None:
                for index, data in enumerate(entries, start):
                    builder.add(columns.archive_row(index, data))

            head = verify_static_log(folder, vkey, on_entries=take).head
            builder.finish(head.size)
            covered = head.size
        else:
            check = ArchiveCheck(folder, _writer(place))
            head = verify_static_log(folder, vkey, on_hashes=check.take).head
            check.finish()
            covered = check.size
        return Queried(answer=_ask(place, sql, bounds), head=head, entries=covered)


def query_log(
    ledger: LedgerClient,
    log: LogMemory,
    sql: str,
    *,
    folder: Path | None,
    bounds: Bounds | None = None,
    on_progress: Counted | None = None,
) -> Queried:
    """Answer a question over the log as it stands, which only an auditor may read.

    Args:
        ledger: The log as the server shows it; what is read is recorded there.
        log: What the profile knows of it.
        sql: One SELECT over ``entries``.
        folder: The profile's, in which rows are kept; None keeps none.
        bounds: How much it may take.
        on_progress: Told (entries read, entries in all).

    Raises:
        IntegrityFailure: The entries are not those that the log's key signed.
        Denied: The caller is no auditor.
        UsageError: The question is refused.
    """
    text = ledger.checkpoint()
    head = log.open(text)
    with _place(folder) as place:
        # One at a time: each would sweep away what the other has not named yet.
        with private_files.locked(place / _LOCK):
            cache = RowCache(place, log.vkey)
            while cache.size < head.size:
                stop = min(cache.size + _PAGE, head.size)
                cache.add(ledger.read_entries(cache.size, stop))
                if on_progress is not None:
                    on_progress(stop, head.size)
            cache.keep(text, head)
        answer = ask(cache.files(), sql, bounds=bounds or Bounds())
        return Queried(answer=answer, head=log.open(cache.note), entries=cache.size)


class RowCache:
    """The rows of a log in a private folder, up to a size whose signed root they give.

    Files are whole or not there, and count only once the state, written last, names them by their digests.
    Whoever adds to it holds its lock. A folder that is damaged in any way is one that is empty.

    Args:
        folder: Of this process's user alone.
        vkey: The log's verifier key; rows of another log are dropped.
    """

    def __init__(self, folder: Path, vkey: str) -> None:
        self._folder, self._vkey = folder, vkey
        self._files: dict[str, str] = {}
        self._kept: set[str] = set()
        self._frontier = Frontier()
        self.note = ""
        self._builder = RangeBuilder(self._write)
        try:
            self._load()
        except BrokerError:
            self._files, self._frontier, self.note = {}, Frontier(), ""
            self._builder = RangeBuilder(self._write)

    @property
    def size(self) -> int:
        """Entries that it has rows of."""
        return self._frontier.size

    def files(self) -> list[Path]:
        """Its files of rows."""
        return [self._folder / name for name in sorted(self._files)]

    def add(self, entries: Sequence[bytes]) -> None:
        """The next entries; they count once :meth:`keep` has compared them.

        Raises:
            IntegrityFailure: There are none, or one is no entry.
        """
        if not entries:
            raise IntegrityFailure(
                "the log is shorter than its signed tree head says", next="broker ledger verify"
            )
        for index, data in enumerate(entries, self.size):
            self._builder.add(columns.archive_row(index, data))
        self._frontier, _ = self._frontier.extend(map(merkle.leaf_hash, entries))

    def keep(self, note: str, head: TreeHead) -> None:
        """All that was added is in the tree that this head signs: write it down.

        Raises:
            IntegrityFailure: It is not; nothing of it will be used.
        """
        if head.size < self.size:
            return  # somebody who asked meanwhile kept more, under a newer head that held
        if self._frontier.root() != head.root:
            raise IntegrityFailure(
                "the entries that were read are not those that the log's key signed",
                why=f"rows up to {self.size} entries do not give the signed root",
                next="broker ledger verify",
            )
        if note == self.note:
            return
        self._builder.finish(self.size)
        self.note = note
        state: Json = {
            "schema": _SCHEMA,
            "vkey": self._vkey,
            "note": note,
            "frontier": b64url(self._frontier.to_bytes()),
            "files": self._files,
        }
        # Crash before this: files that no state names. They are overwritten, or swept the next time.
        private_files.write_file(self._folder / _STATE, canonical_bytes(state))
        self._sweep()

    def _load(self) -> None:
        data = private_files.find_file(self._folder / _STATE)
        if data is None:
            return
        state = parse_json_object(data)
        if state.get("schema") != _SCHEMA or state.get("vkey") != self._vkey:
            return
        files = state.get("files")
        frontier = Frontier.from_bytes(parse_b64url(str(state.get("frontier"))))
        if not isinstance(files, dict) or not isinstance(state.get("note"), str):
            raise IntegrityFailure("the state of the cache is not one that was written")
        for name, digest in files.items():
            start, stop = columns.parse_range(name.partition("/")[0])
            data = read_part(self._folder / columns.range_path(start, stop))
            if hashlib.sha256(data).hexdigest() != digest:
                raise IntegrityFailure("a file of the cache is damaged")
            if stop % columns.WIDTH:
                for row in sorted(FORMAT.decode(data, most=stop - start), key=lambda row: row[columns.INDEX]):
                    self._builder.add(row)
        self._files, self._kept = dict(files), set(files)
        self._frontier, self.note = frontier, state["note"]

    def _write(self, start: int, stop: int, rows: list[Row]) -> None:
        for name in [name for name in self._files if name.startswith(f"range={start:010d}-")]:
            del self._files[name]
        name = columns.range_path(start, stop)
        data = FORMAT.encode(rows)
        path = self._folder / name
        _make_private(path.parent)
        private_files.write_file(path, data)
        self._files[name] = hashlib.sha256(data).hexdigest()

    def _sweep(self) -> None:
        """Drop what neither this state nor the one before it names: another process may still read that."""
        for place in self._folder.glob("range=*"):
            if f"{place.name}/{columns.PART}" not in self._files.keys() | self._kept:
                shutil.rmtree(place, ignore_errors=True)


def _ask(place: Path, sql: str, bounds: Bounds) -> Answer:
    files = [path for _, _, path in list_parts(place)]
    if not files:
        write_new(place / columns.range_path(0, columns.WIDTH), FORMAT.encode([]))
        files = [path for _, _, path in list_parts(place)]
    return ask(files, sql, bounds=bounds)


def _writer(place: Path) -> Callable[[int, int, list[Row]], None]:
    def write(start: int, stop: int, rows: list[Row]) -> None:
        write_new(place / columns.range_path(start, stop), FORMAT.encode(rows))

    return write


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="broker-rows-") as name:
            yield Path(name)
    else:
        place = folder / CACHE
        _make_private(place)
        yield place


def _make_private(place: Path) -> None:
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.stat(follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ConfigurationError(
                f"{place} is not a folder that only this user writes to", next="remove it: it is made anew"
            )
    except OSError as exc:
        raise ConfigurationError(f"cannot make {place}", why=exc.strerror) from exc
