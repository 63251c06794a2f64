"""The data plane: extents from the store, decrypted, digested and written, a segment at a time (step 8).

Each worker has one connection per store and two buffers of 1 MiB that it uses over and over, so memory
does not grow with the size of anything. Receiving, decrypting, digesting and writing all let go of the
interpreter's lock: a few threads fill several cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from broker import limits
from broker.client.feed import Job, LeaseFeed, Stopped
from broker.client.progress import Meter
from broker.client.rawhttp import ConnectionCache, Target, UrlExpired, parse_target
from broker.client.sink import Sink
from broker.envelope import extents
from broker.envelope.manifest import Manifest
from broker.envelope.reader import ExtentReader
from broker.errors import IntegrityFailure, Interrupted, Unreachable

ATTEMPTS: Final = 5
"""How often one extent is fetched before the store counts as unreachable."""
FIRST_PAUSE: Final = 0.25
"""Seconds before the third attempt (the second is at once: an idle connection was closed); then doubled."""


class Worker:
    """Fetches extents in one thread until the feed is empty."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        sink: Sink,
        meter: Meter,
        store_hosts: Sequence[str],
        stop: threading.Event,
    ) -> None:
        self._manifest = manifest
        self._sink = sink
        self._meter = meter
        self._store_hosts = store_hosts
        self._stop = stop
        self.connections = ConnectionCache()
        self._header = memoryview(bytearray(extents.HEADER_SIZE))
        self._sealed = memoryview(bytearray(limits.SEGMENT_SIZE))
        self._plain = memoryview(bytearray(limits.SEGMENT_SIZE))

    def run(self, feed: LeaseFeed) -> None:
        """Take, fetch, finish; whatever goes wrong ends the whole transfer."""
        try:
            while (job := feed.take()) is not None:
                try:
                    self._fetch(job)
                except UrlExpired:
                    feed.give_back(job)
                else:
                    feed.finish()
        except Stopped:
            return
        except BaseException as exc:
            feed.fail(exc)
        finally:
            self.connections.close()

    def _fetch(self, job: Job) -> None:
        target = parse_target(job.extent.url, self._store_hosts)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._fetch_once(job, target)
                return
            except Unreachable:
                if attempt == ATTEMPTS:
                    raise
                pause = FIRST_PAUSE * 2 ** (attempt - 2) if attempt > 1 else 0
                if self._stop.wait(pause):
                    raise Stopped from None

    def _fetch_once(self, job: Job, target: Target) -> None:
        done = 0
        signed = self._manifest.files[job.file]

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._meter.advance(signed.path, count)

        try:
            self._receive(job, target, advance)
            self._sink.finish_extent(job.file, job.extent.index)
        except BaseException as exc:
            # What is left on the connection is not known, and nothing of this extent counts.
            self.connections.drop(target)
            self._meter.advance(signed.path, -done)
            if isinstance(exc, IntegrityFailure):
                self._sink.discard(job.file)
                raise IntegrityFailure(
                    f"{signed.path} is not what its publisher signed (extent {job.extent.index})",
                    why=exc.what,
                    next="nothing of it was kept; tell the publisher and the operator of the store",
                ) from exc
            raise

    def _receive(self, job: Job, target: Target, advance: Callable[[int], None]) -> None:
        manifest, extent = self._manifest, job.extent
        signed = manifest.files[job.file]
        plain = extents.extent_plaintext_size(signed.size, manifest.extent_size, extent.index)
        connection = self.connections.take(target)
        connection.get_range(target, extent.range, start=extent.start, length=extent.length)
        connection.read_into(self._header)
        reader = ExtentReader(
            extent.key,
            extents.associated_data(
                artifact=manifest.artifact,
                version_id=manifest.version_id,
                path=signed.path,
                extent=extent.index,
                extents=len(signed.extents),
            ),
            self._header,
            plaintext_size=plain,
            extent_digest=signed.extents[extent.index],
        )
        fd = self._sink.open(job.file)
        offset = extent.index * manifest.extent_size
        for segment in range(reader.segments):
            _, size = extents.segment_ciphertext_range(plain, segment)
            sealed = self._sealed[:size]
            connection.read_into(sealed)
            got = reader.read_segment(sealed, self._plain)
            # Written before the extent's digest is known, but to a partial file that nobody uses: the
            # bytes count only after finish() (I09).
            self._sink.write(fd, self._plain[:got], offset)
            offset += got
            advance(got)
        reader.finish()


def run_workers(feed: LeaseFeed, make: Callable[[threading.Event], Worker], *, jobs: int) -> None:
    """Run a transfer with ``jobs`` threads, to its end or to its first failure.

    Raises:
        Interrupted: Ctrl-C; what was verified is kept.
        BrokerError: The first failure of any thread.
    """
    stop = threading.Event()
    workers = [make(stop) for _ in range(jobs)]
    threads = [
        threading.Thread(target=worker.run, args=(feed,), name=f"broker-transfer-{at}", daemon=True)
        for at, worker in enumerate(workers)
    ]
    try:
        feed.start()
        for thread in threads:
            thread.start()
        feed.wait()
    except KeyboardInterrupt as exc:
        feed.fail(exc)
    finally:
        if feed.failure is not None:
            stop.set()
            for worker in workers:
                worker.connections.abort()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if feed.failure is None:
        feed.join()
    if isinstance(feed.failure, KeyboardInterrupt):
        raise interrupted() from feed.failure
    if feed.failure is not None:
        raise feed.failure


def interrupted() -> Interrupted:
    """What Ctrl-C becomes."""
    return Interrupted("interrupted; what was verified is kept", next="the same command again resumes")
