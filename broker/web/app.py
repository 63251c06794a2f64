"""The WSGI application: the table of routes joined to a house, and one way through for every request.

A request is checked on the wire, then for credentials, then its use case authenticates, decides and
records. What is wrong with a body or a query is told only to a caller who is who it says it is: to
anybody else the answer is 401 (I02).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from flask import Flask, g
from flask import request as flask_request
from werkzeug.exceptions import NotFound as NoSuchRoute
from werkzeug.routing import Rule
from werkzeug.wrappers import Response

from broker import limits
from broker.config import Settings, load_settings
from broker.errors import (
    HTTP_STATUS,
    ConfigurationError,
    Conflict,
    IntegrityFailure,
    InvalidRequest,
    MalformedRequest,
    NotAuthenticated,
    NotFound,
    ReplayedProof,
    TooLarge,
)
from broker.services import authn
from broker.services.house import House
from broker.web import metrics, problems, requests
from broker.web.calls import Call, Proof, Public, PublicCall, Route
from broker.web.health import Readiness
from broker.web.logs import configure_logging, describe_fault, get_logger
from broker.web.models import parse_body, parse_members
from broker.web.public import PROTECTED_RESOURCE, base_url
from broker.web.routes import ROUTES
from broker.web.upkeep import Upkeep

UPKEEP: Final = "broker_upkeep"
"""Where ``app.extensions`` has the :class:`~broker.web.upkeep.Upkeep`."""

_HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HSTS: Final = "max-age=31536000"


class ExactRule(Rule):
    """A rule for the methods that it names and no other: no HEAD comes along with GET."""

    def __init__(self, string: str, **options: Any) -> None:
        super().__init__(string, **options)
        if self.methods is not None:
            self.methods = set(self.methods) - {"HEAD"}


class BrokerApp(Flask):
    """Flask without what this API does not have: static files, sessions, redirects, implied methods."""

    url_rule_class: type[Rule] = ExactRule

    def log_exception(self, exc_info: Any) -> None:
        """What failed outside every handler: types and places, not the text that Flask would print (I11)."""
        get_logger().error("a request failed badly", fault=describe_fault(exc_info[1]))


def create_app(
    house: House,
    *,
    behind_proxy: bool = False,
    open_metrics: bool = False,
    routes: tuple[Route, ...] = ROUTES,
) -> Flask:
    """The application over a house.

    Args:
        house: The broker's parts.
        behind_proxy: One trusted proxy stands in front: its last ``X-Forwarded-For`` hop is the caller.
        open_metrics: ``/metrics`` answers to other machines too.
        routes: What is served.

    Raises:
        ConfigurationError: A route is declared twice, or served without being declared (I02).
    """
    app = BrokerApp("broker", static_folder=None, template_folder=None)
    # One path, one reading: nothing is redirected to a spelling that was not signed.
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    door = _Door(house, routes, behind_proxy=behind_proxy, open_metrics=open_metrics)
    for route in routes:
        app.add_url_rule(
            route.rule,
            endpoint=route.name,
            view_func=partial(door.answer, route),
            methods=[route.method],
            provide_automatic_options=False,
        )
    app.before_request(door.begin)
    app.after_request(door.finish)
    app.register_error_handler(Exception, door.refuse)
    app.extensions[UPKEEP] = door.upkeep
    check_declared(app, routes)
    return app


def check_declared(app: Flask, routes: tuple[Route, ...]) -> None:
    """What is served is what is declared, with no method more (I02).

    Raises:
        ConfigurationError: It is not.
    """
    declared = {(route.name, route.rule, route.method) for route in routes}
    served = {
        (rule.endpoint, rule.rule, method)
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ("any",)
    }
    if len(declared) != len(routes) or len({route.name for route in routes}) != len(routes):
        raise ConfigurationError("a route is declared twice")
    if served != declared:
        raise ConfigurationError("a route is served that is not declared, or the other way round")


class _Door:
    """What every request passes, in order: begin, answer, (refuse), finish."""

    def __init__(
        self, house: House, routes: tuple[Route, ...], *, behind_proxy: bool, open_metrics: bool
    ) -> None:
        self._house = house
        self._routes = {route.name: route for route in routes}
        self._behind_proxy = behind_proxy
        self._open_metrics = open_metrics
        self._metadata_url = base_url(house) + PROTECTED_RESOURCE
        self._secure = all(url.startswith("https://") for url in house.public_urls)
        self._public = PublicCall(house=house, readiness=Readiness(house), routes=routes)
        self.upkeep = Upkeep(house)

    # -- in ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Give the request an id, and refuse what has two readings before anything is routed."""
        g.request_id = self._house.entropy.uuid()
        g.began = self._house.clock.now()
        g.anonymous = True
        environ = flask_request.environ
        requests.read_target(environ)
        requests.check_headers(environ)
        # I02: a rule that somebody added after the start is not served either.
        if flask_request.endpoint is not None and flask_request.endpoint not in self._routes:
            raise NoSuchRoute

    def answer(self, route: Route, **values: str) -> Response:
        """The answer of one declared route."""
        if isinstance(route.access, Public):
            found = self._answer_public(route, values)
        else:
            found = self._answer_signed(route, values)
        if isinstance(found, Response):
            return found
        text = json.dumps(found, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return Response(text, content_type=problems.JSON)

    def _answer_public(self, route: Route, values: Mapping[str, str]) -> Any:
        environ = flask_request.environ
        if (
            route.local_only
            and not self._open_metrics
            and not requests.is_local(environ, behind_proxy=self._behind_proxy)
        ):
            raise NoSuchRoute
        g.anonymous = False
        handler: Any = route.handler
        return handler(replace(self._public, values=values) if values else self._public)

    def _answer_signed(self, route: Route, values: Mapping[str, str]) -> Any:
        signed = requests.read_signed_request(
            flask_request.environ,
            token=not isinstance(route.access, Proof),
            media_type=route.media_type,
            most=route.most,
            behind_proxy=self._behind_proxy,
        )
        # From here on the use case says who it is: a 401 is junk, whatever else it refuses is not.
        g.anonymous = False
        # A body of megabytes is parsed only for somebody who is known (I17).
        if len(signed.body) > limits.MAX_BODY:
            self._check_caller(route, signed)
        handler: Any = route.handler
        try:
            return handler(_parse(self._house, route, signed, values))
        except (MalformedRequest, InvalidRequest, TooLarge, NotFound, Conflict):
            self._spend(route, signed)
            raise

    def _spend(self, route: Route, signed: authn.SignedRequest) -> None:
        """A refusal is told to a known caller only, and uses up the proof as an answer would (I08)."""
        if isinstance(route.access, Proof):
            self._check_caller(route, signed)
            return
        # A refusal that is on record has used it up already.
        with suppress(ReplayedProof):
            authn.spend_proof(self._house, signed)

    def _check_caller(self, route: Route, signed: authn.SignedRequest) -> None:
        """The caller is authenticated; read-only, its proof is not used up.

        Raises:
            NotAuthenticated and its kin: It is not.
        """
        with self._house.ledger.view() as view:
            if isinstance(route.access, Proof):
                authn.verify_request(self._house, signed, now=view.now, digests=not route.form)
            else:
                authn.authenticate(self._house, view, signed)

    # -- out --------------------------------------------------------------------------------------------

    def refuse(self, exc: Exception) -> Response:
        """Any failure as an answer. Unknown ones say an id, under which the log has the traceback."""
        error = problems.error_of(exc)
        request_id = g.request_id
        if HTTP_STATUS[error.code] == 500 or isinstance(error, IntegrityFailure):
            get_logger().error(
                "a request failed", request_id=request_id, code=error.code, fault=describe_fault(exc)
            )
        route = self._routes.get(flask_request.endpoint or "")
        metrics.count_refusal(route=_name(route), code=error.code)
        # At the token endpoint it is a 400 (RFC 6749, 8693): who presents such a token is nobody either.
        if g.anonymous or isinstance(error, NotAuthenticated):
            self.upkeep.junk.count(error.code)
        if route is not None and route.form:
            refusal = problems.oauth_problem_of(
                error,
                request_id=request_id,
                metadata_url=self._metadata_url,
                token_endpoint=isinstance(route.access, Proof),
            )
        else:
            refusal = problems.problem_of(error, request_id=request_id, metadata_url=self._metadata_url)
        response = refusal.as_response()
        allowed = getattr(exc, "valid_methods", None)
        if allowed:
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    def finish(self, response: Response) -> Response:
        """Security headers, counters, one log line; upkeep once the answer is out."""
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["Request-Id"] = g.request_id
        if self._secure:
            response.headers["Strict-Transport-Security"] = _HSTS
        route = _name(self._routes.get(flask_request.endpoint or ""))
        ms = max(0, self._house.clock.now() - g.began)
        method = flask_request.method
        metrics.count_request(route=route, method=method, status=response.status_code, ms=ms)
        get_logger().info("request", request_id=g.request_id, route=route, status=response.status_code, ms=ms)
        response.call_on_close(self.upkeep.run)
        return response


def _name(route: Route | None) -> str:
    return metrics.UNKNOWN_ROUTE if route is None else route.name


def _parse(house: House, route: Route, signed: authn.SignedRequest, values: Mapping[str, str]) -> Call:
    members = requests.parse_pairs(signed.query)
    if route.query is None and members:
        raise InvalidRequest("this route takes no query")
    body: Any = None
    if route.form:
        body = requests.parse_pairs(signed.body)
    elif route.body is not None:
        body = parse_body(route.body, signed.body)
    elif signed.body:
        raise InvalidRequest("this route takes no body")
    query = None if route.query is None else parse_members(route.query, members)
    return Call(house=house, request=signed, values=values, query=query, body=body)


def build_app(settings: Settings) -> Flask:
    """The application over the house that these settings describe.

    Raises:
        ConfigurationError: The house refuses to start.
    """
    # Database, store and policy engine are loaded here, after the fork, and not by who only imports this.
    from broker.wiring import build_house

    configure_logging()
    return create_app(
        build_house(settings), behind_proxy=settings.behind_proxy, open_metrics=settings.open_metrics
    )


def create_app_from_environment() -> Flask:
    """The application that the environment describes, for another WSGI server than ours.

    Raises:
        ConfigurationError: A setting is missing or wrong, or the house refuses to start.
    """
    return build_app(load_settings())
