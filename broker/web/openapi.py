"""The OpenAPI document, made from the table of routes and the shapes of its bodies.

**Source**: OpenAPI Specification 3.1.0.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from broker import __version__
from broker.canonical import Json
from broker.web.calls import Access, Needs, Own, Proof, Public, PublicCall, Route
from broker.web.models import Shape
from broker.web.problems import PROBLEM

_REFERENCE: Final = "#/components/schemas/{model}"
_SCHEMES: Final[Json] = {
    "proof": {
        "type": "apiKey",
        "in": "header",
        "name": "DPoP",
        "description": "A proof for exactly this request (RFC 9449), with content_digest and query_digest.",
    },
    "token": {"type": "http", "scheme": "DPoP", "description": "A key-bound access token (RFC 9449)."},
}
_PROBLEM: Final[Json] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        **{
            name: {"type": "string"}
            for name in ("type", "title", "detail", "code", "request_id", "why", "next")
        },
        "status": {"type": "integer"},
        "policies": {"type": "array", "items": {"type": "string"}},
        "retry_after": {"type": "integer"},
    },
}
_FORM: Final[Json] = {"type": "object", "additionalProperties": {"type": "string"}}


def show(call: PublicCall) -> Json:
    """Every route and the shapes of its bodies, as OpenAPI."""
    return build_document(call.routes, title="model-access-broker")


def build_document(routes: tuple[Route, ...], *, title: str) -> Json:
    """The OpenAPI 3.1 document of these routes."""
    shapes: dict[type[Shape], None] = {}
    for route in routes:
        shapes.update(dict.fromkeys(shape for shape in (route.body, route.query) if shape))
    _, schemas = models_json_schema(
        [(shape, "validation") for shape in shapes], by_alias=True, ref_template=_REFERENCE
    )
    definitions = schemas.get("$defs", {})
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, definitions)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**definitions, "Problem": _PROBLEM},
            "securitySchemes": _SCHEMES,
        },
    }


def _operation(route: Route, definitions: Json) -> Json:
    found: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "security": _security(route.access),
        "responses": {
            "200": {"description": "The answer."},
            "default": {
                "description": "A problem document (RFC 9457); at /oauth/* an OAuth error.",
                "content": {PROBLEM: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
            },
        },
    }
    found["parameters"] = _path_parameters(route) + _query_parameters(route, definitions)
    if route.form:
        found["requestBody"] = {"required": True, "content": {route.media_type: {"schema": _FORM}}}
    elif route.body is not None:
        schema = {"$ref": _REFERENCE.format(model=route.body.__name__)}
        found["requestBody"] = {
            "required": route.method != "DELETE",
            "content": {route.media_type: {"schema": schema}},
        }
    if isinstance(route.access, Needs):
        found["x-broker-needs"] = {"action": route.access.action, "scope": list(route.access.scope)}
    return found


def _security(access: Access) -> list[dict[str, list[Any]]]:
    if isinstance(access, Public):
        return []
    if isinstance(access, Proof):
        return [{"proof": []}]
    return [{"proof": [], "token": []}] if isinstance(access, Own | Needs) else []


def _path_parameters(route: Route) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.parameters
    ]


def _query_parameters(route: Route, definitions: Json) -> list[Json]:
    if route.query is None:
        return []
    schema = definitions[route.query.__name__]
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": member}
        for name, member in schema["properties"].items()
    ]
