"""I19 at the exchange: rows of issuers, pins and identities that the broker did not write deny."""

from __future__ import annotations

import json

import pytest

from broker import jose
from broker.errors import BrokerError, IntegrityFailure, InvalidSubjectToken
from tests.foreign import FakeIssuer
from tests.invariants.test_I19_database_alone import tamper
from tests.world import Person, World


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["nothing"]))
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"1"})
    return issuer


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE issuers SET mapping = replace(mapping, 'nothing', 'acme')",
        "UPDATE issuers SET audience = 'https://other.example'",
        "UPDATE issuers SET jwks = replace(jwks, '\"kid\"', '\"kid\"')  || ' '",
        "UPDATE issuers SET url = 'https://other.example'",
        "UPDATE issuers SET kind = 'spiffe'",
        "UPDATE issuers SET created = created + 1",
        "UPDATE tokens SET identity = replace(identity, 'nothing', 'acme') WHERE identity <> ''",
        "UPDATE tokens SET identity = '' WHERE identity <> ''",
        "UPDATE tokens SET chain = '[]' WHERE chain <> '[]'",
        "UPDATE principals SET groups = '[\"acme\"]' WHERE id = 'workload:ci/train'",
        "UPDATE keys SET status = 'active', principal = 'user:pub' WHERE principal = 'workload:ci/train'",
    ],
)
def test_I19_an_edited_row_is_a_deny(world: World, ci: FakeIssuer, sql: str) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    rank = world.mint(job, key=jose.PrivateKey.generate())
    issued = len(world.store.issued)
    tamper(world, sql)
    with pytest.raises(BrokerError):
        world.ask(rank, "acme/llama@v1")
    assert len(world.store.issued) == issued


@pytest.mark.parametrize("column", ["url", "kind", "audience", "jwks_uri", "jwks", "ca", "mapping", "status"])
def test_I19_an_edited_issuer_exchanges_nothing(world: World, ci: FakeIssuer, column: str) -> None:
    subject = ci.token(world.clock.now())
    tamper(world, f"UPDATE issuers SET {column} = {column} || ' '")
    with pytest.raises((IntegrityFailure, InvalidSubjectToken)):
        world.exchange(subject)


def test_I19_an_issuer_that_was_put_into_the_database_vouches_for_nobody(
    world: World, ci: FakeIssuer
) -> None:
    evil = FakeIssuer("evil", "https://evil.example")
    tamper(
        world,
        "INSERT INTO issuers SELECT 'evil', 'https://evil.example', kind, audience, jwks_uri, ?, ca, mapping,"
        " status, created, entry, mac FROM issuers",
        json.dumps(evil.jwks()),
    )
    with pytest.raises((IntegrityFailure, InvalidSubjectToken)):
        world.exchange(evil.token(world.clock.now()))


@pytest.mark.parametrize("column", ["jkt", "principal", "issuer"])
def test_I19_an_edited_pin_is_a_deny(world: World, ci: FakeIssuer, column: str) -> None:
    subject = ci.token(world.clock.now())
    world.exchange(subject)
    thief = Person(id="", key=jose.PrivateKey.generate(), token="")
    value = thief.key.jkt if column == "jkt" else "workload:ci/other"
    tamper(world, f"UPDATE subject_uses SET {column} = ?", value)
    with pytest.raises(IntegrityFailure):
        world.exchange(subject, key=thief.key)


def test_I19_the_pin_of_another_token_does_not_help(world: World, ci: FakeIssuer) -> None:
    subject, other = ci.token(world.clock.now()), ci.token(world.clock.now(), job="other")
    job, thief = world.exchange(subject), world.exchange(other)
    digests = dict(_pins(world))
    assert set(digests.values()) == {job.key.jkt, thief.key.jkt}
    mine = next(pin for pin, key in digests.items() if key == job.key.jkt)
    theirs = next(pin for pin, key in digests.items() if key == thief.key.jkt)
    tamper(world, "DELETE FROM subject_uses WHERE digest = ?", mine)
    tamper(world, "UPDATE subject_uses SET digest = ? WHERE digest = ?", mine, theirs)
    with pytest.raises(IntegrityFailure):
        world.exchange(subject, key=thief.key)


def _pins(world: World) -> list[tuple[str, str]]:
    from broker.model import SubjectUse

    with world.ledger.view() as view:
        return [(pin.digest, pin.jkt) for pin in view.list(SubjectUse)]
