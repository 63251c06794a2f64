"""What a download has on disk already, and where its unfinished files live.

``DEST/.broker/`` holds ``manifest.json`` (the verified manifest), ``state`` (its digest, then one line for
each extent that was verified and written), ``partial/`` (files without all their extents) and
``receipts/``. The state is a hint, never evidence: what it claims is read and digested again before it
counts, so a crash, a full disk or somebody's edit costs a second fetch and nothing else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Final

from broker import limits
from broker.client.folder import STATE, Folder, disk_error
from broker.client.grants import Extent
from broker.client.versions import TrustedVersion
from broker.envelope import digest, extents
from broker.envelope.manifest import Manifest, manifest_digest, parse_manifest
from broker.errors import BrokerError

STATE_FILE: Final = f"{STATE}/state"
MANIFEST_FILE: Final = f"{STATE}/manifest.json"
PARTIAL: Final = f"{STATE}/partial"
RECEIPTS: Final = f"{STATE}/receipts"
_HEAD: Final = "broker/state/v1"
_MAX_STATE: Final = 64 * limits.MIB


def partial_path(file: int) -> str:
    """Where file ``file`` of the manifest is kept until it is whole."""
    return f"{PARTIAL}/{file:06d}"


class Journal:
    """The list of extents that are written and verified, one line each; survives the process."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._fd = folder.open_append(STATE_FILE)

    def add(self, file: int, index: int) -> None:
        """This extent is on disk. A line is one write, so threads need no lock.

        Raises:
            DiskFull: The line cannot be written; the extent will be fetched again.
        """
        try:
            os.write(self._fd, f"{file} {index}\n".encode("ascii"))
        except OSError as exc:
            raise disk_error(exc, STATE_FILE) from exc

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_hint(folder: Folder) -> Manifest | None:
    """The manifest that an unfinished download in this folder is about, if there is one."""
    try:
        body = folder.read(MANIFEST_FILE, most=limits.MAX_MANIFEST)
        state = folder.read(STATE_FILE, most=_MAX_STATE)
        if body is None or state is None or _state_digest(state) != manifest_digest(body):
            return None
        return parse_manifest(body)
    except BrokerError:
        return None


def claimed_extents(folder: Folder, digest_wanted: str) -> set[Extent]:
    """The extents that the state claims for that manifest; empty for another one's state."""
    state = folder.read(STATE_FILE, most=_MAX_STATE)
    if state is None or _state_digest(state) != digest_wanted:
        return set()
    return set(_parse_claims(state))


def _state_digest(state: bytes) -> str | None:
    head = state.partition(b"\n")[0].split(b" ")
    return head[1].decode("ascii", "replace") if len(head) == 2 and head[0] == _HEAD.encode() else None


def _parse_claims(state: bytes) -> Iterator[Extent]:
    # The last line may be cut off by a crash; what does not parse claims nothing.
    for line in state.split(b"\n")[1:-1]:
        with contextlib.suppress(ValueError):
            file, index = line.split(b" ")
            yield int(file), int(index)


def begin_state(folder: Folder, version: TrustedVersion, verified: Iterable[Extent]) -> Journal:
    """Start, or go on with, the state of this version; partial files of another one are removed."""
    if claimed := claimed_extents(folder, version.digest):
        del claimed
    else:
        for name in folder.list(PARTIAL):
            folder.remove(f"{PARTIAL}/{name}")
    lines = "".join(f"{file} {index}\n" for file, index in sorted(verified))
    folder.write(MANIFEST_FILE, version.body)
    folder.write(STATE_FILE, f"{_HEAD} {version.digest}\n{lines}".encode("ascii"))
    return Journal(folder)


# -- looking at local bytes -----------------------------------------------------------------------------


class LocalReader:
    """Digests extents of local files with one reused buffer. Not shared between threads."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(limits.SEGMENT_SIZE))

    def holds(self, fd: int, manifest: Manifest, file: int, index: int) -> bool:
        """Whether the file has exactly this extent's plaintext at its place."""
        signed = manifest.files[file]
        plain = extents.extent_plaintext_size(signed.size, manifest.extent_size, index)
        offset, hasher = index * manifest.extent_size, digest.ExtentHasher()
        for segment in range(extents.segment_count(plain)):
            start, length = extents.segment_plaintext_range(plain, segment)
            view = self._buffer[:length]
            if not _fill(fd, view, offset + start):
                return False
            hasher.add_segment(view)
        return hasher.digest() == signed.extents[index]

    def matches(self, fd: int, manifest: Manifest, file: int) -> bool:
        """Whether the whole file is what the publisher signed: size and every extent."""
        signed = manifest.files[file]
        if os.fstat(fd).st_size != signed.size:
            return False
        return all(self.holds(fd, manifest, file, index) for index in range(len(signed.extents)))


def _fill(fd: int, view: memoryview, offset: int) -> bool:
    at = 0
    while at < len(view):
        got = os.preadv(fd, [view[at:]], offset + at)
        if not got:
            return False
        at += got
    return True
