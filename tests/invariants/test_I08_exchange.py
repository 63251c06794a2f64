"""I08 at the exchange: a proof works once, on every replica; a subject token is the first key's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker import jose
from broker.errors import InvalidGrant, InvalidProof, ReplayedProof
from broker.services import exchange, minting
from broker.services.house import House
from tests.foreign import FakeIssuer, read_details
from tests.world import Person, World


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer)
    return issuer


@pytest.fixture
def replica(world: World) -> House:
    """Another process of the same broker: it shares the database, and nothing else."""
    return replace(world.house, ledger=world.open_ledger())


def test_I08_the_proof_of_an_exchange_works_once(world: World, replica: House, ci: FakeIssuer) -> None:
    job = Person(id="", key=jose.PrivateKey.generate(), token="")
    subject = ci.token(world.clock.now())
    request = world.request(job, path="/oauth/token", token="")
    exchange.exchange(world.house, request, subject_token=subject, details=read_details())
    before = world.size()
    for house in (world.house, replica):
        with pytest.raises(ReplayedProof):
            exchange.exchange(house, request, subject_token=subject, details=read_details())
        with pytest.raises(ReplayedProof):
            exchange.exchange(
                house, request, subject_token=ci.token(world.clock.now()), details=read_details()
            )
    assert world.size() == before


def test_I08_the_proof_of_a_minting_works_once(world: World, replica: House) -> None:
    request = world.request(world.admin, path="/oauth/token", token="")
    wanted = minting.MintRequest(details=read_details())
    minting.mint(world.house, request, subject_token=world.admin.token, wanted=wanted)
    before = world.size()
    for house in (world.house, replica):
        with pytest.raises(ReplayedProof):
            minting.mint(house, request, subject_token=world.admin.token, wanted=wanted)
    assert world.size() == before


def test_I08_a_refused_exchange_uses_its_proof_up(world: World, ci: FakeIssuer) -> None:
    subject = ci.token(world.clock.now())
    world.exchange(subject)
    thief = Person(id="", key=jose.PrivateKey.generate(), token="")
    request = world.request(thief, path="/oauth/token", token="")
    with pytest.raises(InvalidGrant):
        exchange.exchange(world.house, request, subject_token=subject, details=read_details())
    with pytest.raises(ReplayedProof):
        exchange.exchange(
            world.house, request, subject_token=ci.token(world.clock.now()), details=read_details()
        )


@pytest.mark.parametrize("path", ["/oauth/revoke", "/oauth/token/", "/v1/whoami"])
def test_I08_a_proof_for_another_url_exchanges_nothing(world: World, ci: FakeIssuer, path: str) -> None:
    job = Person(id="", key=jose.PrivateKey.generate(), token="")
    request = replace(world.request(job, path=path, token=""), raw_path="/oauth/token")
    with pytest.raises(InvalidProof):
        exchange.exchange(
            world.house, request, subject_token=ci.token(world.clock.now()), details=read_details()
        )


def test_I08_a_proof_that_covers_a_body_covers_that_body(world: World, ci: FakeIssuer) -> None:
    job = Person(id="", key=jose.PrivateKey.generate(), token="")
    request = replace(world.request(job, path="/oauth/token", token="", body=b"a=b"), body=b"a=c")
    with pytest.raises(InvalidProof):
        exchange.exchange(
            world.house, request, subject_token=ci.token(world.clock.now()), details=read_details()
        )


def test_I08_a_subject_token_is_the_first_keys_on_every_replica(
    world: World, replica: House, ci: FakeIssuer
) -> None:
    subject = ci.token(world.clock.now())
    job = world.exchange(subject)
    here = world.house
    for house in (here, replica):
        world.house = house
        with pytest.raises(InvalidGrant):
            world.exchange(subject)
        assert world.exchange(subject, key=job.key).id == job.id


def test_I08_a_key_that_comes_first_by_a_moment_keeps_the_token(
    world: World, replica: House, ci: FakeIssuer
) -> None:
    """Both keys find no pin; the one whose record is first has it, and the other is decided again."""
    world.exchange(ci.token(world.clock.now()))
    subject, inner, first = ci.token(world.clock.now()), world.house.ledger, []

    class Overtaken:
        def append(self, draft: Any) -> Any:
            if not first:
                first.append("")
                here, world.house = world.house, replica
                first[0] = world.exchange(subject).token
                world.house = here
            return inner.append(draft)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    world.house = replace(world.house, ledger=Overtaken())
    with pytest.raises(InvalidGrant):
        world.exchange(subject)
    assert first[0]


def test_I08_a_signature_made_anew_is_the_same_token(world: World, ci: FakeIssuer) -> None:
    """ECDSA gives any number of signatures for what was signed: the pin is on the latter."""
    claims = ci.claims(world.clock.now())
    first, second = ci.key.jwt(claims), ci.key.jwt(claims)
    assert first != second
    world.exchange(first)
    with pytest.raises(InvalidGrant):
        world.exchange(second)
