"""The variables that a command gets, and those that it does not."""

from __future__ import annotations

import pytest

from broker.client.agent.environment import (
    REMOVED,
    child_environment,
    hub_environment,
    no_proxy_environment,
)
from broker.client.agent.running import parse_address
from broker.errors import UsageError


def test_hub_clients_are_led_to_the_endpoint() -> None:
    assert hub_environment("http://127.0.0.1:1", "s") == {
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "HF_TOKEN": "s",
    }


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "a.example, b.example"}, "a.example,b.example,127.0.0.1"),
        ({"no_proxy": "a.example"}, "a.example,127.0.0.1"),
        ({"NO_PROXY": "127.0.0.1"}, "127.0.0.1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
    ids=str,
)
def test_no_proxy_is_extended_in_both_spellings(environ: dict[str, str], expected: str) -> None:
    assert no_proxy_environment(environ, ("127.0.0.1",)) == {"NO_PROXY": expected, "no_proxy": expected}


def test_each_spelling_keeps_what_it_has() -> None:
    found = no_proxy_environment({"NO_PROXY": "a", "no_proxy": "b"}, ("::1", "[::1]"))
    assert found == {"NO_PROXY": "a,::1,[::1]", "no_proxy": "b,::1,[::1]"}


def test_a_command_gets_what_is_exported_and_nothing_that_leads_elsewhere() -> None:
    environ = dict.fromkeys(REMOVED, "mine") | {"PATH": "/bin", "HF_TOKEN": "mine"}
    assert child_environment(environ, {"HF_TOKEN": "agent's"}) == {"PATH": "/bin", "HF_TOKEN": "agent's"}


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_SESSION_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_users_own_credentials_are_among_what_is_removed(name: str) -> None:
    assert name in REMOVED


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("127.0.0.1:65535", "127.0.0.1", 65535), ("[::1]:9000", "::1", 9000)],
)
def test_an_address_is_a_literal_of_loopback(text: str, host: str, port: int) -> None:
    found = parse_address(text)
    assert (found.host, found.port) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9000",
        ":9000",
        "localhost:1",
        "0.0.0.0:1",
        "127.0.0.2:1",
        "127.0.0.1",
        "127.0.0.1:65536",
        "::1:1",
        "127.0.0.1:-1",
        "127.0.0.1:1 ",
        "[::]:1",
        "10.0.0.1:80",
        "127.1:80",
        "127.0.0.1:١",
    ],
)
def test_no_other_address_is_taken(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)
