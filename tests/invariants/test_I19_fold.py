"""I19: rows that the broker once wrote, put back or taken away, differ from the log that made them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from broker import jose
from broker.errors import IntegrityFailure
from broker.services import folding, people
from tests.foreign import FakeIssuer
from tests.world import MIB, Person, World

TABLES = (
    "principals",
    "groups",
    "keys",
    "enrolments",
    "tokens",
    "issuers",
    "subject_uses",
    "collections",
    "artifacts",
    "versions",
    "manifests",
    "uploads",
    "grants",
    "leases",
    "policy_bundles",
    "active_bundle",
)


@contextmanager
def database(world: World) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(world.path)
    try:
        yield connection
        connection.commit()
    finally:
        connection.close()


def copy(world: World, table: str) -> list[tuple[object, ...]]:
    with database(world) as db:
        return db.execute(f"SELECT * FROM {table}").fetchall()


def put_back(world: World, table: str, rows: list[tuple[object, ...]]) -> None:
    """What somebody does who has an old copy of the database and nothing else."""
    marks = ", ".join("?" * len(rows[0]))
    with database(world) as db:
        db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)


def set_groups(world: World, group: str) -> None:
    people.set_principal(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        id="user:ana",
        roles=None,
        groups=[group],
        disabled=None,
        have=None,
    )


def problems(world: World) -> list[tuple[str, str]]:
    found = folding.audit_rows(world.house)
    assert found.ok == (found.count == 0)
    return sorted({(finding.row, finding.key) for finding in found.findings})


@pytest.fixture
def ci() -> FakeIssuer:
    return FakeIssuer()


@pytest.fixture
def busy(world: World, ci: FakeIssuer) -> Person:
    """A log in which every kind of row was written, most of them more than once."""
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(2 * MIB)})
    world.publish(pub, "acme/llama@v2", {"a": bytes(MIB)})
    ana = world.add("ana", groups=["acme"])
    released = world.ask(ana, "acme/llama@v1")
    world.lease(ana, released.grant.id, (0, 0, 0))
    world.register(ci, mapping=ci.mapping(groups=["acme"]))
    job = world.exchange(ci.token(world.clock.now()))
    world.mint(job, key=jose.PrivateKey.generate())
    world.ask(job, "acme/llama@v1")
    world.new_code("bob")
    return ana


def test_I19_what_the_broker_wrote_is_what_the_log_says(world: World, busy: Person) -> None:
    with database(world) as db:
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        counts = {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in TABLES
            if table in names
        }
    assert set(counts) == set(TABLES), "a table of rows has another name"
    assert all(counts.values()), counts
    found = folding.audit_rows(world.house)
    assert found.findings == ()
    assert (found.size, found.rows) == (world.size(), sum(counts.values()))


@pytest.mark.parametrize("kind", ["token", "key", "grant", "principal"])
def test_I19_a_revocation_that_is_undone_is_found(world: World, busy: Person, kind: str) -> None:
    grant = world.ask(busy, "acme/llama@v2").grant.id
    id = {"token": world.token_row(busy).id, "key": busy.key.jkt, "grant": grant, "principal": "user:ana"}[
        kind
    ]
    tables = {"token": "tokens", "key": "keys", "grant": "grants", "principal": "principals"}
    before = copy(world, tables[kind])
    world.revoke(kind, id)
    assert problems(world) == []
    put_back(world, tables[kind], before)
    assert (kind.title(), id) in problems(world)


def test_I19_keys_of_a_revoked_principal_stay_revoked(world: World, busy: Person) -> None:
    before = copy(world, "keys")
    world.revoke("principal", "user:ana")
    put_back(world, "keys", before)
    assert problems(world) == [("Key", busy.key.jkt)]


def test_I19_a_used_code_that_is_put_back_is_found(world: World) -> None:
    text = world.new_code("bob")
    before = copy(world, "enrolments")
    world.enrol("user:bob", text)
    assert problems(world) == []
    put_back(world, "enrolments", before)
    [(row, _)] = problems(world)
    assert row == "Enrolment"


def test_I19_roles_that_somebody_had_once_are_found(world: World, busy: Person) -> None:
    """Back to the very same content as once before: only the entry that wrote it tells them apart."""
    once = [row for row in copy(world, "principals") if row[0] == "user:ana"]
    set_groups(world, "other")
    between = [row for row in copy(world, "principals") if row[0] == "user:ana"]
    set_groups(world, "acme")
    assert problems(world) == []
    for rows in (once, between):
        put_back(world, "principals", rows)
        assert problems(world) == [("Principal", "user:ana")]


def test_I19_an_issuer_with_the_keys_that_it_had_once_is_found(
    world: World, busy: Person, ci: FakeIssuer
) -> None:
    before = copy(world, "issuers")
    ci.rotate()
    world.register(ci, mapping=ci.mapping(groups=["acme"]))
    assert problems(world) == []
    put_back(world, "issuers", before)
    assert [row for row, _ in problems(world)] == ["Issuer"]


@pytest.mark.parametrize("table", TABLES)
def test_I19_a_row_that_was_taken_away_is_missed(world: World, busy: Person, table: str) -> None:
    with database(world) as db:
        db.execute(
            f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY entry DESC LIMIT 1)"
        )
        assert db.execute("SELECT changes()").fetchone() == (1,)
    found = folding.audit_rows(world.house)
    assert [finding.problem for finding in found.findings] == ["the row is missing"]


def test_I19_an_edited_row_is_one_finding_and_hides_no_other(world: World, busy: Person) -> None:
    with database(world) as db:
        db.execute("UPDATE principals SET roles = '[\"admin\"]' WHERE id = 'user:ana'")
        db.execute("DELETE FROM groups WHERE name = 'acme'")
    found = folding.audit_rows(world.house)
    assert {finding.row for finding in found.findings} == {"Principal", "Group"}
    assert any("MAC" in finding.problem for finding in found.findings)


def test_I19_what_has_run_out_may_be_gone(world: World, busy: Person) -> None:
    world.clock.forward(3 * 86400)
    with database(world) as db:
        for table in ("tokens", "leases", "grants", "subject_uses"):
            db.execute(f"DELETE FROM {table} WHERE rowid % 2 = 0")
    assert problems(world) == []


def test_I19_entries_that_the_tail_does_not_cover_are_no_yardstick(world: World, busy: Person) -> None:
    with database(world) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER "{trigger}"')
        db.execute(
            "UPDATE ledger_entries"
            " SET entry = cast(replace(cast(entry AS TEXT), 'user:ana', 'user:eve') AS BLOB)"
            " WHERE idx = (SELECT max(idx) FROM ledger_entries WHERE cast(entry AS TEXT) LIKE '%user:ana%')"
        )
        assert db.execute("SELECT changes()").fetchone() == (1,)
    with pytest.raises(IntegrityFailure):
        folding.audit_rows(world.house)
