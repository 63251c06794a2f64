"""The thread that asks the witnesses: what it tells the log, once, and that it never ends by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from broker.errors import LedgerUnavailable, RollbackDetected, Unavailable
from broker.web import cosigner
from broker.web.cosigner import CosignerThread
from tests.cosigners import Witnessed
from tests.world import World


@pytest.fixture
def witnessed(world: World) -> Witnessed:
    return Witnessed(world)


def look(thread: CosignerThread, world: World) -> list[tuple[str, str | None]]:
    """(what, witness) of every line of one look, a minute after the one before."""
    world.clock.forward(60)
    with capture_logs() as lines:
        thread.look()
    return [(line["event"], line.get("witness")) for line in lines]


def test_a_witness_that_fails_is_told_once_and_so_is_its_return(world: World, witnessed: Witnessed) -> None:
    thread = CosignerThread(world.house)
    witnessed.witnesses[1].is_down = True
    assert look(thread, world) == [("a witness does not sign", "w1")]
    assert look(thread, world) == []
    witnessed.witnesses[1].is_down = False
    assert look(thread, world) == [("a witness signs again", "w1")]
    assert look(thread, world) == []
    assert witnessed.known.size == world.size()


def test_a_rollback_that_a_witness_saw_is_told_with_its_name(world: World, witnessed: Witnessed) -> None:
    thread = CosignerThread(world.house)
    witnessed.witnesses[0].seen = (1_000_000, bytes(32))
    with capture_logs() as lines:
        thread.look()
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("ROLLBACK DETECTED", "critical")
    assert line["why"].startswith("w0: it knows 1000000 entries")
    with pytest.raises(RollbackDetected):
        world.house.guard.check()
    assert look(thread, world) == []


def test_a_database_that_is_away_ends_nothing(
    world: World, witnessed: Witnessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = CosignerThread(world.house)

    def fail() -> None:
        raise LedgerUnavailable("the database does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(world.ledger, "view", fail)
        assert look(thread, world) == [("a witness does not sign", None)]
        assert look(thread, world) == []
    assert look(thread, world) == []
    assert witnessed.known.size == world.size()


def test_a_fault_of_our_own_ends_nothing_either(
    world: World, witnessed: Witnessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = CosignerThread(world.house)
    with monkeypatch.context() as broken:
        broken.setattr(world.ledger, "view", None)
        assert look(thread, world)[0] == ("witnesses are not asked", None)
    look(thread, world)
    assert witnessed.known.size == world.size()


def test_it_runs_until_it_is_stopped(
    world: World, witnessed: Witnessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosigner, "INTERVAL_SECONDS", 0.001)
    thread = CosignerThread(world.house)
    thread.start()
    thread.start()
    thread.stop()
    assert witnessed.known.size == world.size(), "it looks before it waits"
    idle = CosignerThread(replace(world.house, witnessed=None))
    idle.start()
    idle.look()
    idle.stop()


def test_the_examination_says_who_signs(world: World, witnessed: Witnessed) -> None:
    assert cosigner.examine(replace(world.house, witnessed=None)) == "none configured"
    witnessed.witnesses[2].is_down = True
    assert cosigner.examine(world.house).startswith(
        f"a quorum signed the head of {world.size()} entries; but w2"
    )
    world.login(world.admin)
    for witness in witnessed.witnesses:
        witness.is_down = True
    world.clock.forward(60)
    with pytest.raises(Unavailable, match="no quorum"):
        cosigner.examine(world.house)
