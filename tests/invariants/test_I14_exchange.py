"""I14 at the exchange: the type that is named chooses one verifier, and no other ever sees the token."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from broker import jose
from broker.canonical import b64url
from broker.errors import InvalidSubjectToken, NotAuthenticated
from broker.identity import proof, token
from tests.foreign import FakeIssuer, ForeignKey
from tests.world import URL, Person, World


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer(alg="RS256")
    world.register(issuer)
    return issuer


def ours(world: World, who: Person) -> dict[str, str]:
    """One signed object of each kind that is ours."""
    made = proof.build_proof(
        key=who.key,
        method="POST",
        url=URL + "/oauth/token",
        now=world.clock.now(),
        jti=b64url(os.urandom(16)),
        body=b"",
        query=None,
        access_token=None,
        nonce=None,
    )
    assertion = token.build_assertion(
        key=who.key, principal=who.id, issuer=URL, now=world.clock.now(), jti=b64url(os.urandom(16))
    )
    return {"access token": who.token, "proof": made, "assertion": assertion}


@pytest.mark.parametrize("kind", ["access token", "proof", "assertion"])
def test_I14_no_object_of_ours_is_a_workloads_token(world: World, ci: FakeIssuer, kind: str) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    with pytest.raises(InvalidSubjectToken):
        world.exchange(ours(world, job)[kind], key=job.key)


@pytest.mark.parametrize("kind", ["workload token", "proof", "assertion"])
def test_I14_nothing_but_an_access_token_is_minted_from(world: World, ci: FakeIssuer, kind: str) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    text = ci.token(world.clock.now()) if kind == "workload token" else ours(world, job)[kind]
    with pytest.raises(InvalidSubjectToken):
        world.mint(Person(id=job.id, key=job.key, token=text))


def test_I14_a_workloads_token_is_no_bearer_token_and_no_assertion(world: World, ci: FakeIssuer) -> None:
    from broker.services import catalogue, tokens

    job = world.exchange(ci.token(world.clock.now()))
    subject = ci.token(world.clock.now())
    with pytest.raises(NotAuthenticated):
        catalogue.whoami(world.house, world.request(job, "GET", token=subject))
    with pytest.raises(NotAuthenticated):
        tokens.issue(
            world.house,
            world.request(job, path="/oauth/token", token=""),
            assertion=subject,
            details=[{"type": "ledger_access", "actions": ["read"]}],
        )


def test_I14_an_issuer_with_our_own_names_signs_nothing_of_ours(world: World) -> None:
    """An issuer that is registered under our own URL still makes workloads, and no access token."""
    issuer = FakeIssuer("self", URL, alg="EdDSA")
    world.register(issuer)
    claims = {**issuer.claims(world.clock.now()), "client_id": "x", "cnf": {"jkt": "x"}, "limits": []}
    for typ in ("at+jwt", "client-assertion+jwt", "dpop+jwt", "broker-manifest+jws", "application/at+jwt"):
        with pytest.raises(InvalidSubjectToken):
            world.exchange(issuer.key.jwt(claims, typ=typ))
    with pytest.raises(InvalidSubjectToken):
        world.mint(Person(id="", key=jose.PrivateKey.generate(), token=issuer.key.jwt(claims, typ="at+jwt")))
    assert world.exchange(issuer.key.jwt(claims, typ=None)).id == "workload:self/train"


def _unsigned(issuer: FakeIssuer, now: int) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, issuer.claims(now))
    return ".".join(b64url(json.dumps(part).encode()) for part in parts) + "."


def _hmac_with_public_key(issuer: FakeIssuer, now: int) -> str:
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = issuer.key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "HS256", "typ": "JWT", "kid": issuer.key.kid}
    text = ".".join(b64url(json.dumps(part).encode()) for part in (header, issuer.claims(now)))
    return f"{text}.{b64url(hmac.digest(pem, text.encode(), hashlib.sha256))}"


def _own_key_in_header(issuer: FakeIssuer, now: int) -> str:
    mine = ForeignKey("RS256", kid=issuer.key.kid)
    return mine.jwt(issuer.claims(now), jwk=mine.jwk())


def _key_url_in_header(issuer: FakeIssuer, now: int) -> str:
    mine = ForeignKey("RS256", kid=issuer.key.kid)
    return mine.jwt(issuer.claims(now), jku="https://evil.example/keys")


def _another_algorithm(issuer: FakeIssuer, now: int) -> str:
    return issuer.key.jwt(issuer.claims(now), alg="ES256")


FORGERIES: list[Callable[[FakeIssuer, int], str]] = [
    _unsigned,
    _hmac_with_public_key,
    _own_key_in_header,
    _key_url_in_header,
    _another_algorithm,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__.strip("_"))
def test_I14_the_issuers_key_decides_and_not_the_tokens_header(
    world: World, ci: FakeIssuer, forge: Callable[[FakeIssuer, int], Any]
) -> None:
    with pytest.raises(InvalidSubjectToken):
        world.exchange(forge(ci, world.clock.now()))


def test_I14_a_jobs_key_signs_no_assertion(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    with pytest.raises(NotAuthenticated):
        world.login(job)
