"""Whatever leases a broker serves, each wanted extent is handed out once, and again only when it expired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from broker.client.feed import LeaseFeed
from broker.client.grants import Extent, first_runs, runs_of
from broker.envelope.lease import LeaseExtent, LeaseFile, OpenLease
from broker.ledger.selection import ExtentRun

extents = st.tuples(st.integers(0, 4), st.integers(0, 9))


def spread(runs: Sequence[ExtentRun]) -> list[Extent]:
    return [(file, index) for file, first, last in runs for index in range(first, last + 1)]


def lease_of(places: Sequence[Extent], number: int) -> OpenLease:
    files = sorted({file for file, _ in places})
    return OpenLease(
        grant="g_x",
        number=number,
        files=tuple(
            LeaseFile(
                file=file,
                path=f"f{file}",
                extents=tuple(
                    LeaseExtent(index=index, key=bytes(32), url="http://127.0.0.1/x", start=0, length=1)
                    for owner, index in sorted(places)
                    if owner == file
                ),
            )
            for file in files
        ),
    )


@given(st.sets(extents))
def test_runs_cover_exactly_what_they_are_made_of(places: set[Extent]) -> None:
    runs = runs_of(places)
    assert spread(runs) == sorted(places)
    for size in (0, 1, 3, 1000):
        assert spread(first_runs(runs, size)) == sorted(places)[:size]


@given(st.sets(extents, min_size=1), st.sets(extents), st.integers(1, 5), st.sets(extents))
def test_every_extent_once(
    wanted: set[Extent], first: set[Extent], window: int, expiring: set[Extent]
) -> None:
    numbers = iter(range(1, 10_000))

    def more(runs: Sequence[ExtentRun]) -> OpenLease:
        return lease_of(spread(runs)[:window], next(numbers))

    feed = LeaseFeed(runs_of(wanted), lease_of(sorted(first), 0), more)
    feed.start()
    left, seen = set(expiring), Counter[Extent]()
    while (job := feed.take()) is not None:
        if job.place in left:
            left.discard(job.place)
            feed.give_back(job)
            continue
        seen[job.place] += 1
        feed.finish()
    feed.join()
    assert feed.failure is None
    assert seen == Counter(wanted)
