"""The variables that a command gets, and those that it does not."""

from __future__ import annotations

import pytest

from broker.client.agent.environment import (
    REMOVED,
    child_environment,
    find_removed,
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


MINE = {
    "s3": ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE", "FSSPEC_S3_KEY", "FSSPEC_S3"),
    "hf": ("HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "FSSPEC_HF_TOKEN"),
}


def test_a_command_gets_what_is_exported_and_nothing_that_leads_elsewhere() -> None:
    environ = dict.fromkeys([*MINE["s3"], *MINE["hf"]], "mine") | {"PATH": "/bin", "HF_TOKEN": "mine"}
    removed = find_removed(environ, ["s3", "hf"])
    found = child_environment(environ, removed=removed, exported={"HF_TOKEN": "agent's"})
    assert found == {"PATH": "/bin", "HF_TOKEN": "agent's"}


@pytest.mark.parametrize(("endpoint", "other"), [("s3", "hf"), ("hf", "s3")])
def test_what_leads_to_an_endpoint_that_is_off_stays(endpoint: str, other: str) -> None:
    environ = dict.fromkeys([*REMOVED[endpoint], *REMOVED[other], *MINE[endpoint], *MINE[other]], "mine")
    found = find_removed(environ, [endpoint])
    assert set(found) == {*REMOVED[endpoint], *MINE[endpoint]}
    assert not find_removed({"PATH": "", "HF_HOME": "", "AWS_CA_BUNDLE": ""}, ["s3", "hf"])


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
