"""docs/http.md against the table of routes, the limits and the OpenAPI document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker import limits
from broker.web.calls import Access, Needs, Own, Proof, Public
from broker.web.openapi import build_document
from broker.web.routes import ROUTES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()
ROW = re.compile(r"^\| `([A-Z]+ /\S*)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def who(access: Access) -> str:
    match access:
        case Public():
            return "anybody"
        case Proof(by=by):
            return f"a key, with {by}"
        case Own(of=of):
            return f"any caller: its own {of}"
        case Needs(action=action, scope=(kind, right)):
            return f"`{action}`; scope `{kind}: {right}`"


def test_every_route_is_on_the_page_with_who_may() -> None:
    listed = [match.groups() for match in ROW.finditer(PAGE)]
    declared = [(f"{route.method} {route.template}", who(route.access), route.summary) for route in ROUTES]
    assert sorted(listed) == sorted(declared)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("| body | 1 MiB; 48 MiB for", (limits.MAX_BODY, limits.MAX_UPLOAD_BODY)),
        ("| headers | 64, together 64 KiB |", (limits.MAX_HEADER_FIELDS, limits.MAX_HEADERS)),
        ("| request line | 8,190 bytes |", limits.MAX_REQUEST_LINE),
        ("| proof, access token | 4 KiB, 16 KiB |", (limits.MAX_PROOF, limits.MAX_TOKEN)),
        ("| nesting of JSON | 32 levels |", limits.MAX_JSON_DEPTH),
        ("| parameters of a query | 32 |", limits.MAX_PAIRS),
        ("| page | 1,000 rows (100 unless", (limits.MAX_PAGE, limits.DEFAULT_PAGE)),
        ("| recorded denials of one principal | 60 a minute |", limits.DENIALS_PER_MINUTE),
        ("| silence in the middle of a request or answer | 30 s |", limits.IO_TIMEOUT),
    ],
)
def test_the_limits_are_those_of_the_code(text: str, value: object) -> None:
    assert text in PAGE
    units = {"MiB": limits.MIB, "KiB": limits.KIB}
    said = [
        int(number.replace(",", "")) * units.get(unit, 1)
        for number, unit in re.findall(r"(\d[\d,]*)(?: (MiB|KiB))?", text)
    ]
    assert said == list(value if isinstance(value, tuple) else (value,))


def test_openapi_says_the_same() -> None:
    document = build_document(ROUTES, title="model-access-broker")
    found = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert found.keys() == {(route.method, route.template) for route in ROUTES}
    for route in ROUTES:
        operation = found[route.method, route.template]
        assert operation["summary"] == route.summary
        assert (operation["security"] == []) == isinstance(route.access, Public)
        in_path = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
        assert in_path == re.findall(r"{([a-z]+)}", route.template)
        if route.method in ("POST", "PUT", "PATCH"):
            assert operation["requestBody"]["required"] is True


def test_every_reference_of_openapi_resolves() -> None:
    document = build_document(ROUTES, title="model-access-broker")
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"'\$ref': '#/components/schemas/([A-Za-z]+)'", str(document)))
    assert references
    assert references <= schemas.keys()
