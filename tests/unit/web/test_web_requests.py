"""From the WSGI environment to a signed request."""

from __future__ import annotations

import io
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

from broker import limits
from broker.errors import (
    BrokerError,
    InvalidProof,
    InvalidRequest,
    InvalidToken,
    MalformedRequest,
    NotAuthenticated,
    TooLarge,
    UnsupportedMediaType,
)
from broker.web import requests


def environ(path: str = "/v1/x", query: str = "", **members: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        **EnvironBuilder().get_environ(),
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "RAW_URI": path + (f"?{query}" if query else ""),
        **members,
    }
    return {name: value for name, value in made.items() if value is not None}


# -- the target ---------------------------------------------------------------------------------------------


def test_the_target_is_what_was_received() -> None:
    found = requests.read_target(
        environ(RAW_URI="/v1/a%20b?x=%31", PATH_INFO="/v1/a b", QUERY_STRING="x=%31")
    )
    assert found == ("/v1/a%20b", b"x=%31")


def test_request_uri_stands_in_for_raw_uri() -> None:
    given = environ(RAW_URI=None, REQUEST_URI="/v1/x?a=1", QUERY_STRING="a=1")
    assert requests.read_target(given) == ("/v1/x", b"a=1")


def test_without_a_raw_target_only_the_canonical_spelling_can_have_been_signed() -> None:
    given = environ(RAW_URI=None, REQUEST_URI=None, PATH_INFO="/v1/caf\xc3\xa9 x", QUERY_STRING="a=1")
    assert requests.read_target(given) == ("/v1/caf%C3%A9%20x", b"a=1")


@pytest.mark.parametrize(
    "members",
    [
        {"PATH_INFO": "/v1/y"},
        {"SCRIPT_NAME": "/v1", "PATH_INFO": "/x"},
        {"QUERY_STRING": "a=2"},
        {"RAW_URI": "http://h/v1/x"},
        {"RAW_URI": "/v1/x#f"},
        {"RAW_URI": "/v1/%78"},
        {"RAW_URI": "/v1/caf\xe9"},
        {"RAW_URI": None, "REQUEST_URI": None, "PATH_INFO": "/\xff"},
    ],
)
def test_received_as_one_target_and_routed_as_another(members: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest):
        requests.read_target(environ(**members))


def test_a_url_at_the_limit_and_one_past_it() -> None:
    path = "/" + "a" * (limits.MAX_URL - 1)
    assert requests.read_target(environ(path)) == (path, b"")
    with pytest.raises(TooLarge):
        requests.read_target(environ(path + "a"))


# -- headers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "value", "error"),
    [
        ("HTTP_HOST", "a,b", MalformedRequest),
        ("HTTP_HOST", "a b", MalformedRequest),
        ("HTTP_TRANSFER_ENCODING", "chunked", MalformedRequest),
        ("HTTP_CONTENT_ENCODING", "identity", UnsupportedMediaType),
        ("HTTP_X", "a" * limits.MAX_HEADERS, TooLarge),
    ],
)
def test_headers_with_two_readings(header: str, value: str, error: type[BrokerError]) -> None:
    requests.check_headers(environ())
    with pytest.raises(error):
        requests.check_headers(environ(**{header: value}))


def test_a_proof_at_the_limit_and_one_past_it() -> None:
    assert requests.find_proof(environ(HTTP_DPOP="a" * limits.MAX_PROOF)) is not None
    with pytest.raises(InvalidProof):
        requests.find_proof(environ(HTTP_DPOP="a" * (limits.MAX_PROOF + 1)))


@pytest.mark.parametrize("value", ["", "a,b", "a b", "a=", "a\tb", "\xe9"])
def test_what_cannot_be_one_proof(value: str) -> None:
    with pytest.raises(InvalidProof):
        requests.find_proof(environ(HTTP_DPOP=value))


def test_a_token_at_the_limit_and_one_past_it() -> None:
    assert (
        requests.find_access_token(environ(HTTP_AUTHORIZATION="DPoP " + "a" * limits.MAX_TOKEN)) is not None
    )
    with pytest.raises(InvalidToken):
        requests.find_access_token(environ(HTTP_AUTHORIZATION="DPoP " + "a" * (limits.MAX_TOKEN + 1)))


def test_no_header_is_no_credential() -> None:
    assert requests.find_access_token(environ()) is None
    assert requests.find_proof(environ()) is None
    with pytest.raises(NotAuthenticated):
        requests.find_access_token(environ(HTTP_AUTHORIZATION="Basic eA=="))


def test_nothing_of_the_body_is_read_before_the_credentials_are_there() -> None:
    class Untouched:
        def read(self, size: int) -> bytes:
            raise AssertionError("the body was read")

    given = environ(CONTENT_LENGTH="5", **{"wsgi.input": Untouched()})
    for headers in ({}, {"HTTP_DPOP": "a.b.c"}, {"HTTP_AUTHORIZATION": "DPoP a.b.c"}):
        with pytest.raises(NotAuthenticated):
            requests.read_signed_request(
                {**given, **headers}, token=True, media_type=requests.JSON, most=10, behind_proxy=False
            )


def test_credentials_are_not_part_of_the_text_form() -> None:
    given = environ(HTTP_DPOP="hunter2", HTTP_AUTHORIZATION="DPoP hunter2")
    signed = requests.read_signed_request(
        given, token=True, media_type=requests.JSON, most=10, behind_proxy=False
    )
    assert (signed.proof, signed.access_token) == ("hunter2", "hunter2")
    assert "hunter2" not in repr(signed)


# -- where from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "forwarded", "behind_proxy", "found"),
    [
        ("203.0.113.7", None, False, "203.0.113.7"),
        ("203.0.113.7", "10.0.0.1", False, "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7", True, "203.0.113.7"),
        ("127.0.0.1", "1.2.3.4, 203.0.113.7", True, "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7,2001:db8::1", True, "2001:db8::1"),
        ("127.0.0.1", None, True, ""),
        ("127.0.0.1", "unknown", True, ""),
        ("127.0.0.1", "203.0.113.7:80", True, ""),
        ("::ffff:203.0.113.7", None, False, "203.0.113.7"),
        ("fe80::1%eth0", None, False, ""),
        ("", None, False, ""),
        (None, None, False, ""),
    ],
)
def test_the_callers_address(
    remote: str | None, forwarded: str | None, behind_proxy: bool, found: str
) -> None:
    given = environ(REMOTE_ADDR=remote, HTTP_X_FORWARDED_FOR=forwarded)
    assert requests.find_network(given, behind_proxy=behind_proxy) == found


@pytest.mark.parametrize(
    ("members", "behind_proxy", "local"),
    [
        ({"REMOTE_ADDR": "127.0.0.1"}, False, True),
        ({"REMOTE_ADDR": "::1"}, False, True),
        ({"REMOTE_ADDR": "203.0.113.7"}, False, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1"}, False, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_FORWARDED": "for=x"}, False, False),
        ({"REMOTE_ADDR": "127.0.0.1"}, True, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "203.0.113.7"}, True, False),
        ({}, False, False),
    ],
)
def test_who_is_on_this_machine(members: dict[str, str], behind_proxy: bool, local: bool) -> None:
    given = environ(**{"REMOTE_ADDR": None, **members})
    assert requests.is_local(given, behind_proxy=behind_proxy) is local


# -- the body -----------------------------------------------------------------------------------------------


def body(data: bytes, **members: Any) -> dict[str, Any]:
    return environ(**{"wsgi.input": io.BytesIO(data), "CONTENT_LENGTH": str(len(data)), **members})


def test_a_body_at_the_limit_and_one_past_it() -> None:
    assert requests.read_body(body(b"x" * 10), most=10) == b"x" * 10
    with pytest.raises(TooLarge):
        requests.read_body(body(b"x" * 11), most=10)


def test_only_the_announced_bytes_are_read() -> None:
    assert requests.read_body(body(b"abcdef", CONTENT_LENGTH="3"), most=10) == b"abc"
    assert requests.read_body(body(b"abcdef", CONTENT_LENGTH=None), most=10) == b""
    assert requests.read_body(body(b"abcdef", CONTENT_LENGTH=""), most=10) == b""


@pytest.mark.parametrize("length", ["-1", "+1", " 1", "1.0", "0x1", "\u0661", "1" * 16, "1,1"])
def test_a_length_that_is_no_number(length: str) -> None:
    with pytest.raises(MalformedRequest):
        requests.read_body(body(b"x", CONTENT_LENGTH=length), most=10)


def test_a_body_that_ends_early_or_never_comes() -> None:
    with pytest.raises(MalformedRequest):
        requests.read_body(body(b"abc", CONTENT_LENGTH="4"), most=10)

    class Silent:
        def read(self, size: int) -> bytes:
            raise BlockingIOError

    with pytest.raises(MalformedRequest):
        requests.read_body(body(b"abc", **{"wsgi.input": Silent()}), most=10)


@pytest.mark.parametrize(
    ("kind", "data", "method", "fits"),
    [
        ("application/json", b"{}", "POST", True),
        ("Application/JSON;charset=utf-8", b"{}", "POST", True),
        ('application/json; charset="UTF-8"', b"{}", "POST", True),
        ("", b"", "POST", True),
        ("", b"{}", "DELETE", True),
        ("", b"{}", "POST", False),
        ("application/json; charset=latin-1", b"{}", "POST", False),
        ("application/json5", b"{}", "POST", False),
        ("text/json", b"", "POST", False),
        ("text/plain", b"{}", "DELETE", False),
    ],
)
def test_media_types(kind: str, data: bytes, method: str, fits: bool) -> None:
    given = environ(CONTENT_TYPE=kind, REQUEST_METHOD=method)
    if fits:
        requests.check_media_type(given, requests.JSON, data)
    else:
        with pytest.raises(UnsupportedMediaType):
            requests.check_media_type(given, requests.JSON, data)


# -- parameters ---------------------------------------------------------------------------------------------


def test_parameters_are_decoded_once() -> None:
    assert requests.parse_pairs(b"a=x+y&b=%2525&c=") == {"a": "x y", "b": "%25", "c": ""}
    assert requests.parse_pairs(b"a=1;b=2") == {"a": "1;b=2"}
    assert requests.parse_pairs(b"") == {}


@pytest.mark.parametrize("data", [b"a", b"a=1&a=2", b"a=1&&b=2", b"a=%ff", b"a=\xff", b"&"])
def test_parameters_with_two_readings(data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        requests.parse_pairs(data)


@pytest.mark.parametrize("text", ["", "-1", "+1", "01", "1.0", "1e3", " 1", "9" * 17, "\u0661"])
def test_what_is_no_index(text: str) -> None:
    assert requests.parse_index("0") == 0
    with pytest.raises(InvalidRequest):
        requests.parse_index(text)
