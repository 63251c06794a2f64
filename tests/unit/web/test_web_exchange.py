"""Token exchange over HTTP: the form, the answers, OAuth's own errors, and the routes of issuers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker import jose
from broker.canonical import Json
from tests.foreign import FakeIssuer, read_details
from tests.unit.web.conftest import Api
from tests.unit.web.test_web_story import BEARER, EXCHANGE, FORM, form
from tests.world import URL, Person, World

TYPE = "urn:ietf:params:oauth:token-type:"
DETAILS = json.dumps(read_details())


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer)
    return issuer


def someone() -> Person:
    return Person(id="", key=jose.PrivateKey.generate("ES256"), token="")


def members(subject: str, kind: str = "jwt", **more: str) -> dict[str, str]:
    return {
        "grant_type": EXCHANGE,
        "subject_token": subject,
        "subject_token_type": TYPE + kind,
        "authorization_details": DETAILS,
        **more,
    }


def answer(api: Api, who: Person, sent: dict[str, str], **rest: Any) -> tuple[int, Json]:
    found = api.send(who, "POST", "/oauth/token", form(**sent), token=None, content_type=FORM, **rest)
    assert found.mimetype == "application/json"
    told = found.status_code, json.loads(found.get_data())
    found.close()
    return told


def test_a_workload_then_a_rank(world: World, api: Api, ci: FakeIssuer) -> None:
    job, rank = someone(), someone()
    status, found = answer(api, job, members(ci.token(world.clock.now()), "id_token", audience=URL))
    assert status == 200
    assert found["principal"] == "workload:ci/train"
    assert found["issued_token_type"] == TYPE + "access_token"
    assert found["token_type"] == "DPoP"
    assert 890 <= found["expires_in"] <= 900
    job.token = found["access_token"]
    narrow = json.dumps(read_details("acme/llama", max_bytes=10))
    sent = members(job.token, "access_token", cnf_jkt=rank.key.jkt, expires_in="60", resource=URL)
    status, minted = answer(api, job, {**sent, "authorization_details": narrow})
    assert status == 200
    assert minted["expires_in"] == 60
    assert minted["authorization_details"] == json.loads(narrow)
    rank.token = minted["access_token"]
    me = api.ok(rank, "GET", "/v1/whoami")
    assert me["principal"]["id"] == "workload:ci/train"
    assert me["token"]["chain"] == [found["token_id"]]
    assert me["token"]["identity"]["issuer"] == "ci"
    inspected = api.ok(rank, "POST", "/oauth/introspect", form(token=rank.token), content_type=FORM)
    [element] = inspected["effective"]
    assert element["ceilings"] == [{"token": minted["token_id"], "max_bytes": 10, "opened": 0, "left": 10}]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"subject_token": "x.y.z"}, ("invalid_request", "invalid_subject_token")),
        ({"subject_token": ""}, ("invalid_request", "malformed")),
        ({"subject_token_type": ""}, ("invalid_request", "malformed")),
        ({"subject_token_type": TYPE + "saml2"}, ("invalid_request", "invalid")),
        ({"subject_token_type": TYPE + "access_token"}, ("invalid_request", "invalid_subject_token")),
        ({"requested_token_type": TYPE + "refresh_token"}, ("invalid_request", "invalid")),
        ({"resource": "https://other.example"}, ("invalid_target", "invalid")),
        ({"audience": "https://other.example"}, ("invalid_target", "invalid")),
        ({"scope": "read"}, ("invalid_request", "invalid")),
        ({"actor_token": "x"}, ("invalid_request", "invalid")),
        ({"cnf_jkt": "A" * 43}, ("invalid_request", "invalid")),
        ({"expires_in": "60"}, ("invalid_request", "invalid")),
        ({"authorization_details": "[]"}, ("invalid_authorization_details", "invalid")),
        ({"authorization_details": "x"}, ("invalid_authorization_details", "invalid")),
        ({"grant_type": "password"}, ("unsupported_grant_type", "invalid")),
    ],
    ids=lambda value: "-".join(f"{k}={v[-16:]}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_errors_are_oauths(
    world: World, api: Api, ci: FakeIssuer, changes: dict[str, str], error: tuple[str, str]
) -> None:
    status, found = answer(api, someone(), {**members(ci.token(world.clock.now())), **changes})
    assert status == 400
    assert (found["error"], found["code"]) == error
    assert "access_token" not in found


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"cnf_jkt": "short"}, 400, "invalid_request"),
        ({"expires_in": "0"}, 400, "invalid_request"),
        ({"expires_in": "901"}, 400, "invalid_request"),
        ({"expires_in": "1e2"}, 400, "invalid_request"),
        ({"authorization_details": json.dumps([{"type": "other"}])}, 400, "invalid_authorization_details"),
    ],
)
def test_errors_of_minting(world: World, api: Api, changes: dict[str, str], status: int, error: str) -> None:
    sent = {**members(world.admin.token, "access_token"), **changes}
    told, found = answer(api, world.admin, sent)
    assert (told, found["error"]) == (status, error)


def test_a_token_under_another_key_is_invalid_grant_and_a_denied_one_is_access_denied(
    world: World, api: Api, ci: FakeIssuer
) -> None:
    subject = ci.token(world.clock.now())
    assert answer(api, someone(), members(subject))[0] == 200
    status, found = answer(api, someone(), members(subject))
    assert (status, found["error"], found["code"]) == (400, "invalid_grant", "invalid_grant")
    status, found = answer(api, someone(), members(world.admin.token, "access_token"))
    assert (status, found["error"]) == (400, "invalid_grant")
    wide = json.dumps([{"type": "administration", "actions": ["keys"]}])
    sent = {**members(world.admin.token, "access_token", cnf_jkt=someone().key.jkt)}
    status, found = answer(api, world.admin, {**sent, "authorization_details": wide})
    assert (status, found["error"], found["policies"]) == (403, "access_denied", ["delegated-keys-read"])


def test_junk_is_counted_and_is_no_entry(world: World, api: Api, ci: FakeIssuer) -> None:
    before = world.size()
    for _ in range(3):
        answer(api, someone(), members(ci.token(world.clock.now(), exp=1)))
    assert world.size() == before
    world.clock.forward(61)
    answer(api, someone(), members("x"))
    summary = world.entry(before)
    assert summary["type"] == "junk-summary"
    assert summary["counts"]["invalid-subject-token"] >= 3


def test_a_nonce_is_asked_for_before_anything_else(world: World, ci: FakeIssuer) -> None:
    api = Api(world)
    from werkzeug.test import Client

    from broker.web.app import create_app

    api.client = Client(create_app(world.with_settings(nonces_required=True)))
    job, sent = someone(), members(ci.token(world.clock.now()))
    refused = api.send(job, "POST", "/oauth/token", form(**sent), token=None, content_type=FORM)
    assert (refused.status_code, refused.get_json()["error"]) == (400, "use_dpop_nonce")
    status, _ = answer(api, job, sent, nonce=refused.headers["DPoP-Nonce"])
    assert status == 200


def test_issuers_over_http(world: World, api: Api) -> None:
    issuer = FakeIssuer()
    body = {
        "request_id": world.uuid(),
        "url": issuer.url,
        "kind": "oidc",
        "jwks": issuer.jwks(),
        "mapping": issuer.mapping(),
    }
    made = api.ok(world.admin, "PUT", "/v1/issuers/ci", body)
    assert made["receipt"]
    assert api.ok(world.admin, "GET", "/v1/issuers")["issuers"][0]["name"] == "ci"
    keys = api.ok(world.admin, "GET", "/v1/issuers/ci/keys")
    assert keys["jwks"]["keys"][0]["kid"] == issuer.key.kid
    assert "d" not in keys["jwks"]["keys"][0]
    assert answer(api, someone(), members(issuer.token(world.clock.now())))[0] == 200
    gone = api.ok(world.admin, "DELETE", "/v1/issuers/ci")
    assert gone["disabled"] is True
    assert answer(api, someone(), members(issuer.token(world.clock.now())))[0] == 400
    assert api.refused(world.admin, "DELETE", "/v1/issuers/none")["status"] == 404
    assert api.refused(world.admin, "PUT", "/v1/issuers/UP", body)["status"] == 422
    assert api.refused(world.admin, "PUT", "/v1/issuers/ci", {**body, "more": 1})["status"] == 422
    ana = world.add("ana")
    assert api.refused(ana, "GET", "/v1/issuers")["status"] == 403
    assert BEARER != EXCHANGE
