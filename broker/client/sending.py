"""The data plane of publishing: extents encrypted a segment at a time, straight into the store (P4)."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker import limits
from broker.client.progress import Meter
from broker.client.rawhttp import ConnectionCache, UrlExpired, parse_target
from broker.client.uploads import (
    MAX_URLS,
    SEGMENTS,
    OpenUpload,
    Place,
    UploadClient,
    UploadJournal,
    UploadUrl,
)
from broker.client.walk import DigestedFile, LocalFile, changed, check_unchanged, open_file, read_exactly
from broker.envelope import digest, extents
from broker.envelope.parts import part_extents, part_plan, part_size
from broker.envelope.stream import NONCE_PREFIX_SIZE, SALT_SIZE, ExtentEncryptor, encrypt_extent
from broker.errors import BrokerError, IntegrityFailure, StoreUnavailable, Unreachable
from broker.ports import Entropy

ATTEMPTS: Final = 5
FIRST_PAUSE: Final = 0.25
Pieces = Callable[[], Iterator[memoryview]]
"""Makes the body of one attempt anew."""
_EXISTS: Final = 412
_URLS_AHEAD: Final = min(256, MAX_URLS)


class StaleUpload(BrokerError):
    """The store holds an object made from other content under a create-only name. Never leaves the client."""

    code = "conflict"


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """One part to send: the segment digests of its extents, in order, from the first pass."""

    place: Place
    segments: tuple[tuple[bytes, ...], ...]

    @property
    def content(self) -> bytes:
        """A digest (32 bytes) of the part's plaintext."""
        return hashlib.sha256(b"".join(digest.extent_digest(list(found)) for found in self.segments)).digest()


class UrlSource:
    """Presigned URLs, asked for in batches a little ahead. Safe for threads."""

    def __init__(self, client: UploadClient, upload: OpenUpload, places: Sequence[Place]) -> None:
        self._client = client
        self._upload = upload
        self._order = {place: at for at, place in enumerate(places)}
        self._places = list(places)
        self._held: dict[Place, UploadUrl] = {}
        self._lock = threading.Lock()

    def take(self, place: Place) -> UploadUrl:
        """A URL for this part; each is handed out once."""
        with self._lock:
            if place not in self._held:
                at = self._order.get(place)
                ahead = [place] if at is None else self._places[at : at + _URLS_AHEAD]
                self._held.update(self._client.urls(self._upload, ahead))
            self._order.pop(place, None)
            return self._held.pop(place)


class Sender:
    """Sends parts and segment lists in one thread, with one reused buffer each for plain and sealed."""

    def __init__(
        self,
        *,
        upload: OpenUpload,
        files: Sequence[LocalFile],
        urls: UrlSource,
        journal: UploadJournal,
        meter: Meter,
        store_hosts: Sequence[str],
        entropy: Entropy,
        stop: threading.Event,
    ) -> None:
        self._upload = upload
        self._files = files
        self._urls = urls
        self._journal = journal
        self._meter = meter
        self._store_hosts = store_hosts
        self._entropy = entropy
        self._stop = stop
        self.connections = ConnectionCache()
        self._plain = memoryview(bytearray(limits.SEGMENT_SIZE))
        self._sealed = memoryview(bytearray(limits.SEGMENT_SIZE))

    @property
    def _extent_size(self) -> int:
        return self._upload.description.extent_size

    def send_part(self, job: PartJob) -> None:
        """Encrypt and store one part, unless the store holds it already.

        Raises:
            Conflict: The file changed since it was digested.
            StaleUpload: The upload has to be begun anew.
            Unreachable, StoreUnavailable: The store does not take it.
        """
        index, part = job.place
        file = self._files[index]
        plain = sum(
            extents.extent_plaintext_size(file.size, self._extent_size, extent)
            for extent in part_extents(file.size, self._extent_size, part)
        )
        create_only = part_plan(file.size, self._extent_size).parts == 1
        if not self._done(job.place, job.content, create_only=create_only):
            fd = open_file(file)
            try:
                size = part_size(file.size, self._extent_size, part)
                self._send(job.place, job.content, size, lambda: self._pieces(job, fd))
                check_unchanged(file, fd)
            finally:
                os.close(fd)
        self._meter.advance(file.path, plain)

    def send_segments(self, index: int, digested: DigestedFile) -> None:
        """Encrypt and store a file's segment list, unless the store holds it already."""
        place, content = (index, SEGMENTS), digested.signed.segments
        if self._done(place, content, create_only=True):
            return
        plaintext = digest.segment_list_bytes(digested.segments)
        key = extents.segments_key(self._upload.version_key, self._upload.version_id, digested.signed.path)
        bound = extents.segments_associated_data(
            artifact=self._upload.description.artifact,
            version_id=self._upload.version_id,
            path=digested.signed.path,
            segments=len(plaintext) // extents.DIGEST_SIZE,
        )

        def pieces() -> Iterator[memoryview]:
            salt, prefix = self._fresh()
            yield memoryview(encrypt_extent(key, bound, plaintext, salt=salt, nonce_prefix=prefix))

        self._send(place, content, extents.ciphertext_size(len(plaintext)), pieces)

    # -- how ----------------------------------------------------------------------------------------------

    def _done(self, place: Place, content: bytes, *, create_only: bool) -> bool:
        if place not in self._upload.stored:
            return False
        if self._journal.holds(place, content):
            return True
        if create_only:
            raise StaleUpload("the store holds an object of other content")
        return False

    def _fresh(self) -> tuple[bytes, bytes]:
        # Drawn for every attempt: the same salt for other bytes would give both away.
        return self._entropy.random_bytes(SALT_SIZE), self._entropy.random_bytes(NONCE_PREFIX_SIZE)

    def _send(self, place: Place, content: bytes, size: int, pieces: Pieces) -> None:
        # Before it is sent: after a crash the journal knows what the store may hold.
        self._journal.begin(place, content)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._send_once(place, content, size, pieces)
                self._journal.finish(place, content)
                return
            except (Unreachable, UrlExpired) as exc:
                if attempt == ATTEMPTS:
                    if isinstance(exc, UrlExpired):
                        raise StoreUnavailable(
                            "the object store refuses the URLs that the broker signs"
                        ) from exc
                    raise
                if self._stop.wait(FIRST_PAUSE * 2 ** (attempt - 2) if attempt > 1 else 0):
                    raise

    def _send_once(self, place: Place, content: bytes, size: int, pieces: Pieces) -> None:
        url = self._urls.take(place)
        _check_length(url.headers, size)
        target = parse_target(url.url, self._store_hosts)
        try:
            status = self.connections.take(target).put(target, url.headers, pieces(), size=size)
        except BaseException:
            self.connections.drop(target)
            raise
        if status == _EXISTS and not self._journal.holds(place, content):
            raise StaleUpload("the store holds an object of other content")

    def _pieces(self, job: PartJob, fd: int) -> Iterator[memoryview]:
        index, part = job.place
        file = self._files[index]
        numbers = part_extents(file.size, self._extent_size, part)
        for extent, segments in zip(numbers, job.segments, strict=True):
            yield from self._extent_pieces(file, fd, extent, segments)

    def _extent_pieces(
        self, file: LocalFile, fd: int, extent: int, segments: tuple[bytes, ...]
    ) -> Iterator[memoryview]:
        plain = extents.extent_plaintext_size(file.size, self._extent_size, extent)
        salt, prefix = self._fresh()
        encryptor = ExtentEncryptor(
            extents.extent_key(self._upload.version_key, self._upload.version_id, file.path, extent),
            extents.associated_data(
                artifact=self._upload.description.artifact,
                version_id=self._upload.version_id,
                path=file.path,
                extent=extent,
                extents=extents.extent_count(file.size, self._extent_size),
            ),
            salt=salt,
            nonce_prefix=prefix,
            plaintext_size=plain,
        )
        yield memoryview(encryptor.header)
        for segment in range(encryptor.segments):
            start, length = extents.segment_plaintext_range(plain, segment)
            view = self._plain[:length]
            read_exactly(file, fd, view, extent * self._extent_size + start)
            # What is encrypted is what the manifest will say, or nothing is published.
            if digest.segment_digest(view) != segments[segment]:
                raise changed(file)
            yield self._sealed[: encryptor.encrypt_segment(segment, view, self._sealed)]


def _check_length(headers: Mapping[str, str], size: int) -> None:
    found = {name.lower(): value for name, value in headers.items()}.get("content-length")
    if found is not None and found != str(size):
        raise IntegrityFailure("the broker signed a URL for another size than the part has")
