"""The log as static files in a bucket of a real S3 server: whole at every moment, and never backwards."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.client.static_log import verify_static_log
from broker.errors import Conflict, IntegrityFailure, RollbackDetected, StoreUnavailable
from broker.ledger import note
from broker.ledger.tiles import Tile, tile_path
from broker.services import log_publishing
from broker.services.log_publishing import LogPublisher
from broker.storage.s3 import S3Store
from broker.storage.site import S3LogSite
from tests.outside_logs import go_says, go_verifier
from tests.seaweed import RunningStore
from tests.world import World

__all__ = ["go_verifier"]

pytestmark = pytest.mark.e2e


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"logs/{tmp_path.parent.name}-{tmp_path.name}/"


@pytest.fixture
def store(seaweed: RunningStore) -> S3Store:
    return seaweed.store


@pytest.fixture
def site(store: S3Store, prefix: str) -> S3LogSite:
    return S3LogSite(store, prefix=prefix)


@pytest.fixture
def grow(world: World) -> Callable[[int], int]:
    """Adds so many entries; how many there are then."""

    def add(count: int) -> int:
        for _ in range(count):
            world.login(world.admin)
        return world.size()

    return add


def published(store: S3Store, prefix: str, folder: Path) -> Path:
    """The prefix as a folder, as a mirror would take it."""
    for name, size in store.list(prefix):
        target = folder / name.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.get_range(name, 0, size) if size else b"")
    return folder


def covered(world: World, store: S3Store, prefix: str, folder: Path) -> int:
    return verify_static_log(published(store, prefix, folder), world.house.log.vkey).head.size


def test_what_is_published_verifies_as_it_grows(
    world: World, store: S3Store, site: S3LogSite, prefix: str, tmp_path: Path, grow: Callable[[int], int]
) -> None:
    publisher = LogPublisher(world.house, site, entries=False)
    for at, count in enumerate((0, 5, 300)):
        size = grow(count)
        assert publisher.publish() == size
        assert covered(world, store, prefix, tmp_path / str(at)) == size
    before = sorted(store.list(prefix))
    assert publisher.publish() == size
    assert sorted(store.list(prefix)) == before
    assert not [name for name, _ in before if "/entries/" in name]


def test_with_entries_go_verifies_every_record(
    world: World, store: S3Store, prefix: str, tmp_path: Path, grow: Callable[[int], int], go_verifier: Path
) -> None:
    size = grow(290)
    LogPublisher(world.house, S3LogSite(store, prefix=prefix), entries=True).publish()
    folder = published(store, prefix, tmp_path / "mirror")
    done = go_says(go_verifier, world.house.log.vkey, folder)
    assert done.returncode == 0, done.stderr
    assert str(size) in done.stdout
    [bundle] = [path for path in (folder / "tile" / "entries").rglob("*") if path.name == "000"]
    bundle.write_bytes(bundle.read_bytes().replace(b"user:", b"usex:", 1))
    assert go_says(go_verifier, world.house.log.vkey, folder).returncode != 0


class Failing(S3LogSite):
    """A site that stops answering after so many calls."""

    def __init__(self, store: S3Store, *, prefix: str, after: int) -> None:
        super().__init__(store, prefix=prefix)
        self.left = after

    def _count(self) -> None:
        if self.left == 0:
            raise StoreUnavailable("the store does not answer")
        self.left -= 1

    def create(self, path: str, data: bytes) -> None:
        self._count()
        super().create(path, data)

    def move(self, note: str, before: str | None) -> None:
        self._count()
        super().move(note, before)


def test_whenever_it_stops_what_is_there_is_a_whole_log(
    world: World,
    store: S3Store,
    prefix: str,
    tmp_path: Path,
    grow: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_publishing, "STRIDE", 4)
    LogPublisher(world.house, S3LogSite(store, prefix=prefix), entries=True).publish()
    reached = world.size()
    size = grow(6)
    for after in range(20):
        failing = Failing(store, prefix=prefix, after=after)
        try:
            LogPublisher(world.house, failing, entries=True).publish()
        except StoreUnavailable:
            found = covered(world, store, prefix, tmp_path / str(after))
            assert reached <= found <= size
            reached = found
        else:
            break
    assert covered(world, store, prefix, tmp_path / "end") == size
    assert after > 2


def test_replicas_that_publish_at_once_never_take_the_checkpoint_back(
    world: World, store: S3Store, site: S3LogSite, prefix: str, tmp_path: Path, grow: Callable[[int], int]
) -> None:
    seen: list[int] = []

    def publish(_: int) -> None:
        for _ in range(4):
            world.login(world.admin)
            LogPublisher(world.house, site, entries=False).publish()
            found = site.checkpoint()
            assert found is not None
            seen.append(note.open_head(found[0], world.house.log.vkey).size)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(publish, range(3)))
    assert covered(world, store, prefix, tmp_path / "end") == world.size()
    assert seen


class Overtaken(S3LogSite):
    """A site at which something happens before each answer about the checkpoint."""

    def __init__(self, store: S3Store, *, prefix: str, happens: Callable[[], object]) -> None:
        super().__init__(store, prefix=prefix)
        self._happens = happens

    def checkpoint(self) -> tuple[str, str] | None:
        self._happens()
        return super().checkpoint()


def test_a_replica_that_was_overtaken_takes_the_newer_checkpoint_for_no_rollback(
    world: World, store: S3Store, site: S3LogSite, prefix: str, grow: Callable[[int], int]
) -> None:
    def other_replica() -> None:
        grow(3)
        LogPublisher(world.house, site, entries=False).publish()

    overtaken = Overtaken(store, prefix=prefix, happens=other_replica)
    assert LogPublisher(world.house, overtaken, entries=False).publish() == world.size()
    assert not world.house.guard.is_shut


def test_a_long_backlog_is_left_when_the_server_stops(
    world: World,
    store: S3Store,
    site: S3LogSite,
    prefix: str,
    tmp_path: Path,
    grow: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_publishing, "STRIDE", 4)
    size = grow(10)
    publisher = LogPublisher(world.house, site, entries=False)
    assert publisher.publish(until=lambda: True) == 4
    assert covered(world, store, prefix, tmp_path / "part") == 4
    assert publisher.publish(until=lambda: False) == size


def test_moving_needs_the_newest_mark(site: S3LogSite) -> None:
    site.move("one\n", None)
    with pytest.raises(Conflict):
        site.move("two\n", None)
    found = site.checkpoint()
    assert found is not None
    site.move("two\n", found[1])
    with pytest.raises(Conflict):
        site.move("three\n", found[1])
    assert site.checkpoint() is not None
    assert site.checkpoint() != found


def test_a_tile_that_is_another_is_a_fork(world: World, site: S3LogSite, grow: Callable[[int], int]) -> None:
    size = grow(3)
    site.create(tile_path(Tile(level=0, index=0, width=size)), b"x" * 32 * size)
    with pytest.raises(RollbackDetected):
        LogPublisher(world.house, site, entries=False).publish()
    assert world.house.guard.is_shut


def test_a_checkpoint_that_the_log_does_not_extend_is_a_rollback(
    world: World, site: S3LogSite, grow: Callable[[int], int]
) -> None:
    size = grow(3)
    ahead = note.TreeHead(origin=world.house.log.origin, size=size + 9, root=bytes(32))
    site.move(note.sign_head(ahead, world.house.verifiers()[0], world.house.log.sign), None)
    with pytest.raises(RollbackDetected):
        LogPublisher(world.house, site, entries=False).publish()
    assert world.house.guard.is_shut


def test_something_else_in_the_place_of_the_checkpoint_is_refused(world: World, site: S3LogSite) -> None:
    site.move("hello\n", None)
    with pytest.raises(IntegrityFailure):
        LogPublisher(world.house, site, entries=False).publish()
    assert not world.house.guard.is_shut


def test_files_are_served_as_what_they_are(
    world: World, site: S3LogSite, store: S3Store, prefix: str
) -> None:
    LogPublisher(world.house, site, entries=False).publish()
    [(tile, _)] = [found for found in store.list(f"{prefix}tile/0/") if found]
    heads = {name: store._raw("head_object", Key=name) for name in (tile, f"{prefix}checkpoint")}
    assert heads[f"{prefix}checkpoint"]["ContentType"] == "text/plain; charset=utf-8"
    assert heads[tile]["ContentType"] == "application/octet-stream"
