"""I10: a log that went back or was forked is refused, whoever noticed it, until somebody restores it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from broker.errors import LedgerUnavailable, RollbackDetected
from broker.ledger.nodes import NodeCache
from broker.services.guard import Guard
from broker.services.heads import LOOK_MS, HeadKeeper, check_extends
from broker.services.house import House
from broker.services.record import sign_head
from broker.storage.heads import FolderHeads
from broker.web.health import Readiness
from broker.web.keeper import KeeperThread
from tests.world import MIB, Person, World

LAG_SECONDS = 10


@pytest.fixture
def ana(world: World, tmp_path: Path) -> Person:
    """A reader of a log whose heads are kept in a folder."""
    publisher = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(publisher, "acme/llama@v1", {"a.bin": bytes(MIB)})
    reader = world.add("ana", groups=["acme"])
    world.with_settings(heads=FolderHeads(tmp_path / "heads", origin=world.house.log.origin))
    start(world)
    return reader


def start(world: World) -> House:
    """A process that begins now: it knows nothing but the stores."""
    world.ledger = world.open_ledger()
    house = world.with_settings(ledger=world.ledger, guard=Guard(), nodes=NodeCache())
    keeper = HeadKeeper(house, expect=world.ledger.expect, max_lag=LAG_SECONDS * 1000)
    return world.with_settings(keep_head=keeper.keep)


def copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as a, closing(sqlite3.connect(target)) as b:
        a.backup(b)


def tail_head(world: World) -> str:
    with world.house.ledger.view() as view:
        return sign_head(world.house, view.tail())


def assert_refuses(world: World, who: Person) -> None:
    issued = len(world.store.issued)
    size = world.size()
    for _ in range(2):
        with pytest.raises(RollbackDetected):
            world.ask(who, "acme/llama@v1")
    assert len(world.store.issued) == issued
    assert world.size() == size, "something was added to a log that is refused"
    assert not Readiness(world.house).check()


def test_I10_a_restored_database_does_not_start(world: World, ana: Person, tmp_path: Path) -> None:
    copy(world.path, tmp_path / "old.db")
    world.ask(ana, "acme/llama@v1")
    check_extends(world.house)
    copy(tmp_path / "old.db", world.path)
    with pytest.raises(RollbackDetected, match="does not extend"):
        check_extends(start(world))


def test_I10_a_database_restored_under_a_running_process_is_refused(
    world: World, ana: Person, tmp_path: Path
) -> None:
    copy(world.path, tmp_path / "old.db")
    world.ask(ana, "acme/llama@v1")
    copy(tmp_path / "old.db", world.path)
    start(world)
    with pytest.raises(RollbackDetected):
        world.house.keep_head()
    assert_refuses(world, ana)


def test_I10_a_restored_log_that_grew_past_the_outside_head_is_refused(
    world: World, ana: Person, tmp_path: Path
) -> None:
    copy(world.path, tmp_path / "old.db")
    world.ask(ana, "acme/llama@v1")
    outside = world.house.heads
    assert outside is not None
    newest = outside.newest()
    assert newest is not None
    copy(tmp_path / "old.db", world.path)
    start(world)
    world.with_settings(heads=None, keep_head=lambda *, force=False: None)
    while world.size() <= newest[0]:
        world.ask(ana, "acme/llama@v1")
    world.with_settings(heads=outside)
    start(world)
    issued = len(world.store.issued)
    with pytest.raises(RollbackDetected):
        world.ask(ana, "acme/llama@v1")
    assert len(world.store.issued) == issued
    assert_refuses(world, ana)


def test_I10_another_process_that_forked_the_log_is_found_by_the_next_look(
    world: World, ana: Person, tmp_path: Path
) -> None:
    world.ask(ana, "acme/llama@v1")
    fork = tmp_path / "fork.db"
    copy(world.path, fork)
    ours = world.house
    home = world.path
    world.url, world.path = f"sqlite:///{fork}", fork
    start(world)
    for _ in range(3):
        world.ask(ana, "acme/llama@v1")
        world.clock.forward(2)
    world.url, world.path, world.ledger = f"sqlite:///{home}", home, ours.ledger  # type: ignore[assignment]
    world.house = ours
    world.clock.forward(LOOK_MS / 1000)
    with pytest.raises(RollbackDetected):
        ours.keep_head()
    assert_refuses(world, ana)


def test_I10_a_client_that_saw_more_shuts_the_process(world: World, ana: Person, tmp_path: Path) -> None:
    copy(world.path, tmp_path / "old.db")
    world.with_settings(heads=None)
    world.ask(ana, "acme/llama@v1")
    seen = tail_head(world)
    copy(tmp_path / "old.db", world.path)
    start(world)
    assert Readiness(world.house).check()
    with pytest.raises(RollbackDetected, match="caller holds"):
        world.ask(ana, "acme/llama@v1", have=seen)
    assert_refuses(world, ana)


def test_I10_a_head_known_outside_is_checked_under_the_tail_lock(world: World, ana: Person) -> None:
    with world.house.ledger.view() as view:
        tail = view.tail()
    for size, root in ((tail.size + 1, tail.root), (tail.size, bytes(32))):
        start(world)
        world.ledger.expect(size, root)
        assert_refuses(world, ana)
    start(world)
    world.ledger.expect(tail.size, tail.root)
    world.ask(ana, "acme/llama@v1")


def test_I10_a_store_of_heads_that_is_away_is_borne_for_its_lag_only(
    world: World, ana: Person, tmp_path: Path
) -> None:
    world.ask(ana, "acme/llama@v1")
    (tmp_path / "heads").rename(tmp_path / "away")
    world.clock.forward(2)
    world.ask(ana, "acme/llama@v1")
    world.clock.forward(LAG_SECONDS)
    issued = len(world.store.issued)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            world.ask(ana, "acme/llama@v1")
    assert len(world.store.issued) == issued
    (tmp_path / "away").rename(tmp_path / "heads")
    world.clock.forward(2)
    world.ask(ana, "acme/llama@v1")
    check_extends(world.house)


def test_I10_the_last_head_of_an_idle_log_gets_outside(world: World, ana: Person) -> None:
    world.ask(ana, "acme/llama@v1")
    world.ask(ana, "acme/llama@v1")
    world.clock.forward(2)
    KeeperThread(world.house).look()
    assert world.house.heads is not None
    assert world.house.heads.newest() == (world.size(), tail_head(world))
