"""I10: a log that lost entries never goes on under its old name, and under a new one only on record."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from broker.errors import ConfigurationError, IntegrityFailure, RollbackDetected
from broker.ledger import merkle, note
from broker.services import folding, succession
from broker.services.heads import HeadKeeper, check_extends
from broker.services.house import House, LogIdentity
from broker.storage.heads import FolderHeads
from tests.world import World

NEW = "new.example/log"
REASON = "restored from the night before"


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    return tmp_path / "heads"


@pytest.fixture
def lost(world: World, heads: Path, tmp_path: Path) -> int:
    """The database of an earlier moment in the place of the newest; how many entries had been signed."""
    world.add("ana")
    backup = tmp_path / "backup.db"
    world.ledger.close()
    shutil.copy(world.path, backup)
    reopen(world)
    for _ in range(5):
        world.login(world.admin)
    house = world.with_settings(heads=FolderHeads(heads, origin=world.house.log.origin))
    HeadKeeper(house, expect=world.ledger.expect, max_lag=0).keep(force=True)
    size = world.size()
    world.ledger.close()
    for suffix in ("-wal", "-shm"):
        Path(f"{world.path}{suffix}").unlink(missing_ok=True)
    shutil.copy(backup, world.path)
    reopen(world)
    return size


def reopen(world: World) -> None:
    world.ledger = world.open_ledger()
    world.with_settings(ledger=world.ledger)


def renamed(world: World, heads: Path, origin: str = NEW) -> House:
    old = world.house.log
    public = note.parse_vkey(old.vkey).public
    log = LogIdentity(origin=origin, vkey=note.vkey(origin, public), sign=old.sign)
    return replace(world.house, log=log, heads=FolderHeads(heads, origin=origin))


def former_heads(world: World, heads: Path) -> FolderHeads:
    return FolderHeads(heads, origin=world.house.log.origin)


def test_I10_the_loss_is_on_record(world: World, lost: int, heads: Path) -> None:
    with pytest.raises(RollbackDetected):
        check_extends(world.house)
    left = world.size()
    house = renamed(world, heads)
    with house.ledger.view() as view:
        root = view.tail().root
    made = succession.succeed(house, former_heads(world, heads), reason=REASON, force=False)
    entry = world.entry(left)
    assert made["index"] == left
    assert entry["type"] == "origin"
    assert entry["former"] == {"origin": world.house.log.origin, "size": left, "root": f"sha256:{root.hex()}"}
    assert entry["known"]["size"] == lost > left
    assert (entry["origin"], entry["vkey"], entry["reason"]) == (NEW, house.log.vkey, REASON)
    # The house may serve now, under that name and no other; the tree is the one that was there.
    succession.check_name(house)
    check_extends(house)
    with pytest.raises(ConfigurationError):
        succession.check_name(world.house)
    with house.ledger.view() as view:
        assert merkle.frontier_at(left, view.hashes).root() == root
    assert folding.audit_rows(house).ok


def test_I10_heads_of_the_old_name_stay_where_they_are(world: World, lost: int, heads: Path) -> None:
    house = renamed(world, heads)
    succession.succeed(house, former_heads(world, heads), reason=REASON, force=False)
    HeadKeeper(house, expect=world.ledger.expect, max_lag=0).keep(force=True)
    old, new = former_heads(world, heads).newest(), FolderHeads(heads, origin=NEW).newest()
    assert old is not None
    assert new is not None
    assert note.open_head(old[1], world.house.log.vkey).size == lost
    assert note.open_head(new[1], house.log.vkey).size == world.size()
    with pytest.raises(IntegrityFailure):
        note.open_head(new[1], world.house.log.vkey)


def test_I10_a_log_that_lost_nothing_keeps_its_name(world: World, heads: Path) -> None:
    kept = former_heads(world, heads)
    house = world.with_settings(heads=kept)
    HeadKeeper(house, expect=world.ledger.expect, max_lag=0).keep(force=True)
    size = world.size()
    for store in (kept, None):
        with pytest.raises(ConfigurationError):
            succession.succeed(renamed(world, heads), store, reason=REASON, force=False)
    with pytest.raises(ConfigurationError):
        succession.succeed(house, kept, reason=REASON, force=True)
    assert world.size() == size
    succession.succeed(renamed(world, heads), kept, reason="the old key was stolen", force=True)
    assert world.entry(size)["former"]["origin"] == world.house.log.origin


def test_I10_settings_with_another_name_do_not_start(world: World, heads: Path) -> None:
    succession.check_name(world.house)
    with pytest.raises(ConfigurationError):
        succession.check_name(renamed(world, heads))


def test_I10_a_name_may_change_again(world: World, lost: int, heads: Path) -> None:
    first, second = renamed(world, heads), renamed(world, heads, "newer.example/log")
    succession.succeed(first, former_heads(world, heads), reason=REASON, force=False)
    succession.succeed(second, FolderHeads(heads, origin=NEW), reason="again", force=True)
    succession.check_name(second)
    with pytest.raises(ConfigurationError):
        succession.check_name(first)
    assert world.entry(world.size() - 1)["former"]["origin"] == NEW


def test_I10_a_client_with_the_old_name_is_told(world: World, lost: int, heads: Path) -> None:
    seen = note.TreeHead(origin=world.house.log.origin, size=1, root=bytes(32))
    text = note.sign_head(seen, world.house.verifiers()[0], world.house.log.sign)
    world.house = renamed(world, heads)
    with pytest.raises(RollbackDetected) as refused:
        world.ask(world.admin, "acme/llama@v1", have=text)
    assert "ledger pin" in (refused.value.next or "")
    assert not world.house.guard.is_shut


def test_I10_heads_of_an_earlier_release_are_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    (folder / f"{7:016d}.head").write_text("x")
    with pytest.raises(ConfigurationError):
        FolderHeads(folder, origin="a.example")
