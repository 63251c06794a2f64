"""I02: every route is declared, with who may ask; nothing else is served, and nothing without credentials."""

from __future__ import annotations

import re

import pytest
from flask import Flask
from werkzeug.test import Client

from broker.errors import ConfigurationError
from broker.identity import scope
from broker.policy.request import ACTIONS
from broker.web.app import check_declared, create_app
from broker.web.calls import Needs, Proof, Public
from broker.web.routes import ROUTES
from tests.world import World

PUBLIC = {
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-protected-resource",
    "/oauth/jwks",
    "/ledger/checkpoint",
    "/ledger/cosigned",
    "/ledger/keys",
    "/ledger/tile/<level>/<path:place>",
}
"""The list of what anybody may ask, written a second time on purpose: adding to it takes two edits."""
BY_PROOF = {"/oauth/token", "/v1/enrolments"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
def app(world: World) -> Flask:
    return create_app(world.house)


def test_I02_the_public_list_is_what_is_declared_public() -> None:
    assert {route.rule for route in ROUTES if isinstance(route.access, Public)} == PUBLIC
    assert {route.method for route in ROUTES if isinstance(route.access, Public)} == {"GET"}
    assert {route.rule for route in ROUTES if isinstance(route.access, Proof)} == BY_PROOF


def test_I02_what_a_route_needs_exists() -> None:
    for route in ROUTES:
        if isinstance(route.access, Needs):
            kind, action = route.access.scope
            assert route.access.action in ACTIONS, route.name
            assert action in scope.ACTIONS[kind], route.name


def test_I02_the_url_map_is_the_table(app: Flask) -> None:
    served = {(rule.rule, *sorted(rule.methods or ())) for rule in app.url_map.iter_rules()}
    assert served == {(route.rule, route.method) for route in ROUTES}


def test_I02_an_undeclared_route_fails_the_start(app: Flask) -> None:
    app.add_url_rule("/v1/backdoor", endpoint="backdoor", view_func=lambda: "open")
    with pytest.raises(ConfigurationError):
        check_declared(app, ROUTES)


def test_I02_a_route_that_lost_its_rule_fails_the_start(app: Flask) -> None:
    with pytest.raises(ConfigurationError):
        check_declared(app, (*ROUTES, ROUTES[-1]))
    with pytest.raises(ConfigurationError):
        check_declared(app, ROUTES[:-1])


def test_I02_a_route_added_later_does_not_answer(app: Flask) -> None:
    app.add_url_rule("/v1/backdoor", endpoint="backdoor", view_func=lambda: "open")
    assert Client(app).get("/v1/backdoor").status_code == 404


def _path(rule: str) -> str:
    return re.sub(r"<[^>]+>", "1", rule)


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer x"}, {"DPoP": "a.b.c", "Authorization": "DPoP a.b.c"}]
)
def test_I02_without_credentials_only_401_and_404(app: Flask, world: World, headers: dict[str, str]) -> None:
    client, size = Client(app), world.size()
    for rule in app.url_map.iter_rules():
        if rule.rule in PUBLIC:
            continue
        for method in rule.methods or ():
            answer = client.open(_path(rule.rule), method=method, headers=headers)
            # RFC 9449 section 5: the token endpoint says 400 to a proof that does not hold.
            allowed = {401, 404} | ({400} if rule.rule == "/oauth/token" and "DPoP" in headers else set())
            assert answer.status_code in allowed, f"{method} {rule.rule}: {answer.status}"
    assert world.size() == size, "junk made an entry"


def test_I02_no_other_method_answers_on_any_path(app: Flask) -> None:
    client = Client(app)
    declared = {(route.method, route.rule) for route in ROUTES}
    for rule in {route.rule for route in ROUTES}:
        for method in METHODS:
            if (method, rule) in declared:
                continue
            # GET and PATCH of .../codes are those of a principal with that name, which nobody may ask either.
            expected = 401 if rule.endswith("/codes") and method in ("GET", "PATCH") else 405
            assert client.open(_path(rule), method=method).status_code == expected, f"{method} {rule}"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v2/whoami",
        "/V1/whoami",
        "/v1/whoami/",
        "/static/x",
        "/console",
        "/.env",
        "/v1/whoami.json",
    ],
)
def test_I02_other_paths_are_not_there(app: Flask, path: str) -> None:
    assert Client(app).get(path).status_code == 404


@pytest.mark.parametrize(
    "path", ["//v1/whoami", "/v1//whoami", "/v1/./whoami", "/v1/../v1/whoami", "/livez//"]
)
def test_I02_a_path_with_two_readings_is_no_way_around(app: Flask, path: str) -> None:
    # Built by hand: the test client would tidy the path up.
    environ = {"RAW_URI": path, "PATH_INFO": path, "SCRIPT_NAME": ""}
    assert Client(app).get("/", environ_overrides=environ).status_code == 400
