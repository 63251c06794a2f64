"""``broker://`` for everything that reads through fsspec: pandas, pyarrow, torch and others.

Paths are references, ``collection/name[@version]/path``; without a version they mean the newest one, looked
up each time it is needed, so a job that opens several files should name its version. Bytes are verified
before they are handed out (I09), and each file that is read is a grant in the ledger. The filesystem is
read-only: publishing is ``broker put``.

Failures are ``OSError`` with the broker's ``code`` and the :class:`~broker.errors.BrokerError` as their
cause: ``FileNotFoundError`` for what does not exist or is not visible, ``PermissionError`` for a refusal,
``ConnectionError`` for a broker or store that does not answer. Only the first means that a file is not
there: ``exists``, ``glob`` and ``find`` raise the others instead of answering as if there was nothing.

**Source**: fsspec's ``AbstractFileSystem`` and ``AbstractBufferedFile``.
"""

# The signatures are those of fsspec.
# ruff: noqa: ARG002, FBT001, FBT002

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, NoReturn

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike

from broker import limits
from broker.canonical import parse_time
from broker.client.fs_file import BrokerFile
from broker.client.os_errors import as_os_errors, read_only_error
from broker.client.range_runs import Wanted, bounds_of, runs_of
from broker.client.shared_library import SharedLibrary, caller_environment, name_caller, shared_library
from broker.client.versions import TrustedVersion
from broker.errors import InvalidRequest, NotFound
from broker.names import Ref, parse_part, parse_ref

GAP: Final = 64 * limits.KIB
"""Ranges of one file that are no further apart are read as one."""


class _Environment:
    """The client's environment as a class attribute: part of the key of fsspec's cache of instances."""

    def __get__(self, instance: object, owner: type) -> str:
        return repr(caller_environment())


# -- the filesystem -----------------------------------------------------------------------------------------


class BrokerFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Versions as folders: ``collection/name[@version]/path``. Read-only, and safe to share between threads.

    An instance holds no secret and opens nothing before its first use; it can be pickled (only the options
    go along) and forked (a child opens its own connections).

    Args:
        profile: Name of the profile; without it, the environment decides as for ``broker``.
        profile_dir: Its folder instead.
        purpose: Recorded with every grant, and a matter of policy; ``BROKER_PURPOSE`` without it.
        jobs: Connections that one long read uses at most; ``BROKER_JOBS`` without it.

    Raises:
        ConfigurationError: A variable of the environment, or ``jobs``, is not valid.
    """

    protocol = "broker"
    root_marker = ""
    environment: ClassVar = _Environment()
    _extra_tokenize_attributes = ("environment",)

    def __init__(
        self,
        *args: Any,
        profile: str | None = None,
        profile_dir: str | os.PathLike[str] | None = None,
        purpose: str | None = None,
        jobs: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        folder = None if profile_dir is None else os.fspath(profile_dir)
        self._caller = name_caller(profile=profile, profile_dir=folder, purpose=purpose, jobs=jobs)

    def _access(self) -> SharedLibrary:
        return shared_library(self._caller)

    # -- looking --------------------------------------------------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What is known of a collection, artifact, folder or file.

        Returns:
            ``name``, ``size`` (0 for folders) and ``type``; from an artifact down also ``version``,
            ``manifest`` (its digest) and ``mtime`` (of its commit, seconds since 1970); for files
            ``sha256`` (hex).

        Raises:
            FileNotFoundError: There is no such collection, artifact, version or file.
        """
        text = self._strip_protocol(path)
        with as_os_errors(text):
            if not text:
                return _folder_info("")
            if "/" not in text:
                if not self._access().library.artifacts(_collection(text)):
                    raise NotFound("there is no such collection, or nothing in it")
                return _folder_info(text)
            ref = _reference(text)
            version = self._access().version(ref)
            return self._info(text, ref.path or "", version)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in a folder: collections, artifacts that have a version, or the files of a version.

        Raises:
            FileNotFoundError: There is no such folder or file.
        """
        text = self._strip_protocol(path)
        with as_os_errors(text):
            found = self._ls(text)
        return found if detail else [item["name"] for item in found]

    def _ls(self, text: str) -> list[dict[str, Any]]:
        access = self._access()
        if not text:
            return [_folder_info(name) for name in access.library.collections()]
        if "/" not in text:
            listed = access.library.artifacts(_collection(text))
            if not listed:
                raise NotFound("there is no such collection, or nothing in it")
            return [
                {**_folder_info(f"{item.collection}/{item.name}"), "kind": item.kind, "version": item.newest}
                for item in listed
                if item.newest is not None
            ]
        ref = _reference(text)
        version = access.version(ref)
        inside = access.tree(version).folders.get(ref.path or "")
        if inside is None:
            return [self._info(text, ref.path or "", version)]
        root = text.removesuffix(f"/{ref.path}") if ref.path else text
        return [self._info(f"{root}/{path}", path, version) for path in inside]

    def _info(self, name: str, path: str, version: TrustedVersion) -> dict[str, Any]:
        tree = self._access().tree(version)
        common = {
            "version": version.manifest.version,
            "manifest": version.digest,
            "mtime": parse_time(version.commit.entry["time"]) / 1000,
        }
        if path in tree.folders:
            return {**_folder_info(name), **common}
        if path not in tree.files:
            raise NotFound(f"there is no such file or folder in {version.ref}")
        file = tree.files[path]
        return {"name": name, "size": file.size, "type": "file", "sha256": file.sha256.hex(), **common}

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As fsspec says; but ``omit`` leaves out what does not exist, not what could not be listed."""
        seen = _raise_all_but_absence if on_error == "omit" else on_error
        yield from super().walk(path, maxdepth=maxdepth, topdown=topdown, on_error=seen, **kwargs)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether it exists and is visible; what cannot be known raises."""
        try:
            self.info(path, **kwargs)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        """Whether it is a file; what cannot be known raises."""
        return self.exists(path) and self.info(path)["type"] == "file"

    def isdir(self, path: str) -> bool:
        """Whether it is a folder; what cannot be known raises."""
        return self.exists(path) and self.info(path)["type"] == "directory"

    def created(self, path: str) -> datetime:
        """When its version was committed: it did not exist before, and never changes after.

        Raises:
            IsADirectoryError: It is above all versions.
        """
        return datetime.fromtimestamp(self._versioned(path)["mtime"], tz=UTC)

    def modified(self, path: str) -> datetime:
        """The same as :meth:`created`."""
        return self.created(path)

    def ukey(self, path: str) -> str:
        """A file's SHA-256; a folder's is its manifest's digest."""
        info = self._versioned(path)
        return str(info.get("sha256", info["manifest"]))

    def checksum(self, path: str) -> int:
        """The same as a number."""
        return int(self.ukey(path).removeprefix("sha256:"), 16)

    def _versioned(self, path: str) -> dict[str, Any]:
        info = self.info(path)
        if "manifest" not in info:
            raise IsADirectoryError(errno.EISDIR, "a collection has no version", str(path))
        return info

    # -- reading --------------------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        cache_type: str = "none",
        **kwargs: Any,
    ) -> BrokerFile:
        if mode != "rb":
            raise read_only_error(path)
        return BrokerFile(self, path, mode, block_size, autocommit, cache_type, cache_options, **kwargs)

    def read_into(self, ref: Ref, start: int, buffer: memoryview) -> int:
        """Fill ``buffer`` with verified bytes of a file from ``start``; fewer only at its end."""
        with as_os_errors(str(ref)):
            return self._access().reader(ref).readinto(ref.path or "", start, buffer)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file from ``start`` to ``end``; negative ones count from its end."""
        ref, size = self.pin(path)
        return self.read_range(ref, *bounds_of(size, start, end))

    def read_range(self, ref: Ref, start: int, stop: int) -> bytes:
        """Verified bytes of a file from ``start`` to ``stop``, cut at its end."""
        with as_os_errors(str(ref)):
            return self._access().reader(ref).read(ref.path or "", start, stop)

    def pin(self, path: str) -> tuple[Ref, int]:
        """The file in exactly the version that the path names now, and its size."""
        text = self._strip_protocol(path)
        info = self.info(text)
        if info["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "it is a folder", text)
        return replace(parse_ref(text), version=info["manifest"]), info["size"]

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """The bytes of many ranges; those that lie close together are read as one, and several at a time.

        Args:
            paths: Of the files; one may occur more than once.
            starts: For each, or one for all; negative ones count from the end.
            ends: For each, or one for all; exclusive.
            max_gap: Bytes between two ranges of a file up to which they are read as one.
            on_error: ``return`` puts a range's exception in its place; ``raise`` raises the first.
            kwargs: Of fsspec; not used.

        Returns:
            The bytes of each range, in the order of ``paths``.
        """
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        columns = [value if isinstance(value, list) else [value] * len(paths) for value in (starts, ends)]
        if any(len(column) != len(paths) for column in columns):
            raise ValueError("paths, starts and ends are of different lengths")
        found: list[Any] = [None] * len(paths)
        wanted: list[Wanted] = []
        for at, (path, start, end) in enumerate(zip(paths, *columns, strict=True)):
            try:
                ref, size = self.pin(path)
                low, high = bounds_of(size, start, end)
                wanted.append(Wanted(ref=ref, start=low, stop=high, place=at))
            except OSError as exc:
                found[at] = exc
        runs = runs_of(wanted, GAP if max_gap is None else max_gap)
        with ThreadPoolExecutor(self._caller.jobs, "broker-ranges") as pool:
            for run, data in zip(runs, pool.map(self._read_run, runs), strict=True):
                for item in run:
                    low, high = item.start - run[0].start, item.stop - run[0].start
                    found[item.place] = data if isinstance(data, OSError) else data[low:high]
        if on_error == "raise":
            for item in found:
                if isinstance(item, OSError):
                    raise item
        return found

    def _read_run(self, run: Sequence[Wanted]) -> bytes | OSError:
        try:
            return self.read_range(run[0].ref, run[0].start, max(item.stop for item in run))
        except OSError as exc:
            return exc

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file to a local path or file object. A copy that fails does not leave a part behind."""
        target = lpath if outfile is None and isfilelike(lpath) else outfile
        if target is None and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        ref, size = self.pin(rpath)
        callback.set_size(size)
        if target is not None:
            self._copy(ref, size, target, callback)
            return
        os.makedirs(os.path.dirname(os.fspath(lpath)) or ".", exist_ok=True)
        try:
            with open(lpath, "wb") as file:
                self._copy(ref, size, file, callback)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(lpath)
            raise

    def _copy(self, ref: Ref, size: int, target: Any, callback: Callback) -> None:
        with as_os_errors(str(ref)):
            for piece in self._access().reader(ref).iterate(ref.path or "", 0, size):
                target.write(piece)
                callback.relative_update(len(piece))

    # -- writing --------------------------------------------------------------------------------------------

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Nothing is written here.

        Raises:
            OSError: EROFS, always.
        """
        shown = next((item for item in (*args, *kwargs.values()) if isinstance(item, str | os.PathLike)), "")
        raise read_only_error(shown)

    mkdir = makedirs = makedir = mkdirs = touch = _refuse
    put = put_file = upload = pipe = pipe_file = write_bytes = write_text = _refuse
    copy = cp = cp_file = mv = move = rename = _refuse
    rm = rm_file = _rm = rmdir = delete = start_transaction = _refuse

    @property
    def transaction(self) -> NoReturn:
        """Refused like every attempt to write."""
        raise read_only_error("")


def _raise_all_but_absence(exc: OSError) -> None:
    if not isinstance(exc, FileNotFoundError):
        raise exc


def _collection(text: str) -> str:
    try:
        return parse_part(text, "collection")
    except InvalidRequest as exc:
        raise NotFound(exc.what, why=exc.why) from exc


def _reference(text: str) -> Ref:
    """Nothing has a name that is not valid: it does not exist."""
    try:
        return parse_ref(text)
    except InvalidRequest as exc:
        raise NotFound(exc.what, why=exc.why) from exc


def _folder_info(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}
