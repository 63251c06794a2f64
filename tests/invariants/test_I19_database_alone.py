"""I19: the database alone grants nothing: what the broker did not write is a deny and an alarm."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from broker.errors import BrokerError, IntegrityFailure
from broker.model import Version
from broker.services import releasing
from tests.world import MIB, Person, World


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(2 * MIB)})
    world.publish(pub, "acme/secret@v1", {"a": bytes(MIB)}, labels={"tier": "critical"})
    return world.add("ana", groups=["nothing"])


def tamper(world: World, sql: str, *values: object) -> None:
    with sqlite3.connect(world.path) as database:
        assert database.execute(sql, values).rowcount > 0, "the tampering changed nothing"
    database.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE principals SET groups = '[\"acme\"]' WHERE id = 'user:ana'",
        "UPDATE principals SET roles = '[\"admin\"]' WHERE id = 'user:ana'",
        "UPDATE groups SET parents = '[\"acme\"]' WHERE name = 'nothing'",
        "UPDATE collections SET readers = '[\"nothing\"]' WHERE name = 'acme'",
        "UPDATE keys SET principal = 'user:pub' WHERE principal = 'user:ana'",
        "UPDATE tokens SET principal = 'user:pub' WHERE principal = 'user:ana'",
        "UPDATE tokens SET expires = expires + 1000000 WHERE principal = 'user:ana'",
    ],
)
def test_I19_an_edited_row_denies(world: World, ana: Person, sql: str) -> None:
    issued = len(world.store.issued)
    tamper(world, sql)
    with pytest.raises(BrokerError):
        world.ask(ana, "acme/llama@v1")
    assert len(world.store.issued) == issued


def test_I19_a_relabelled_version_stays_closed(world: World, ana: Person) -> None:
    reader = world.add("bob", groups=["acme"])
    tamper(world, "UPDATE versions SET labels = '{\"tier\":\"standard\"}' WHERE name = 'secret'")
    with pytest.raises(IntegrityFailure):
        world.ask(reader, "acme/secret@v1")


def test_I19_a_label_is_bound_into_the_wrap_too(world: World, ana: Person) -> None:
    """Even where a row's MAC were genuine, a key wrapped under one tier does not open under another."""
    with world.ledger.view() as view:
        row = view.find(Version, "acme", "secret", "v1")
    assert row is not None
    assert len(world.house.custody.unwrap(row.wrapped_key, releasing.version_aad(row))) == 32
    relabelled = replace(row, labels='{"tier":"standard"}')
    with pytest.raises(IntegrityFailure):
        world.house.custody.unwrap(row.wrapped_key, releasing.version_aad(relabelled))


def test_I19_another_active_bundle_decides_nothing(world: World, ana: Person) -> None:
    tamper(world, "UPDATE active_bundle SET digest = 'sha256:' || hex(zeroblob(32))")
    with pytest.raises(IntegrityFailure):
        world.ask(ana, "acme/llama@v1")


def test_I19_a_copied_row_is_not_another_principal(world: World, ana: Person) -> None:
    """A row with a MAC that is genuine, but of another key, is not the broker's."""
    with sqlite3.connect(world.path) as database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM principals WHERE id = 'user:pub'").fetchone())
        row["id"] = "user:ana"
        columns = ", ".join(row)
        marks = ", ".join("?" * len(row))
        database.execute(
            f"INSERT OR REPLACE INTO principals ({columns}) VALUES ({marks})",
            list(row.values()),
        )
    database.close()
    with pytest.raises(BrokerError):
        world.ask(ana, "acme/llama@v1")


def test_I19_an_edited_key_gets_no_token_and_learns_nothing_of_the_row(world: World, ana: Person) -> None:
    from broker.web import problems

    tamper(world, "UPDATE principals SET roles = '[\"admin\"]' WHERE id = 'user:ana'")
    with pytest.raises(IntegrityFailure) as refused:
        world.login(ana)
    told = problems.problem_of(refused.value, request_id="r", metadata_url="")
    assert told.status == 403
    assert "ana" not in str(told.body)
