"""A token whose signature was verified before is still looked at each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from broker import jose, limits
from broker.errors import InvalidToken
from broker.identity import token
from broker.services import access, authn
from broker.services.house import House, TokenKeys
from tests.world import Person, World


@pytest.fixture
def asked(tmp_path: Path) -> tuple[World, Person]:
    world = World(tmp_path)
    person = world.add("ana", roles=["publisher"], groups=["acme"])
    world.publish(person, "acme/llama@v1", {"a": b"weights"})
    world.ask(person, "acme/llama@v1")
    assert world.house.opened_tokens
    return world, person


def ask_again(world: World, person: Person, house: House) -> access.Released:
    return access.ask(house, world.request(person), world.grant_request("acme/llama@v1"))


def test_its_signature_is_verified_once(asked: tuple[World, Person], monkeypatch: pytest.MonkeyPatch) -> None:
    world, person = asked

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr(token, "open_access_token", refuse)
    assert ask_again(world, person, world.house).recorded.index


def test_it_runs_out(asked: tuple[World, Person]) -> None:
    world, person = asked
    world.clock.forward(2 * limits.ACCESS_TOKEN_TTL)
    with pytest.raises(InvalidToken):
        ask_again(world, person, world.house)


def without_keys(keys: TokenKeys) -> TokenKeys:
    return replace(keys, accepted={})


def with_another_key(keys: TokenKeys) -> TokenKeys:
    (kid,) = keys.accepted
    other = jose.PrivateKey.generate()
    return replace(keys, accepted={kid: other.jwk})


@pytest.mark.parametrize("change", [without_keys, with_another_key])
def test_its_key_is_given_up(asked: tuple[World, Person], change: Callable[[TokenKeys], TokenKeys]) -> None:
    world, person = asked
    with pytest.raises(InvalidToken):
        ask_again(world, person, replace(world.house, token_keys=change(world.house.token_keys)))


def test_it_is_of_another_server(asked: tuple[World, Person]) -> None:
    world, person = asked
    with pytest.raises(InvalidToken):
        ask_again(world, person, replace(world.house, issuer="https://other.example"))


def test_what_is_kept_is_bounded(asked: tuple[World, Person], monkeypatch: pytest.MonkeyPatch) -> None:
    world, _ = asked
    monkeypatch.setattr(authn, "_MOST_OPENED", 2)
    for name in "bcdef":
        world.ask(world.add(name, groups=["acme"]), "acme/llama@v1")
        assert len(world.house.opened_tokens) <= 2
