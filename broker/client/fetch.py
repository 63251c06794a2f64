"""``get``: steps 1, 7, 8, 9 and 10 of the life of a read, from a reference to files in a folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from broker.canonical import Json
from broker.client.feed import LeaseFeed
from broker.client.folder import Folder
from broker.client.grants import (
    Ask,
    Extent,
    GrantClient,
    Granted,
    SealedLease,
    all_runs,
    first_runs,
    runs_of,
)
from broker.client.opening import open_lease
from broker.client.progress import Meter, OnProgress
from broker.client.resume import (
    RECEIPTS,
    LocalReader,
    begin_state,
    claimed_extents,
    partial_path,
    read_hint,
)
from broker.client.session import Session
from broker.client.settings import DEFAULT_JOBS, Profile
from broker.client.sink import Sink
from broker.client.transfer import Worker, interrupted, run_workers
from broker.client.trust import LogMemory
from broker.client.versions import TrustedVersion, fetch_version, selected_files
from broker.envelope.lease import OpenLease
from broker.envelope.manifest import Manifest, manifest_bytes, manifest_digest
from broker.errors import BrokerError, IntegrityFailure, InvalidRequest, UsageError
from broker.ledger.receipt import FILE_EXTENSION
from broker.ledger.selection import ExtentRun
from broker.names import Ref


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a finished download leaves in the caller's hands.

    Attributes:
        text: The grant's receipt, a ``tlog-proof`` that verifies offline.
        index: Index of the grant's entry in the ledger.
        entry: That entry.
        artifact: ``collection/name``.
        version: The version that was read; the newest one when none was asked for.
        manifest: Its manifest's digest.
        dest: The folder.
        files: Files of the selection, all of them verified and in place.
        bytes: Their size.
        fetched_bytes: What of it came from the store now; the rest was there and was verified.
        leases: Leases that it took.
        completion: Receipt of the completion report; None when it could not be delivered.
    """

    text: str
    index: int
    entry: Json
    artifact: str
    version: str
    manifest: str
    dest: Path
    files: int
    bytes: int
    fetched_bytes: int
    leases: int
    completion: str | None


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        force: Replace existing files that differ.
        jobs: Worker threads.
        durable: Force each file to the disk before it gets its final name. Without it a power cut just
            after the end may leave a file of zeros under its name, as with any other downloader.
    """

    force: bool = False
    jobs: int = DEFAULT_JOBS
    durable: bool = False
    on_progress: OnProgress | None = None


@dataclass(frozen=True, kw_only=True)
class _OnDisk:
    """What of the selection is there already: whole files, and extents of unfinished ones."""

    whole: frozenset[int]
    extents: frozenset[Extent]


class Fetcher:
    """Downloads for one profile."""

    def __init__(self, session: Session, log: LogMemory, profile: Profile) -> None:
        self._session = session
        self._log = log
        self._profile = profile
        self._grants = GrantClient(session, log)

    def fetch(self, ask: Ask, dest: Path, options: FetchOptions) -> Receipt:
        """Read what ``ask`` says into ``dest``; a second call goes on where the first one ended.

        Raises:
            Denied, ApprovalNeeded, NotFound, OverBudget: The recorded answer of the broker.
            UsageError: A differing file is in the way, or another download runs in ``dest``.
            IntegrityFailure: A receipt, manifest, lease or object does not hold; nothing of a tampered
                object stays.
            DiskFull, Interrupted, Unreachable: What was verified is kept; the same call resumes.
        """
        try:
            return self._fetch(ask, dest, options)
        except KeyboardInterrupt as exc:
            raise interrupted() from exc

    def _fetch(self, ask: Ask, dest: Path, options: FetchOptions) -> Receipt:
        # Steps 1 to 7 before anything is created: a refusal leaves no folder behind.
        hinted = self._hint(ask, dest)
        granted = self._grants.request_grant(hinted)
        ref = Ref(collection=ask.ref.collection, name=ask.ref.name, version=granted.manifest)
        version = fetch_version(self._session, self._log, ref)
        if version.manifest.version != granted.version:
            raise IntegrityFailure("the grant and the manifest are of different versions")
        files = selected_files(version.manifest, ask.patterns, ask.exclude)
        if not files:
            raise InvalidRequest("no file of the version matches")
        opened = open_lease(granted.lease, version, files, asked=hinted.extents, jkt=self._session.jkt)
        folder = Folder(dest, create=True)
        try:
            with folder.locked():
                run = _Run(self, granted, version, files, folder, options)
                return run.carry_out(opened)
        finally:
            folder.close()

    def _hint(self, ask: Ask, dest: Path) -> Ask:
        """A rerun asks for what is missing only, when it is sure which version it is about."""
        if ask.ref.version is None or not dest.is_dir():
            return ask
        folder = Folder(dest, create=False)
        try:
            manifest = read_hint(folder)
            if manifest is None or not _names(ask.ref, manifest):
                return ask
            digest = manifest_digest(manifest_bytes(manifest))
            files = selected_files(manifest, ask.patterns, ask.exclude)
            claims = claimed_extents(folder, digest)
            missing = [
                (file, index)
                for file in files
                if not folder.exists(manifest.files[file].path)
                for index in range(len(manifest.files[file].extents))
                if (file, index) not in claims
            ]
        finally:
            folder.close()
        if not missing:
            return ask
        return Ask(**{**vars(ask), "extents": tuple(first_runs(runs_of(missing)))})

    # -- used by a run ------------------------------------------------------------------------------------

    def next_lease(
        self, granted: Granted, version: TrustedVersion, files: Sequence[int], runs: Sequence[ExtentRun]
    ) -> tuple[SealedLease, OpenLease]:
        """Step 9: a further lease, verified and opened."""
        lease = self._grants.request_lease(granted, runs)
        return lease, open_lease(lease, version, files, asked=runs, jkt=self._session.jkt)

    def complete(self, granted: Granted, *, files: int, bytes: int, extents: int) -> str | None:
        """Step 10. An undelivered report does not undo a finished download; a false receipt does."""
        try:
            return self._grants.report_completion(granted, files=files, bytes=bytes, extents=extents)
        except IntegrityFailure:
            raise
        except BrokerError:
            return None

    @property
    def store_hosts(self) -> tuple[str, ...]:
        """The stores that data may come from."""
        return self._profile.store_hosts


def _names(ref: Ref, manifest: Manifest) -> bool:
    if ref.artifact != manifest.artifact or ref.version is None:
        return False
    if ref.version.startswith("sha256:"):
        return manifest_digest(manifest_bytes(manifest)) == ref.version
    return ref.version == manifest.version


class _Run:
    """One download that has been granted."""

    def __init__(
        self,
        fetcher: Fetcher,
        granted: Granted,
        version: TrustedVersion,
        files: tuple[int, ...],
        folder: Folder,
        options: FetchOptions,
    ) -> None:
        self._fetcher = fetcher
        self._granted = granted
        self._version = version
        self._files = files
        self._folder = folder
        self._options = options
        self._leases = 1

    @property
    def _manifest(self) -> Manifest:
        return self._version.manifest

    def carry_out(self, first: OpenLease) -> Receipt:
        """Steps 8 to 10."""
        self._keep_receipt("grant", self._granted.lease.receipt.index, self._granted.lease.receipt_text)
        there = self._look()
        missing = self._missing(there)
        journal = begin_state(self._folder, self._version, there.extents)
        sizes = {self._manifest.files[file].path: self._manifest.files[file].size for file in self._files}
        meter = Meter(sizes, self._options.on_progress)
        counts = {file: 0 for file in self._files if file not in there.whole}
        for file, first_missing, last in missing:
            counts[file] += last - first_missing + 1
        sink = Sink(
            self._folder,
            self._manifest,
            counts,
            journal,
            replace=self._options.force,
            durable=self._options.durable,
        )
        try:
            self._report_present(meter, there, missing)
            self._finish_ready(sink, counts)
            if missing:
                self._transfer(first, missing, sink, meter)
        finally:
            sink.close()
            journal.close()
        return self._finish(missing, len(sink.finished))

    def _finish(self, missing: Sequence[ExtentRun], finished: int) -> Receipt:
        fetched = sum(self._bytes_of(run) for run in missing)
        received = sum(last - first + 1 for _, first, last in missing)
        completion = self._fetcher.complete(self._granted, files=finished, bytes=fetched, extents=received)
        if completion is not None:
            self._keep_receipt("completion", self._granted.receipt.index, completion)
        return Receipt(
            text=self._granted.lease.receipt_text,
            index=self._granted.receipt.index,
            entry=self._granted.receipt.entry,
            artifact=self._granted.artifact,
            version=self._granted.version,
            manifest=self._granted.manifest,
            dest=self._folder.path,
            files=len(self._files),
            bytes=sum(self._manifest.files[file].size for file in self._files),
            fetched_bytes=fetched,
            leases=self._leases,
            completion=completion,
        )

    # -- what is there ------------------------------------------------------------------------------------

    def _look(self) -> _OnDisk:
        """Read and digest what is on disk; nothing counts because a state file says so."""
        claims = claimed_extents(self._folder, self._version.digest)
        by_file: dict[int, list[int]] = {}
        for file, index in claims:
            by_file.setdefault(file, []).append(index)
        local = threading.local()

        def look(file: int) -> tuple[int, bool, list[int]]:
            if not hasattr(local, "reader"):
                local.reader = LocalReader()
            whole = self._look_whole(local.reader, file)
            return file, whole, [] if whole else self._look_partial(local.reader, file, by_file.get(file, []))

        with ThreadPoolExecutor(self._options.jobs, "broker-verify") as pool:
            found = list(pool.map(look, self._files))
        return _OnDisk(
            whole=frozenset(file for file, whole, _ in found if whole),
            extents=frozenset((file, index) for file, _, indices in found for index in indices),
        )

    def _look_whole(self, reader: LocalReader, file: int) -> bool:
        path = self._manifest.files[file].path
        try:
            with self._folder.reading(path) as fd:
                if fd is None:
                    return False
                if reader.matches(fd, self._manifest, file):
                    return True
        except UsageError:
            if not self._options.force or not self._folder.exists(path):
                raise
        if self._options.force:
            return False
        raise UsageError(
            f"{self._folder.path / path} exists and differs from {self._version.ref}",
            next="move it away, choose another folder, or use --force to replace it",
        )

    def _look_partial(self, reader: LocalReader, file: int, indices: Sequence[int]) -> list[int]:
        with self._folder.reading(partial_path(file)) as fd:
            if fd is None:
                return []
            count = len(self._manifest.files[file].extents)
            return [at for at in indices if at < count and reader.holds(fd, self._manifest, file, at)]

    def _missing(self, there: _OnDisk) -> list[ExtentRun]:
        wanted = (
            (file, index)
            for file, first, last in all_runs(self._manifest, self._files)
            if file not in there.whole
            for index in range(first, last + 1)
            if (file, index) not in there.extents
        )
        return runs_of(wanted)

    def _report_present(self, meter: Meter, there: _OnDisk, missing: Sequence[ExtentRun]) -> None:
        absent = dict.fromkeys(self._files, 0)
        for run in missing:
            absent[run[0]] += self._bytes_of(run)
        for file in self._files:
            signed = self._manifest.files[file]
            present = signed.size if file in there.whole else signed.size - absent[file]
            meter.advance(signed.path, present)

    def _bytes_of(self, run: ExtentRun) -> int:
        file, first, last = run
        size, step = self._manifest.files[file].size, self._manifest.extent_size
        return min(size, (last + 1) * step) - first * step

    # -- doing it -------------------------------------------------------------------------------------------

    def _finish_ready(self, sink: Sink, counts: dict[int, int]) -> None:
        """Empty files, and files that a former run fetched whole but did not rename."""
        for file, count in counts.items():
            if count == 0:
                sink.finish_whole(file)

    def _transfer(self, first: OpenLease, missing: list[ExtentRun], sink: Sink, meter: Meter) -> None:
        feed = LeaseFeed(missing, first, self._next_lease)

        def make(stop: threading.Event) -> Worker:
            return Worker(
                manifest=self._manifest,
                sink=sink,
                meter=meter,
                store_hosts=self._fetcher.store_hosts,
                stop=stop,
            )

        extents = sum(last - start + 1 for _, start, last in missing)
        run_workers(feed, make, jobs=min(self._options.jobs, extents))

    def _next_lease(self, runs: Sequence[ExtentRun]) -> OpenLease:
        sealed, opened = self._fetcher.next_lease(self._granted, self._version, self._files, runs)
        self._leases += 1
        self._keep_receipt("lease", sealed.receipt.index, sealed.receipt_text)
        return opened

    def _keep_receipt(self, kind: str, index: int, text: str) -> None:
        self._folder.write(f"{RECEIPTS}/{index:08d}-{kind}{FILE_EXTENSION}", text.encode("utf-8"))
