"""Heads of requests: what is taken, what is refused, and with which status."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import limits
from broker.client.agent.heads import MAX_HEAD, Head, Refused, parse_head

PORT = 4242
HOST = "Host: 127.0.0.1:4242"


def parse(*lines: str, line: str = "GET / HTTP/1.1", host: str = HOST) -> Head:
    return parse_head("\r\n".join([line, *([host] if host else []), *lines]).encode("latin-1"), port=PORT)


def status(*lines: str, line: str = "GET / HTTP/1.1", host: str = HOST) -> int:
    with pytest.raises(Refused) as caught:
        parse(*lines, line=line, host=host)
    return caught.value.status


def test_the_parts_of_a_request() -> None:
    head = parse("X-Amz-Meta-A:  b c \t", "Empty:", line="GET /a%20b/c?x=1&y HTTP/1.1")
    request = head.request
    assert (request.method, request.raw_path, request.query, request.body) == (
        "GET",
        "/a%20b/c",
        "x=1&y",
        b"",
    )
    assert request.headers == {"host": "127.0.0.1:4242", "x-amz-meta-a": "b c", "empty": ""}
    assert (head.body_size, head.waits, head.closes, head.unread) == (0, False, False, False)


def test_a_request_shows_neither_its_headers_nor_its_query() -> None:
    shown = repr(parse("Authorization: Bearer hidden", line="GET /?X-Amz-Signature=hidden HTTP/1.1"))
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET / HTTP/1.0", 505),
        ("GET / HTTP/2.0", 400),
        ("GET /", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("get / HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:4242 HTTP/1.1", 400),
        ("GET /#here HTTP/1.1", 400),
        ("GET /\x00 HTTP/1.1", 400),
        ("GET /\xe9 HTTP/1.1", 400),
        ("GET /\t HTTP/1.1", 400),
        ("GET https://127.0.0.1:4242/ HTTP/1.1", 400),
        ("GET http://127.0.0.1:4242 HTTP/1.1", 400),
        ("GET http://u@127.0.0.1:4242/ HTTP/1.1", 400),
        ("GET http://evil.example/ HTTP/1.1", 400),
        ("GET http://127.0.0.1:4243/ HTTP/1.1", 421),
        ("GET http://[::1]:4242/ HTTP/1.1", 421),
        ("", 400),
    ],
)
def test_request_lines_that_are_refused(line: str, expected: int) -> None:
    assert status(line=line) == expected


def test_a_whole_url_as_target_is_the_host_that_is_named() -> None:
    request = parse(line="GET http://127.0.0.1:4242/a?b HTTP/1.1").request
    assert (request.raw_path, request.query) == ("/a", "b")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "Host:",
        "Host: localhost:4242",
        "Host: LOCALHOST:4242",
        "Host: 127.0.0.1",
        "Host: 127.0.0.1:4243",
        "Host: 127.0.0.1:04242",
        "Host: 127.0.0.2:4242",
        "Host: 127.1:4242",
        "Host: 2130706433:4242",
        "Host: 0.0.0.0:4242",
        "Host: [::]:4242",
        "Host: [0:0:0:0:0:0:0:1]:4242",
        "Host: [::ffff:127.0.0.1]:4242",
        "Host: acme.127.0.0.1:4242",
        "Host: rebound.example:4242",
        "Host: 127.0.0.1:4242, rebound.example",
    ],
)
def test_other_hosts(host: str) -> None:
    assert status(host=host) == 421


@pytest.mark.parametrize("host", ["Host: 127.0.0.1:4242", "HOST:[::1]:4242"])
def test_hosts_that_are_this_endpoint(host: str) -> None:
    assert parse(host=host)


@pytest.mark.parametrize(
    "line",
    [
        "Origin: null",
        "Origin: http://127.0.0.1:4242",
        "origin: https://example.org",
        "Origin:",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Mode: no-cors",
        "Sec-Fetch-Dest: image",
        "sec-ch-ua: x",
        "Sec-WebSocket-Key: x",
    ],
)
def test_what_browsers_send(line: str) -> None:
    assert status(line) == 403


@pytest.mark.parametrize(
    "lines",
    [
        ("Authorization: a", "authorization: b"),
        ("Range: bytes=0-1", "Range: bytes=0-1"),
        ("X-Amz-Date: a", "X-Amz-Date: b"),
        ("Content-Length: 0", "Content-Length: 0"),
        (HOST,),
        ("no colon",),
        (": no name",),
        ("Spaced : a",),
        (" Folded: a",),
        ("A: b", "\tcontinued"),
        ("A: \x00",),
        ("A: \x7f",),
        ("A: b\rC: d",),
        ("A: b\nOrigin: x",),
        ("",),
        ("Content-Length: 1",),
        ("Transfer-Encoding: chunked",),
        ("Content-Length: +0",),
        ("Content-Length: 00",),
        ("Content-Length: 0x0",),
        ("Content-Length: 0, 0",),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
    ],
)
def test_headers_that_are_no_request(lines: tuple[str, ...]) -> None:
    assert status(*lines) == 400


def test_the_limit_of_the_request_line() -> None:
    room = limits.MAX_REQUEST_LINE - len("GET / HTTP/1.1")
    assert len(parse(line=f"GET /{'a' * room} HTTP/1.1").request.raw_path) == room + 1
    assert status(line=f"GET /{'a' * (room + 1)} HTTP/1.1") == 414


def test_the_limit_of_header_fields() -> None:
    fields = [f"A{i}: b" for i in range(limits.MAX_HEADER_FIELDS - 1)]
    assert len(parse(*fields).request.headers) == limits.MAX_HEADER_FIELDS
    assert status(*fields, "One-more: b") == 431


def test_the_limit_of_header_bytes() -> None:
    room = limits.MAX_HEADERS - len(f"{HOST}\r\nA: ")
    assert parse(f"A: {'a' * room}")
    assert status(f"A: {'a' * (room + 1)}") == 431


def test_the_limit_of_a_body() -> None:
    line = "POST / HTTP/1.1"
    head = parse(f"Content-Length: {limits.MAX_AGENT_BODY}", line=line)
    assert (head.body_size, head.closes) == (limits.MAX_AGENT_BODY, False)
    assert status(f"Content-Length: {limits.MAX_AGENT_BODY + 1}", line=line) == 413
    assert status(f"Content-Length: {'9' * 5000}", line=line) == 400
    assert status("Transfer-Encoding: chunked", line=line) == 411


@pytest.mark.parametrize("field", ["Content-Length: 5368709120", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_bodies_that_nobody_reads_end_the_connection(method: str, field: str) -> None:
    head = parse(field, "Expect: 100-continue", line=f"{method} / HTTP/1.1")
    assert (head.body_size, head.closes, head.unread, head.waits) == (0, True, True, True)


def test_the_connection_ends_when_it_was_asked_to() -> None:
    assert parse("Connection: TE, Close").closes
    assert not parse("Connection: keep-alive").closes


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with suppress(Refused):
        head = parse_head(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:4242\r\n" + data, port=PORT)
        assert head.request.headers["host"] == "127.0.0.1:4242"
        assert "origin" not in head.request.headers


def test_heads_are_bounded_as_a_whole() -> None:
    assert MAX_HEAD == limits.MAX_REQUEST_LINE + limits.MAX_HEADERS + 4
