"""What the API refuses, and how it says so: status, code, headers, and nothing that was not known before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker import limits
from broker.canonical import Json, b64url
from broker.web.app import create_app
from tests.unit.web.conftest import Api
from tests.unit.web.test_web_story import BEARER, FORM, assertion, form
from tests.world import EVERYTHING, World


def decision(world: World, **changes: Any) -> Json:
    return {"request_id": world.uuid(), "artifact": "acme/llama", "action": "read", **changes}


# -- who is asking ------------------------------------------------------------------------------------------


def test_without_credentials_nothing_is_said_about_the_body(api: Api) -> None:
    found = api.refused(None, "POST", "/v1/grants", b"{not json")
    assert (found["status"], found["code"]) == (401, "unauthenticated")


def test_a_wrong_body_is_described_to_an_authenticated_caller_only(world: World, api: Api) -> None:
    body = decision(world, surprise=1)
    known = api.refused(world.admin, "POST", "/v1/decisions", body)
    assert (known["status"], known["code"]) == (422, "invalid")
    assert "surprise: Extra inputs" in known["why"]
    unknown = api.refused(world.admin, "POST", "/v1/decisions", body, token="a.b.c")
    assert (unknown["status"], unknown["code"]) == (401, "invalid_token")
    assert "why" not in unknown or "surprise" not in unknown["why"]


def test_a_token_without_its_proof_and_a_proof_without_its_token(world: World, api: Api) -> None:
    headers = api.headers(world.admin, "GET", "/v1/whoami")
    for missing in ("DPoP", "Authorization"):
        kept = {name: value for name, value in headers.items() if name != missing}
        assert api.refused(None, "GET", "/v1/whoami", headers=kept)["status"] == 401


def test_a_proof_works_once(world: World, api: Api) -> None:
    headers = api.headers(world.admin, "GET", "/v1/whoami")
    assert api.send(None, "GET", "/v1/whoami", headers=headers).status_code == 200
    assert api.refused(None, "GET", "/v1/whoami", headers=headers)["code"] == "replayed_proof"


@pytest.mark.parametrize("header", ["DPoP", "Authorization"])
def test_a_header_that_came_twice_is_refused(world: World, api: Api, header: str) -> None:
    headers = api.headers(world.admin, "GET", "/v1/whoami")
    # PEP 3333 servers join a repeated header with a comma.
    headers[header] = f"{headers[header]},{headers[header]}"
    assert api.refused(None, "GET", "/v1/whoami", headers=headers)["status"] == 401


@pytest.mark.parametrize("value", ["Bearer {}", "DPoP  {}", "DPoP {} {}", "DPoP {}=", "DPoP", "{}"])
def test_only_one_form_of_authorization_is_taken(world: World, api: Api, value: str) -> None:
    headers = api.headers(world.admin, "GET", "/v1/whoami")
    headers["Authorization"] = value.replace("{}", world.admin.token)
    assert api.refused(None, "GET", "/v1/whoami", headers=headers)["status"] == 401


def test_the_scheme_has_no_case(world: World, api: Api) -> None:
    headers = api.headers(world.admin, "GET", "/v1/whoami")
    headers["Authorization"] = f"dpop {world.admin.token}"
    assert api.send(None, "GET", "/v1/whoami", headers=headers).status_code == 200


def test_a_forged_host_changes_nothing(world: World, api: Api) -> None:
    assert api.ok(world.admin, "GET", "/v1/whoami", headers={"Host": "evil.example"})
    assert (
        api.refused(world.admin, "GET", "/v1/whoami", headers={"Host": "a.example, b.example"})["status"]
        == 400
    )


def test_the_challenge_names_the_error_and_the_metadata(world: World, api: Api) -> None:
    silent = api.send(None, "GET", "/v1/whoami").headers["WWW-Authenticate"]
    assert silent.startswith("DPoP algs=")
    assert 'resource_metadata="http://127.0.0.1:9/.well-known/oauth-protected-resource"' in silent
    told = api.send(world.admin, "GET", "/v1/whoami", token="a.b.c").headers["WWW-Authenticate"]
    assert told.startswith('DPoP error="invalid_token", ')


def test_a_scope_that_is_too_narrow_is_403_with_a_challenge(world: World, api: Api) -> None:
    narrow = world.login(world.admin, [{"type": "ledger_access", "actions": ["search"]}])
    answer = api.send(world.admin, "GET", "/v1/principals", token=narrow)
    assert answer.status_code == 403
    assert json.loads(answer.get_data())["code"] == "insufficient_scope"
    assert answer.headers["WWW-Authenticate"].startswith('DPoP error="insufficient_scope"')


def test_a_nonce_is_asked_for_and_taken(world: World) -> None:
    api = Api(world)
    api.app = create_app(world.with_settings(nonces_required=True))
    api.client.application = api.app
    answer = api.send(world.admin, "GET", "/v1/whoami")
    assert json.loads(answer.get_data())["code"] == "use_dpop_nonce"
    nonce = answer.headers["DPoP-Nonce"]
    assert api.ok(world.admin, "GET", "/v1/whoami", nonce=nonce)


def test_a_wrong_clock_is_named(world: World, api: Api) -> None:
    headers = api.headers(world.admin, "GET", "/v1/whoami")
    world.clock.forward(limits.PROOF_WINDOW + 5)
    found = api.refused(None, "GET", "/v1/whoami", headers=headers)
    assert found["code"] == "clock_skew"
    assert "s behind the broker's clock" in found["detail"]


# -- what was asked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"request_id":"%s","artifact":"a/b","action":"read","action":"read"}',
        b"[" * 40 + b"]" * 40,
        b"\xff",
    ],
)
def test_bodies_that_do_not_parse(world: World, api: Api, body: bytes) -> None:
    assert api.refused(world.admin, "POST", "/v1/decisions", body)["status"] in (400, 422)


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": "not-a-uuid"},
        {"artifact": "acme"},
        {"artifact": "../x"},
        {"action": "own"},
        {"action": 1},
        {"version": "latest"},
        {"path": "/etc/passwd"},
        {"principal": "x:y z"},
        {"have": 7},
    ],
)
def test_members_that_do_not_fit(world: World, api: Api, change: Json) -> None:
    assert api.refused(world.admin, "POST", "/v1/decisions", decision(world, **change))["status"] == 422


def test_what_was_submitted_is_not_repeated(world: World, api: Api) -> None:
    body = decision(world, **{"SECRET<script>": 1, "action": "hunter2"})
    text = api.send(world.admin, "POST", "/v1/decisions", body).get_data(as_text=True)
    assert "SECRET" not in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/whoami", "x=1"),
        ("/v1/artifacts", "limit=0"),
        ("/v1/artifacts", "limit=1001"),
        ("/v1/artifacts", "limit=%2B5"),
        ("/v1/artifacts", "limit=5&limit=5"),
        ("/v1/artifacts", "limit"),
        ("/v1/ledger/entries", "after=-1"),
        ("/v1/ledger/hashes", "level=64&start=0&stop=1"),
        ("/v1/ledger/leaves", "start=0"),
        ("/v1/ledger/entries", "color=red"),
    ],
)
def test_queries_that_do_not_fit(world: World, api: Api, path: str, query: str) -> None:
    assert api.refused(world.admin, "GET", path, query=query)["status"] in (400, 422)


def test_a_route_without_a_body_takes_none(world: World, api: Api) -> None:
    assert api.refused(world.admin, "GET", "/v1/whoami", b"{}")["status"] == 422


@pytest.mark.parametrize("kind", ["text/plain", "application/jsonx", "application/json, text/plain", FORM])
def test_another_media_type_is_415(world: World, api: Api, kind: str) -> None:
    found = api.refused(world.admin, "POST", "/v1/decisions", decision(world), content_type=kind)
    assert (found["status"], found["code"]) == (415, "unsupported_media_type")


def test_a_charset_of_utf_8_is_fine(world: World, api: Api) -> None:
    kind = "application/json; charset=UTF-8"
    assert (
        api.refused(world.admin, "POST", "/v1/decisions", decision(world), content_type=kind)["status"] == 404
    )


def test_a_method_that_is_not_declared(world: World, api: Api) -> None:
    answer = api.send(world.admin, "PUT", "/v1/whoami", {})
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


def test_denied_names_the_policy_and_needs_no_more(world: World, api: Api) -> None:
    ana = world.add("ana")
    found = api.refused(ana, "GET", "/v1/principals")
    assert (found["status"], found["code"], found["policies"]) == (403, "denied", [])


# -- OAuth --------------------------------------------------------------------------------------------------


def token_error(api: Api, world: World, *, status: int = 400, **members: str) -> Json:
    answer = api.send(world.admin, "POST", "/oauth/token", form(**members), token=None, content_type=FORM)
    assert (answer.status_code, answer.mimetype) == (status, "application/json")
    return dict(json.loads(answer.get_data()))


def test_token_errors_have_oauths_own_form(world: World, api: Api) -> None:
    details = json.dumps(EVERYTHING)
    good = {
        "grant_type": BEARER,
        "assertion": assertion(world, world.admin),
        "authorization_details": details,
    }
    assert token_error(api, world, **{**good, "grant_type": "password"})["error"] == "unsupported_grant_type"
    assert token_error(api, world, **{**good, "assertion": "x.y.z"})["error"] == "invalid_grant"
    assert token_error(api, world, **{**good, "assertion": ""})["error"] == "invalid_request"
    for wrong in ("[]", "{}", "no", '[{"type":"root"}]'):
        found = token_error(api, world, **{**good, "authorization_details": wrong})
        assert found["error"] == "invalid_authorization_details"
    del good["authorization_details"]
    assert token_error(api, world, **good)["error"] == "invalid_authorization_details"


def test_a_proof_that_does_not_hold_at_the_token_endpoint(world: World, api: Api) -> None:
    answer = api.send(None, "POST", "/oauth/token", form(grant_type=BEARER), content_type=FORM)
    assert (answer.status_code, json.loads(answer.get_data())["error"]) == (401, "invalid_client")
    sent = {"DPoP": "a.b.c"}
    answer = api.send(None, "POST", "/oauth/token", form(grant_type=BEARER), content_type=FORM, headers=sent)
    found = json.loads(answer.get_data())
    assert (answer.status_code, found["error"], found["code"]) == (
        400,
        "invalid_dpop_proof",
        "invalid_dpop_proof",
    )


def test_introspection_needs_a_token(world: World, api: Api) -> None:
    answer = api.send(
        world.admin, "POST", "/oauth/introspect", form(token="x"), token="a.b.c", content_type=FORM
    )
    assert (answer.status_code, json.loads(answer.get_data())["error"]) == (401, "invalid_token")
    assert "WWW-Authenticate" in answer.headers


# -- what every answer has --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/v1/whoami", "/nowhere", "/oauth/token", "//"])
def test_every_answer_is_json_and_guarded(api: Api, path: str) -> None:
    answer = api.send(None, "GET", path)
    assert answer.mimetype in ("application/json", "application/problem+json")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Request-Id"]
    assert not {"Set-Cookie", "Access-Control-Allow-Origin", "Strict-Transport-Security"} & set(
        answer.headers.keys()
    )


def test_https_is_insisted_on_where_there_is_https(world: World) -> None:
    api = Api(world)
    api.client.application = create_app(world.with_settings(public_urls=("https://broker.example",)))
    assert "max-age" in api.send(None, "GET", "/livez").headers["Strict-Transport-Security"]


def test_unknown_paths_are_not_repeated(api: Api) -> None:
    answer = api.send(None, "GET", "/v1/hunter2")
    assert answer.status_code == 404
    assert b"hunter2" not in answer.get_data()


def test_metrics_are_for_this_machine(world: World, api: Api) -> None:
    local = {"REMOTE_ADDR": "127.0.0.1"}
    assert b"broker_http_requests_total" in api.send(None, "GET", "/metrics", **local).get_data()
    assert api.send(None, "GET", "/metrics").status_code == 404
    passed_on = api.send(None, "GET", "/metrics", headers={"X-Forwarded-For": "203.0.113.7"}, **local)
    assert passed_on.status_code == 404
    opened = Api(world, open_metrics=True)
    assert opened.send(None, "GET", "/metrics").status_code == 200


def test_an_unknown_failure_says_an_id_and_nothing_else(
    world: World, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("postgresql://user:hunter2@db")

    api.client.application = create_app(world.with_settings(ledger=Broken()))
    answer = api.send(world.admin, "GET", "/v1/whoami")
    found = json.loads(answer.get_data())
    assert answer.status_code == 500
    assert (found["code"], found["detail"]) == ("internal", "an internal error")
    logged = capsys.readouterr()
    assert found["request_id"] in logged.out + logged.err
    assert "RuntimeError" in logged.out + logged.err
    assert "hunter2" not in answer.get_data(as_text=True) + logged.out + logged.err


def test_nothing_of_a_request_is_logged(world: World, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.refused(world.admin, "GET", "/v1/artifacts", query="hunter2=1")
    api.refused(world.admin, "POST", "/v1/decisions", decision(world, purpose="hunter2"))
    logged = capsys.readouterr()
    assert "status=422" in logged.out + logged.err
    assert "hunter2" not in logged.out + logged.err
    assert world.admin.token not in logged.out + logged.err


def test_not_ready_without_a_store(world: World, api: Api) -> None:
    from broker.errors import StoreUnavailable

    class Down:
        def check(self) -> None:
            raise StoreUnavailable("the store at 10.0.0.7 does not answer")

    api.client.application = create_app(world.with_settings(store=Down()))
    answer = api.send(None, "GET", "/readyz")
    assert answer.status_code == 503
    assert b"10.0.0.7" not in answer.get_data()


def test_recipient_keys_are_checked(world: World, api: Api) -> None:
    for key in (b"", b"short", bytes(1216)):
        body = {
            "request_id": world.uuid(),
            "artifact": "acme/llama",
            "recipient": {"kem": "MLKEM768-X25519", "public_key": b64url(key)},
        }
        assert api.refused(world.admin, "POST", "/v1/grants", body)["status"] == 422


def test_a_large_body_is_parsed_for_a_known_caller_only(
    world: World, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parsed(Exception):
        pass

    def watch(*_: object) -> None:
        raise Parsed

    monkeypatch.setattr("broker.web.app.parse_body", watch)
    body = b"{}" + b" " * limits.MAX_BODY
    assert api.refused(world.admin, "POST", "/v1/uploads", body, token="a.b.c")["status"] == 401
    # A known caller gets as far as the parser, which fails here.
    assert api.refused(world.admin, "POST", "/v1/uploads", body)["code"] == "internal"
