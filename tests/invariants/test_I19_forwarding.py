"""I19 for those who watch: who can only write to the database keeps nothing from them, nor lies to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from broker.db.cursors import CursorStore
from broker.db.engine import open_engine
from broker.drafts import Draft
from broker.errors import IntegrityFailure
from broker.forwarding.jsonl import LineFile
from broker.ledger.entry import build_entry
from broker.ledger.merkle import leaf_hash
from broker.services.forwarding import Destination, Forwarder, render_as
from broker.services.record import new_entry
from broker.web.courier import Courier
from tests.world import World

FORGED = build_entry(type="abandon", time=1, salt=bytes(16), upload="u_forged")


def forwarder(world: World, path: Path) -> Forwarder:
    cursors = CursorStore(open_engine(world.url), integrity_key=world.integrity_key, clock=world.clock)
    destination = Destination(
        name="siem",
        kind="file",
        receiver=LineFile(path),
        render=render_as("jsonl", origin="o", version="1"),
        batch=4,
    )
    return Forwarder(world.house, cursors, destination)


def intrude(world: World, *statements: str, **values: object) -> None:
    """What somebody does who can write the file and has none of the broker's keys."""
    engine = create_engine(world.url)
    with engine.begin() as connection:
        for (name,) in connection.execute(
            text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        ).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            connection.execute(text(statement), values)
    engine.dispose()


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    for at in range(300):
        entry = new_entry(made.house, time=made.clock.now(), type="abandon", upload=f"u_{at}")
        made.ledger.append(Draft(entries=(entry,)))
    return made


def test_I19_a_cursor_that_somebody_moved_past_entries_is_found(world: World, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert forwarder(world, path).step().moved == 4
    intrude(world, "UPDATE forward_cursors SET next = 200, holder = '', until = 0")
    with pytest.raises(IntegrityFailure, match="not what the broker wrote"):
        forwarder(world, path).step()
    assert len(path.read_bytes().splitlines()) == 4


@pytest.mark.parametrize("index", [5, 299], ids=["in-a-full-subtree", "newest"])
@pytest.mark.parametrize("hashes", [False, True], ids=["entry", "entry-and-leaf"])
def test_I19_a_changed_entry_goes_to_nobody(world: World, tmp_path: Path, index: int, hashes: bool) -> None:
    leaf = ", leaf_hash = :leaf" if hashes else ""
    intrude(
        world,
        f"UPDATE ledger_entries SET entry = :entry{leaf} WHERE idx = :index",
        entry=FORGED, leaf=leaf_hash(FORGED), index=index,
    )  # fmt: skip
    path = tmp_path / "out.jsonl"
    courier = Courier(forwarder(world, path), world.house.entropy)
    courier.start()
    courier.join()
    assert isinstance(courier.ended, IntegrityFailure)
    sent = path.read_bytes() if path.exists() else b""
    assert b"u_forged" not in sent
    # Nothing at all, where what every proof rests on is no longer what was signed.
    assert len(sent.splitlines()) == (0 if hashes else index - index % 4)


@pytest.mark.parametrize("index", [5, 299])
def test_I19_a_missing_entry_is_not_passed_over(world: World, tmp_path: Path, index: int) -> None:
    intrude(world, "DELETE FROM ledger_entries WHERE idx = :index", index=index)
    path = tmp_path / "out.jsonl"
    courier = Courier(forwarder(world, path), world.house.entropy)
    courier.start()
    courier.join()
    assert isinstance(courier.ended, IntegrityFailure)
    sent = [json.loads(line)["index"] for line in path.read_bytes().splitlines()] if path.exists() else []
    assert sent == list(range(len(sent)))
    assert len(sent) <= index
