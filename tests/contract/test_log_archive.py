"""The archive beside the published log, in a bucket of a real S3 server: whole files, true, never others."""

from __future__ import annotations

import io
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from click.testing import Result
from pyarrow import parquet

from broker.archive.parts import ParquetParts
from broker.drafts import Draft
from broker.errors import IntegrityFailure, RollbackDetected, StoreUnavailable
from broker.ledger import columns
from broker.ledger.columns import COLUMNS, SORTED_BY
from broker.services.archiving import LogArchiver
from broker.services.log_publishing import LogPublisher
from broker.services.record import new_entry
from broker.storage.s3 import S3Store
from broker.storage.site import S3LogSite
from broker.wiring.outside import open_archive
from tests.cli.served import run
from tests.contract.test_log_site import prefix, published, site, store
from tests.unit.ledger.samples import NOW, SAMPLES
from tests.world import World

__all__ = ["prefix", "site", "store"]

pytestmark = pytest.mark.e2e

WIDTH = 256
FORMAT = ParquetParts(COLUMNS, sorted_by=SORTED_BY)
PARTS = [f"archive/{columns.range_path(at, at + WIDTH)}" for at in range(0, 3 * WIDTH, WIDTH)]


@pytest.fixture
def grow(world: World) -> Callable[[int], int]:
    """Adds so many entries at once, of some principals in turn; how many there are then."""

    def add(count: int) -> int:
        grant = {**SAMPLES["grant"], "evidence": {"dpop": "a signed request"}}
        world.ledger.append(
            Draft(
                entries=tuple(
                    new_entry(
                        world.house, time=NOW + at, type="grant", **{**grant, "principal": f"user:p{at % 7}"}
                    )
                    for at in range(count)
                )
            )
        )
        return world.size()

    return add


def archiver(world: World, site: S3LogSite) -> LogArchiver:
    return LogArchiver(world.house, site, open_archive(), width=WIDTH)


def publish(world: World, site: S3LogSite) -> int:
    LogPublisher(world.house, site, entries=True).publish()
    return archiver(world, site).archive()


def names(store: S3Store, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name, _ in store.list(f"{prefix}archive/")]


def verify(world: World, folder: Path) -> Result:
    return run("ledger", "verify-export", str(folder), "--vkey", world.house.log.vkey)


def ask(world: World, folder: Path, sql: str) -> Result:
    vkey = world.house.log.vkey
    return run("ledger", "query", "--from", str(folder), "--vkey", vkey, sql, "-o", "csv")


@pytest.fixture
def mirror(
    world: World, store: S3Store, site: S3LogSite, prefix: str, tmp_path: Path, grow: Callable[[int], int]
) -> Path:
    """A published log with an archive of its first two ranges, as somebody took it home."""
    grow(2 * WIDTH + 20)
    assert publish(world, site) == 2 * WIDTH
    return published(store, prefix, tmp_path / "mirror")


def test_closed_ranges_are_archived_once_and_read_as_one_table(
    world: World, store: S3Store, site: S3LogSite, prefix: str, mirror: Path, grow: Callable[[int], int]
) -> None:
    assert names(store, prefix) == PARTS[:2]
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT range, count(*), min(index), max(index) FROM '{mirror}/archive/*/*.parquet'"
            " GROUP BY range ORDER BY range"
        ).fetchall()
    assert found == [
        ("0000000000-0000000255", 256, 0, 255),
        ("0000000256-0000000511", 256, 256, 511),
    ]
    assert verify(world, mirror).exit_code == 0
    size = world.size()
    assert ask(world, mirror, "SELECT count(*) FROM entries").stdout.split() == ["count_star()", str(size)]
    # Nothing closed since then: nothing is written. Then one range more.
    before = sorted(store.list(f"{prefix}archive/"))
    assert publish(world, site) == 2 * WIDTH
    assert sorted(store.list(f"{prefix}archive/")) == before
    grow(WIDTH)
    assert publish(world, site) == 3 * WIDTH
    assert names(store, prefix) == PARTS


def test_an_archive_without_the_bundles_is_verified_by_the_hashes(world: World, mirror: Path) -> None:
    shutil.rmtree(mirror / "tile" / "entries")
    assert verify(world, mirror).exit_code == 0
    done = ask(world, mirror, "SELECT count(*) AS n, count(DISTINCT leaf_hash) AS hashes FROM entries")
    assert done.stdout.split() == ["n,hashes", "512,512"]
    assert f"asked over 512 of {world.size()} entries" in done.stderr


def test_an_archive_that_is_another_is_found(world: World, mirror: Path, tmp_path: Path) -> None:
    original = mirror / PARTS[1]
    rows = FORMAT.decode(original.read_bytes(), most=WIDTH)
    other = rows[5]
    forged = {
        "a column": [*rows[:5], (*other[:3], "user:eve", *other[4:]), *rows[6:]],
        "a row left out": rows[:-1],
        "a row twice": [*rows[:-1], rows[-2]],
        "an entry": [
            *rows[:5],
            (*other[: columns.ENTRY], other[columns.ENTRY].replace("2", "3", 1)),
            *rows[6:],
        ],
        "another order": rows[::-1],
    }
    for what, changed in forged.items():
        for bundles in (True, False):
            folder = tmp_path / f"{what} {bundles}"
            shutil.copytree(mirror, folder)
            (folder / PARTS[1]).write_bytes(FORMAT.encode(changed))
            if not bundles:
                shutil.rmtree(folder / "tile" / "entries")
                assert ask(world, folder, "SELECT 1").exit_code == 6, what
            done = verify(world, folder)
            assert done.exit_code == 6, what
            assert PARTS[1] in done.stderr


@pytest.mark.parametrize("how", ["a gap", "beyond the log", "something else", "cut", "another range"])
def test_an_archive_of_another_shape_is_refused(world: World, mirror: Path, how: str) -> None:
    first, second = mirror / PARTS[0], mirror / PARTS[1]
    if how == "a gap":
        shutil.rmtree(first.parent)
    elif how == "beyond the log":
        (mirror / PARTS[2]).parent.mkdir()
        shutil.copy(second, mirror / PARTS[2])
    elif how == "something else":
        (first.parent / "more.parquet").write_bytes(first.read_bytes())
    elif how == "cut":
        second.write_bytes(second.read_bytes()[:-9])
    else:
        shutil.copy(first, second)
    assert verify(world, mirror).exit_code == 6


class Failing(S3LogSite):
    """A site that stops answering after so many files."""

    left = 0

    def create(self, path: str, data: bytes) -> None:
        if self.left == 0:
            raise StoreUnavailable("the store does not answer")
        self.left -= 1
        super().create(path, data)


def test_whenever_it_stops_the_archive_is_whole_and_goes_on(
    world: World, store: S3Store, site: S3LogSite, prefix: str, tmp_path: Path, grow: Callable[[int], int]
) -> None:
    grow(3 * WIDTH)
    LogPublisher(world.house, site, entries=True).publish()
    for files in range(2):
        failing = Failing(store, prefix=prefix)
        failing.left = 1
        with pytest.raises(StoreUnavailable):
            archiver(world, failing).archive()
        assert names(store, prefix) == PARTS[: files + 1]
    assert verify(world, published(store, prefix, tmp_path / "mirror")).exit_code == 0
    assert archiver(world, site).archive(until=lambda: True) == 3 * WIDTH


def test_a_stop_leaves_the_rest(
    world: World, store: S3Store, site: S3LogSite, prefix: str, grow: Callable[[int], int]
) -> None:
    assert archiver(world, site).archive() == 0  # nothing is published yet
    grow(2 * WIDTH)
    # What is not published is not archived, although it is closed.
    assert names(store, prefix) == []
    LogPublisher(world.house, site, entries=True).publish()
    assert archiver(world, site).archive(until=lambda: True) == WIDTH
    assert names(store, prefix) == PARTS[:1]


def test_replicas_race_safely(
    world: World, store: S3Store, site: S3LogSite, prefix: str, tmp_path: Path, grow: Callable[[int], int]
) -> None:
    grow(2 * WIDTH)
    LogPublisher(world.house, site, entries=True).publish()
    with ThreadPoolExecutor(3) as pool:
        reached = list(pool.map(lambda _: archiver(world, site).archive(), range(3)))
    assert reached == [2 * WIDTH] * 3
    assert names(store, prefix) == PARTS[:2]
    assert verify(world, published(store, prefix, tmp_path / "mirror")).exit_code == 0


class Late(S3LogSite):
    """A site where this process does not see what another one wrote meanwhile."""

    def has(self, path: str) -> bool:
        del path
        return False


def test_the_same_rows_in_other_bytes_are_no_fork(
    world: World, store: S3Store, site: S3LogSite, prefix: str, mirror: Path
) -> None:
    rewritten = io.BytesIO()
    table = parquet.read_table(mirror / PARTS[0], partitioning=None)
    parquet.write_table(table, rewritten, compression="snappy", store_schema=False, write_statistics=False)
    store.delete(prefix + PARTS[0])
    site.create(PARTS[0], rewritten.getvalue())
    assert rewritten.getvalue() != (mirror / PARTS[0]).read_bytes()
    late = LogArchiver(world.house, Late(store, prefix=prefix), open_archive(), width=WIDTH)
    assert late.archive() == 2 * WIDTH
    assert not world.house.guard.is_shut


@pytest.mark.parametrize("fork", [True, False], ids=["other rows", "no file of rows"])
def test_other_rows_in_the_place_of_ours_are_a_fork(
    world: World, store: S3Store, site: S3LogSite, prefix: str, mirror: Path, fork: bool
) -> None:
    rows = FORMAT.decode((mirror / PARTS[1]).read_bytes(), most=WIDTH)
    store.delete(prefix + PARTS[1])
    site.create(PARTS[1], FORMAT.encode(rows[1:]) if fork else b"x")
    late = LogArchiver(world.house, Late(store, prefix=prefix), open_archive(), width=WIDTH)
    with pytest.raises(RollbackDetected if fork else IntegrityFailure):
        late.archive()
    assert world.house.guard.is_shut is fork


def test_an_entry_that_was_changed_in_the_database_is_not_archived(
    world: World, store: S3Store, site: S3LogSite, prefix: str, grow: Callable[[int], int]
) -> None:
    grow(WIDTH)
    LogPublisher(world.house, site, entries=False).publish()
    change_entry(world, 70)
    with pytest.raises(IntegrityFailure):
        archiver(world, site).archive()
    assert names(store, prefix) == []


def change_entry(world: World, index: int) -> None:
    """What somebody with the database's own rights can do."""
    with closing(sqlite3.connect(world.url.removeprefix("sqlite:///"))) as connection, connection:
        for [name] in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        [[data]] = connection.execute("SELECT entry FROM ledger_entries WHERE idx = ?", [index])
        changed = bytes(data).replace(b"user:p", b"user:q")
        assert changed != data
        connection.execute("UPDATE ledger_entries SET entry = ? WHERE idx = ?", [changed, index])
