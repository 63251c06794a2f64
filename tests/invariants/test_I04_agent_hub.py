"""I04: a name that a Hub client sends opens what has exactly this name, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from broker.client.agent.http import Request
from broker.client.agent.hub import HubApp
from broker.client.library import Library
from broker.errors import BrokerError
from tests.unit.client.conftest import Stack, make_tree

SECRET = "s"
HOSTILE = (
    "*",
    "?",
    "[a]",
    "..",
    ".",
    "../acme",
    "a/../a",
    "a//b",
    "/a",
    "a/",
    "'; DROP TABLE artifacts; --",
    '"',
    "a\nX-Evil: 1",
    "a\r\n\r\nHTTP/1.1 200 OK",
    "a\x00",
    "%2e%2e",
    "\u0430cme",  # a Cyrillic a
    "\u202eemca",
    "A",
    " a",
    "broker://acme/one",
    "acme@v1",
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubApp]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BROKER_PURPOSE", raising=False)
        stack = Stack(tmp_path_factory.mktemp("names"))
        first = stack.add("pia", roles=("publisher", "engineer"), groups=("acme", "acme-2"))
        tree = {"a": b"one", "sub/b": b"two", "[a]": b"three", "%2e%2e": b"four"}
        first.publish(make_tree(tmp_path_factory.mktemp("t"), tree), "acme/one@v1")
        first.publish(make_tree(tmp_path_factory.mktemp("u"), {"a": b"other"}), "acme-2/one@v1")
        library: Library = first.library()
        yield HubApp(library, secret=SECRET, principal="user:pia")
        library.close()
        stack.stop()


def ask(app: HubApp, path: str) -> tuple[int, bytes, list[tuple[str, str]]]:
    headers = {"host": "127.0.0.1:1", "authorization": f"Bearer {SECRET}"}
    try:
        answer = app.answer(Request(method="GET", raw_path=path, query="", headers=headers))
        body = answer.body if isinstance(answer.body, bytes) else b"".join(map(bytes, answer.body))
    except BrokerError as exc:
        answer = app.refusal(exc)
        assert isinstance(answer.body, bytes)
        body = answer.body
    for name, value in answer.headers:
        assert name.isascii() and value.isascii() and value.isprintable()  # noqa: PT018 - one property
    return answer.status, body, list(answer.headers)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize(
    "form",
    [
        "/api/models/{}/one",
        "/api/models/acme/{}",
        "/api/models/acme/one/revision/{}",
        "/api/models/acme/one/tree/{}",
        "/{}/one/resolve/v1/a",
        "/acme/{}/resolve/v1/a",
        "/acme/one/resolve/{}/a",
    ],
)
def test_I04_a_hostile_name_of_a_repository_or_revision_finds_nothing(
    app: HubApp, form: str, name: str
) -> None:
    status, body, _ = ask(app, form.format(quote(name, safe="")))
    assert status == 404
    assert b"one" not in body.replace(b"acme/one", b"").replace(name.encode(), b"").replace(b"/one", b"")


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in ("[a]", "%2e%2e")], ids=ascii)
@pytest.mark.parametrize("raw", [False, True], ids=["encoded", "slashes as they are"])
def test_I04_a_hostile_path_finds_no_file(app: HubApp, name: str, raw: bool) -> None:
    path = quote(name, safe="/" if raw else "")
    assert ask(app, f"/acme/one/resolve/v1/{path}")[0] == 404


@pytest.mark.parametrize(("name", "data"), [("[a]", b"three"), ("%2e%2e", b"four"), ("sub/b", b"two")])
def test_I04_a_strange_name_is_that_file_and_no_other(app: HubApp, name: str, data: bytes) -> None:
    assert ask(app, f"/acme/one/resolve/v1/{quote(name, safe='')}")[:2] == (200, data)


def test_I05_a_collection_is_not_a_prefix(app: HubApp) -> None:
    assert ask(app, "/acme/one/resolve/v1/a")[1] == b"one"
    assert ask(app, "/acme-2/one/resolve/v1/a")[1] == b"other"
    assert ask(app, "/acme-/one/resolve/v1/a")[0] == 404
    assert ask(app, "/acme/one/resolve/v/a")[0] == 404
    assert ask(app, "/acme/one/resolve/v1/su")[0] == 404
