"""One file of a version as a seekable, read-only stream: ``Client.open`` and ``cat``."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

from broker.client.reading import Reader
from broker.client.session import Session
from broker.client.settings import Profile
from broker.client.trust import LogMemory
from broker.client.versions import fetch_version
from broker.errors import InvalidRequest
from broker.names import Ref


class RangeFile(io.RawIOBase):
    """A file as a stream of verified bytes (I09). Safe for threads, one read at a time.

    The first read asks the broker. Closing it closes its reader.

    Raises:
        NotFound: The version has no such file.
    """

    def __init__(self, reader: Reader, path: str) -> None:
        super().__init__()
        self.size = reader.size(path)
        self._reader, self._path = reader, path
        self._position = 0
        self._lock = threading.RLock()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; past the end is allowed and reads nothing there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError("a position is not negative, and whence is 0, 1 or 2")
        self._position = base + offset
        return self._position

    # The base class says Buffer, which typing has from Python 3.12 on.
    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer`` with verified bytes; returns how many, fewer only at the end.

        Raises:
            As :meth:`broker.client.reading.Reader.readinto`.
        """
        with self._lock:
            self._check_open()
            got = self._reader.readinto(self._path, self._position, buffer)
            self._position += got
            return got

    def readall(self) -> bytes:
        """Everything from the position to the end, read ahead on several connections.

        Raises:
            As :meth:`broker.client.reading.Reader.readinto`.
        """
        with self._lock:
            found = io.BytesIO()
            for piece in self.iterate(self._position, self.size):
                found.write(piece)
            self._position += found.tell()
            return found.getvalue()

    def iterate(self, start: int, stop: int) -> Iterator[memoryview]:
        """As :meth:`broker.client.reading.Reader.iterate`; the position stays where it is."""
        self._check_open()
        return self._reader.iterate(self._path, start, stop)

    def close(self) -> None:
        """Hang up."""
        if not self.closed:
            self._reader.close()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")


def open_file(
    session: Session, log: LogMemory, profile: Profile, ref: Ref, *, purpose: str | None
) -> RangeFile:
    """The file that a reference with a path names.

    Raises:
        InvalidRequest: The reference has no path.
        NotFound: No such version or file, or not visible.
        IntegrityFailure: The manifest's trust path does not hold.
    """
    if ref.path is None:
        raise InvalidRequest("this needs one file: collection/name[@version]/path")
    version = fetch_version(session, log, ref)
    return RangeFile(Reader(session, log, profile, version, purpose=purpose), ref.path)
