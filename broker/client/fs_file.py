"""An open file of the filesystem ``broker://``."""

# The signatures are those of fsspec.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fsspec.spec import AbstractBufferedFile

from broker import limits

if TYPE_CHECKING:
    from broker.client.fs import BrokerFileSystem

LINE: Final = 16 * limits.KIB
"""Bytes that are looked at for the end of a line."""


class BrokerFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """One file, open for reading, in the version that its path named when it was opened.

    It asks for no more than it is asked for: what is read is kept, and read ahead, below
    (:class:`~broker.client.reading.Reader`). fsspec's own caches work when one is chosen with ``cache_type``.
    """

    def __init__(
        self,
        fs: BrokerFileSystem,
        path: str,
        mode: str = "rb",
        block_size: Any = "default",
        autocommit: bool = True,
        cache_type: str = "none",
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The size is that of the version, whatever a caller remembers.
        kwargs.pop("size", None)
        self._ref, size = fs.pin(path)
        super().__init__(
            fs, path, mode, block_size, autocommit, cache_type, cache_options, size=size, **kwargs
        )

    @property
    def details(self) -> dict[str, Any]:
        """As ``info``, of the version that is open."""
        found: dict[str, Any] = self.fs.info(str(self._ref))
        return {**found, "name": self.path}

    def _fetch_range(self, start: int, end: int) -> bytes:
        found: bytes = self.fs.read_range(self._ref, start, end)
        return found

    def readinto(self, b: Any) -> int:
        """Fill a buffer from where the file is; fewer bytes only at its end."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self.cache.name != "none":
            return int(super().readinto(b))
        got: int = self.fs.read_into(self._ref, self.loc, memoryview(b).cast("B"))
        self.loc += got
        return got

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """As fsspec says; a line is looked for in small steps."""
        found: bytes = super().readuntil(char, blocks or LINE)
        return found

    def __reduce__(self) -> Any:
        options = {"block_size": self.blocksize, "cache_type": self.cache.name, **self.kwargs}
        return _reopen, (self.fs, str(self._ref), self.loc, options)


def _reopen(fs: BrokerFileSystem, path: str, place: int, options: dict[str, Any]) -> BrokerFile:
    file: BrokerFile = fs.open(path, "rb", **options)
    file.seek(place)
    return file
