"""``put``: from a file or folder to a committed version, steps P1 to P7 as the publisher sees them."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker import limits, names
from broker.canonical import Json
from broker.client.progress import Meter, OnProgress
from broker.client.sending import PartJob, Sender, StaleUpload, UrlSource
from broker.client.session import Session
from broker.client.settings import DEFAULT_JOBS, Profile
from broker.client.trust import LogMemory
from broker.client.uploads import SEGMENTS, Description, OpenUpload, Place, UploadClient, UploadJournal
from broker.client.versions import TrustedVersion, fetch_version
from broker.client.walk import DigestedFile, Digester, LocalFile, walk_files
from broker.envelope import extents
from broker.envelope.manifest import Manifest, manifest_bytes, manifest_digest
from broker.envelope.parts import part_extents, part_plan
from broker.errors import Conflict, Interrupted, NotFound, UsageError
from broker.model import KINDS
from broker.names import Ref

DEFAULT_KIND: Final = "checkpoint"
TIER: Final = "tier"
DEFAULT_TIER: Final = "standard"
_RESTARTS: Final = 2


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """How to publish; ``extent_size`` is in bytes, a whole number of MiB."""

    kind: str = DEFAULT_KIND
    labels: Mapping[str, str] | None = None
    extent_size: int = limits.DEFAULT_EXTENT_SIZE
    jobs: int = DEFAULT_JOBS
    on_progress: OnProgress | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A version that is there now.

    Attributes:
        artifact: ``collection/name``.
        version: Its name.
        manifest: Its manifest's digest.
        files: Number of files.
        bytes: Their size.
        created: False when the same content was there already.
        receipt: The commit's receipt; None when nothing was committed now.
        entry: Index of the commit's entry in the ledger.
    """

    artifact: str
    version: str
    manifest: str
    files: int
    bytes: int
    created: bool
    receipt: str | None
    entry: int | None


class Publisher:
    """Publishes for one profile."""

    def __init__(self, session: Session, log: LogMemory, profile: Profile) -> None:
        self._session = session
        self._log = log
        self._profile = profile
        self._client = UploadClient(session, log)

    def publish(self, root: Path, ref: Ref, options: PublishOptions) -> Published:
        """Publish what is below ``root`` as ``ref``. A second call goes on where the first one ended.

        Raises:
            UsageError: The reference has no version or a path, or something cannot be published.
            Denied, ApprovalNeeded, OverBudget: The recorded answer of the broker.
            Conflict: The version exists with other content, or a file changed while it was read.
            Interrupted, Unreachable: The parts that are stored stay; the same call resumes.
        """
        files, wanted = describe(root, ref, options)
        try:
            for _ in range(_RESTARTS):
                try:
                    return self._publish(files, wanted, options)
                except StaleUpload:
                    continue
            raise Conflict(
                f"the files of {ref} changed since their upload began",
                next="the same command again begins anew",
            )
        except KeyboardInterrupt as exc:
            raise Interrupted(
                "interrupted; what was uploaded is kept", next="the same command again resumes"
            ) from exc

    def _publish(self, files: list[LocalFile], wanted: Description, options: PublishOptions) -> Published:
        try:
            upload = self._client.begin(wanted)
        except Conflict as conflict:
            return self._compare(files, wanted, conflict)
        journal = UploadJournal(self._profile, upload.id)
        finished = False
        try:
            digested = _Pool(self, upload, files, journal, options).run()
            manifest = Manifest(
                artifact=wanted.artifact,
                version=wanted.version,
                version_id=upload.version_id,
                kind=wanted.kind,
                labels=wanted.labels,
                extent_size=wanted.extent_size,
                files=tuple(found.signed for found in digested),
            )
            version, receipt = self._client.commit(upload, manifest, self._profile)
            finished = True
        except StaleUpload:
            # What the store holds under a create-only name cannot be replaced: a new upload, new names.
            self._client.abandon(upload)
            finished = True
            raise
        finally:
            journal.close(done=finished)
        return _published(manifest, version, receipt)

    def _compare(self, files: list[LocalFile], wanted: Description, conflict: Conflict) -> Published:
        """The version exists: the same content is fine, other content is the conflict that it was."""
        collection, name = names.parse_artifact(wanted.artifact)
        ref = Ref(collection=collection, name=name, version=wanted.version)
        try:
            found = fetch_version(self._session, self._log, ref)
        except NotFound:
            raise conflict from None
        if not _same_content(files, wanted, found.manifest):
            raise conflict
        return _existing(found)

    # -- used by the pool -----------------------------------------------------------------------------------

    def sender(
        self,
        upload: OpenUpload,
        files: Sequence[LocalFile],
        urls: UrlSource,
        journal: UploadJournal,
        meter: Meter,
        stop: threading.Event,
    ) -> Sender:
        """A sender for one thread."""
        return Sender(
            upload=upload,
            files=files,
            urls=urls,
            journal=journal,
            meter=meter,
            store_hosts=self._profile.store_hosts,
            entropy=self._session.entropy,
            stop=stop,
        )

    def url_source(self, upload: OpenUpload, places: Sequence[Place]) -> UrlSource:
        """URLs for the parts that the store does not hold."""
        return UrlSource(self._client, upload, [place for place in places if place not in upload.stored])


def describe(root: Path, ref: Ref, options: PublishOptions) -> tuple[list[LocalFile], Description]:
    """What would be published: the files as they are now, and the description that is sent.

    Raises:
        UsageError: The reference has no version or a path, or something cannot be published.
        InvalidRequest: A label, version or path is not valid.
    """
    if ref.version is None or ref.path is not None:
        raise UsageError(
            "a publisher names the version: collection/name@version",
            next="broker put PATH collection/name@VERSION",
        )
    names.parse_version_name(ref.version)
    if options.kind not in KINDS:
        raise UsageError(f"--kind is {' or '.join(KINDS)}")
    labels = {TIER: DEFAULT_TIER, **(options.labels or {})}
    for key, value in labels.items():
        names.check_label(key, value)
    if options.extent_size % limits.SEGMENT_SIZE:
        raise UsageError("the extent size is a whole number of MiB")
    extents.check_extent_size(options.extent_size)
    files = walk_files(root)
    return files, Description(
        artifact=ref.artifact,
        version=ref.version,
        kind=options.kind,
        labels=labels,
        extent_size=options.extent_size,
        files=tuple((file.path, file.size) for file in files),
    )


def _same_content(files: list[LocalFile], wanted: Description, manifest: Manifest) -> bool:
    listed = tuple((file.path, file.size) for file in manifest.files)
    if (wanted.kind, dict(wanted.labels), wanted.files) != (manifest.kind, dict(manifest.labels), listed):
        return False
    digester = Digester()
    return all(
        digester.digest_file(file, manifest.extent_size).signed == signed
        for file, signed in zip(files, manifest.files, strict=True)
    )


def _published(manifest: Manifest, version: Json, receipt: str) -> Published:
    entry = version.get("entry")
    return Published(
        artifact=manifest.artifact,
        version=manifest.version,
        manifest=manifest_digest(manifest_bytes(manifest)),
        files=len(manifest.files),
        bytes=manifest.total_bytes,
        created=True,
        receipt=receipt,
        entry=entry if type(entry) is int else None,
    )


def _existing(found: TrustedVersion) -> Published:
    return Published(
        artifact=found.manifest.artifact,
        version=found.manifest.version,
        manifest=found.digest,
        files=len(found.manifest.files),
        bytes=found.manifest.total_bytes,
        created=False,
        receipt=None,
        entry=found.commit.index,
    )


class _Pool:
    """Digests files and sends their parts with a few threads; parts go first, so memory stays bounded."""

    def __init__(
        self,
        publisher: Publisher,
        upload: OpenUpload,
        files: list[LocalFile],
        journal: UploadJournal,
        options: PublishOptions,
    ) -> None:
        self._upload = upload
        self._files = files
        self._jobs = options.jobs
        self._extent_size = upload.description.extent_size
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._digested: dict[int, DigestedFile] = {}
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[Sender, Digester], None] | None]]
        self._queue = queue.PriorityQueue()
        self._number = itertools.count()
        self._left = 0
        self._changed = threading.Condition()
        meter = Meter({file.path: file.size for file in files}, options.on_progress)
        urls = publisher.url_source(upload, self._places())
        self._senders = [
            publisher.sender(upload, files, urls, journal, meter, self._stop) for _ in range(self._jobs)
        ]

    def _places(self) -> list[Place]:
        found: list[Place] = []
        for index, file in enumerate(self._files):
            plan = part_plan(file.size, self._extent_size)
            found += [(index, part) for part in range(1, plan.parts + 1)]
            if extents.has_segments_object(file.size, self._extent_size):
                found.append((index, SEGMENTS))
        return found

    def run(self) -> list[DigestedFile]:
        """Everything is in the store; the digested files in order.

        Raises:
            BrokerError: The first failure of any thread.
        """
        for index in range(len(self._files)):
            self._put(1, self._digest(index))
        threads = [
            threading.Thread(target=self._work, args=(sender,), name=f"broker-upload-{at}", daemon=True)
            for at, sender in enumerate(self._senders)
        ]
        try:
            for thread in threads:
                thread.start()
            with self._changed:
                while self._left and self._failure is None:
                    self._changed.wait()
        except KeyboardInterrupt as exc:
            self._fail(exc)
        finally:
            self._end(threads)
        if self._failure is not None:
            raise self._failure
        return [self._digested[index] for index in range(len(self._files))]

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self._stop.set()
        if self._failure is not None:
            for sender in self._senders:
                sender.connections.abort()
        for _ in threads:
            self._queue.put((-1, next(self._number), None))
        for thread in threads:
            if thread.ident is not None:
                thread.join()

    def _put(self, rank: int, job: Callable[[Sender, Digester], None]) -> None:
        with self._changed:
            self._left += 1
        self._queue.put((rank, next(self._number), job))

    def _fail(self, failure: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _work(self, sender: Sender) -> None:
        digester = Digester()
        try:
            while (job := self._queue.get()[2]) is not None:
                job(sender, digester)
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()
        except BaseException as exc:
            self._fail(exc)
        finally:
            sender.connections.close()

    def _digest(self, index: int) -> Callable[[Sender, Digester], None]:
        file = self._files[index]
        step = part_plan(file.size, self._extent_size).extents_per_part

        def digest_file(sender: Sender, digester: Digester) -> None:
            del sender
            gathered: list[tuple[bytes, ...]] = []

            def on_extent(extent: int, segments: tuple[bytes, ...]) -> None:
                # A part is sent as soon as its extents are digested, while the file is still read on.
                gathered.append(segments)
                part = extent // step + 1
                if extent + 1 == part_extents(file.size, self._extent_size, part).stop:
                    job = PartJob(place=(index, part), segments=tuple(gathered))
                    gathered.clear()
                    self._put(0, _send_part(job))

            found = digester.digest_file(file, self._extent_size, on_extent)
            self._digested[index] = found
            if extents.has_segments_object(file.size, self._extent_size):
                self._put(0, _send_segments(index, found))

        return digest_file


def _send_part(job: PartJob) -> Callable[[Sender, Any], None]:
    return lambda sender, _: sender.send_part(job)


def _send_segments(index: int, found: DigestedFile) -> Callable[[Sender, Any], None]:
    return lambda sender, _: sender.send_segments(index, found)
