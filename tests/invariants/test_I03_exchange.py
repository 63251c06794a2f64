"""I03 at the exchange: what is empty, absent, unknown or malformed is worth no token."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from broker import jose
from broker.errors import InvalidRequest, ScopeExceeded
from broker.model import Token
from tests.foreign import FakeIssuer, read_details
from tests.unit.web.conftest import Api
from tests.world import Person, World

NOTHING: list[Any] = [
    [],
    [{}],
    [{"type": "artifact_access"}],
    [{"type": "artifact_access", "actions": [], "identifier": "*"}],
    [{"type": "artifact_access", "actions": ["read"]}],
    [{"type": "artifact_access", "actions": ["read"], "identifier": ""}],
    [{"type": "artifact_access", "actions": ["read"], "identifier": "*", "paths": []}],
    [{"type": "artifact_access", "actions": ["everything"], "identifier": "*"}],
    [{"type": "everything", "actions": ["read"]}],
    [{"type": "artifact_access", "actions": ["read"], "identifier": "*", "more": 1}],
    [*read_details(), {"type": "everything"}],
]
TYPE = "urn:ietf:params:oauth:token-type:"


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme"]))
    return issuer


def tokens(world: World) -> int:
    with world.ledger.view() as view:
        return len(view.list(Token))


@pytest.mark.parametrize("details", NOTHING, ids=range(len(NOTHING)))
def test_I03_nothing_is_exchanged_or_minted_for_nothing(
    world: World, ci: FakeIssuer, details: list[Any]
) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    before = tokens(world)
    for attempt in (
        lambda: world.exchange(ci.token(world.clock.now()), details=details),
        lambda: world.mint(job, details),
        lambda: world.mint(job, details, key=jose.PrivateKey.generate()),
    ):
        with pytest.raises(InvalidRequest) as refused:
            attempt()
        assert refused.value.what == "invalid_authorization_details"
    assert tokens(world) == before


@pytest.mark.parametrize("text", [None, "", "null", "{}", "[", '"*"'])
def test_I03_absent_and_malformed_details_over_http(
    world: World, api: Api, ci: FakeIssuer, text: str | None
) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    before = tokens(world)
    subjects = [("jwt", ci.token(world.clock.now()), job), ("access_token", job.token, job)]
    for kind, subject, who in subjects:
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": subject,
            "subject_token_type": TYPE + kind,
            **({} if text is None else {"authorization_details": text}),
        }
        answer = api.send(
            who,
            "POST",
            "/oauth/token",
            urlencode(form).encode(),
            token=None,
            content_type="application/x-www-form-urlencoded",
        )
        assert answer.status_code == 400
        assert json.loads(answer.get_data())["error"] == "invalid_authorization_details"
    assert tokens(world) == before


def test_I03_a_level_with_nothing_in_common_covers_nothing(world: World, ci: FakeIssuer) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"1"})
    job = world.exchange(ci.token(world.clock.now()), details=read_details("acme/other"))
    child = world.mint(job, read_details("*"))
    for who in (job, child):
        with pytest.raises(ScopeExceeded):
            world.ask(who, "acme/llama@v1")


@pytest.fixture
def api(world: World) -> Api:
    return Api(world)


def test_I03_a_mapping_that_matches_everybody_is_none(world: World) -> None:
    issuer = FakeIssuer()
    for match in ({}, {"iss": issuer.url}, {"sub": "*"}):
        with pytest.raises(InvalidRequest):
            world.register(issuer, mapping=issuer.mapping(match=match))
    assert Person(id="", key=jose.PrivateKey.generate(), token="").token == ""
