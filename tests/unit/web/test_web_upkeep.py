"""What happens after answers: junk is summed up, dead uploads are swept, and no answer depends on it."""

from __future__ import annotations

from typing import Any

import pytest

from broker.canonical import Json
from broker.errors import LedgerUnavailable
from broker.web.app import UPKEEP
from broker.web.upkeep import SWEEP_MS
from tests.unit.web.conftest import Api
from tests.world import World


def entries(world: World, kind: str) -> list[Json]:
    found = (world.entry(index) for index in range(world.size()))
    return [entry for entry in found if entry["type"] == kind]


def test_junk_is_one_entry_a_minute(world: World, api: Api) -> None:
    for path in ("/v1/whoami", "/v1/whoami", "/v1/nothing"):
        api.send(None, "GET", path)
    assert entries(world, "junk-summary") == []
    world.clock.forward(61)
    api.send(None, "GET", "/livez").close()
    [summary] = entries(world, "junk-summary")
    assert summary["counts"] == {"unauthenticated": 2, "not-found": 1}


def test_what_a_known_caller_got_wrong_is_not_junk(world: World, api: Api) -> None:
    api.refused(world.admin, "GET", "/v1/whoami", query="x=1")
    api.refused(world.admin, "GET", "/v1/grants/g_none")
    world.clock.forward(61)
    api.send(None, "GET", "/livez").close()
    assert entries(world, "junk-summary") == []


def test_the_last_junk_is_recorded_at_the_end(world: World, api: Api) -> None:
    api.send(None, "GET", "/v1/whoami")
    api.app.extensions[UPKEEP].finish()
    [summary] = entries(world, "junk-summary")
    assert summary["counts"] == {"unauthenticated": 1}


def test_a_failing_sweep_changes_no_answer(
    world: World, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def view(self) -> Any:
            raise LedgerUnavailable("the database is gone")

    other = Api(world)
    other.app.extensions[UPKEEP]._house = world.with_settings(ledger=Broken())
    world.clock.forward(SWEEP_MS / 1000 + 1)
    answer = other.send(None, "GET", "/livez")
    answer.close()
    assert answer.status_code == 200
    assert "upkeep failed" in capsys.readouterr().out
