"""I17: hostile bytes on a real socket cost bounded memory, time and ledger space, and are never repeated."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import limits
from broker.canonical import b64url
from broker.identity import proof
from tests.web_server import IO_TIMEOUT, RunningServer, body_of, running_server, status_of

SECRET = "hunter2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("web")) as running:
        running.ask("/livez")
        yield running


def signed(server: RunningServer, method: str, path: str, *, body: bytes = b"", query: str = "") -> list[str]:
    """The two headers of a request by the administrator."""
    admin = server.admin
    made = proof.build_proof(
        key=admin.key,
        method=method,
        url=server.url + path,
        now=_now(server),
        jti=b64url(os.urandom(16)),
        body=body,
        query=query or None,
        access_token=admin.token,
        nonce=None,
    )
    return [f"DPoP: {made}", f"Authorization: DPoP {admin.token}"]


def _now(server: RunningServer) -> int:
    # The world's clock stands still where it was founded; its token says when that was.
    claims = server.admin.token.split(".")[1]
    return int(json.loads(_unpad(claims))["iat"]) * 1000


def _unpad(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_I17_a_signed_request_passes(server: RunningServer) -> None:
    answer = server.ask("/v1/whoami", *signed(server, "GET", "/v1/whoami"))
    assert status_of(answer) == 200
    assert body_of(answer)["jkt"] == server.admin.key.jkt


# -- the request line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "//livez",
        "/livez//",
        "/./livez",
        "/v1/../livez",
        "/v1/%2e%2e/livez",
        "/livez%2F",
        "/livez%2f",
        "/liv%65z",
        "/livez%00",
        "/livez#x",
        "/%ff",
        "http://127.0.0.1/livez",
        "*",
        "livez",
        "/caf\xe9",
    ],
)
def test_I17_a_target_with_two_readings_is_400(server: RunningServer, target: str) -> None:
    answer = server.ask(target)
    assert status_of(answer) == 400
    assert body_of(answer)["code"] == "malformed"


def test_I17_the_path_that_was_signed_is_the_path_that_is_served(server: RunningServer) -> None:
    headers = signed(server, "GET", "/v1/whoami")
    assert status_of(server.ask("/v1/%77hoami", *headers)) == 400
    assert status_of(server.ask("/v1/principals", *headers)) == 401
    assert status_of(server.ask("/v1/whoami", *headers)) == 200


def test_I17_the_query_that_was_signed_is_the_query_that_is_served(server: RunningServer) -> None:
    headers = signed(server, "GET", "/v1/artifacts", query="limit=1")
    assert status_of(server.ask("/v1/artifacts?limit=1000", *headers)) == 401
    assert status_of(server.ask("/v1/artifacts?limit=%31", *headers)) == 401
    assert status_of(server.ask("/v1/artifacts?limit=1", *headers)) == 200


def test_I17_request_line_at_the_limit_and_one_past_it(server: RunningServer) -> None:
    room = limits.MAX_REQUEST_LINE - len("GET  HTTP/1.1")
    assert status_of(server.ask("/" + "a" * (room - 1))) == 404
    answer = server.ask("/" + "a" * room)
    assert (status_of(answer), body_of(answer)["code"]) == (413, "too_large")


# -- the headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DPoP", "Authorization", "Host"])
def test_I17_a_header_sent_twice_is_refused(server: RunningServer, name: str) -> None:
    headers = signed(server, "GET", "/v1/whoami")
    [again] = [h for h in [*headers, "Host: 127.0.0.1"] if h.startswith(name)]
    assert status_of(server.ask("/v1/whoami", *headers, again)) in (400, 401)
    assert status_of(server.ask("/v1/whoami", *headers)) == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Content-Encoding: gzip"], 415),
        (["Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: chunked", "Content-Length: 5"], 400),
        (["Transfer-Encoding: gzip"], 400),
        (["Transfer-Encoding: identity"], 400),
        (["Content-Length: 1", "Content-Length: 1"], 400),
        (["Content-Length: -1"], 400),
        (["Content-Length: +1"], 400),
        (["Content-Length: 0x1"], 400),
        ([f"Expect: {SECRET}"], 400),
        ([f"{SECRET}"], 400),
        ([f"Bad Name: {SECRET}"], 400),
        ([f"X: a\x00{SECRET}"], 400),
        (["X: a", f" folded {SECRET}"], 400),
    ],
)
def test_I17_framing_that_can_be_read_twice(server: RunningServer, headers: list[str], status: int) -> None:
    answer = server.ask("/v1/grants", *headers, method="POST", body=b"0\r\n\r\n")
    assert status_of(answer) == status
    assert SECRET.encode() not in answer


@pytest.mark.parametrize("header", ["SCRIPT_NAME: /v1", "PATH_INFO: /livez", "X-Forwarded-Proto: https"])
def test_I17_nobody_in_front_says_what_the_path_is(server: RunningServer, header: str) -> None:
    headers = signed(server, "GET", "/v1/whoami")
    assert status_of(server.ask("/v1/whoami", *headers, header)) == 200


def test_I17_a_header_at_the_limit_and_one_past_it(server: RunningServer) -> None:
    most = limits.MAX_TOKEN
    fits = server.ask("/v1/whoami", "DPoP: a.b.c", "Authorization: DPoP " + "a" * most)
    past = server.ask("/v1/whoami", "DPoP: a.b.c", "Authorization: DPoP " + "a" * (most + 1))
    huge = server.ask("/v1/whoami", "DPoP: a.b.c", "Authorization: DPoP " + "a" * (2 * most))
    assert "does not hold one access token" not in str(body_of(fits)["detail"])
    assert "does not hold one access token" in str(body_of(past)["detail"])
    assert (status_of(fits), status_of(past), status_of(huge)) == (401, 401, 413)


def test_I17_headers_at_the_limit_and_past_it(server: RunningServer) -> None:
    sent = [f"X-{i}: 1" for i in range(limits.MAX_HEADER_FIELDS - 2)]
    assert status_of(server.ask("/livez", *sent)) == 200
    assert status_of(server.ask("/livez", *sent, "Y: 1")) == 413
    large = [f"X-{i}: " + "a" * (limits.MAX_HEADERS // 5) for i in range(5)]
    assert status_of(server.ask("/livez", *large[:4])) == 200
    assert status_of(server.ask("/livez", *large)) == 413


# -- the body -----------------------------------------------------------------------------------------------


def _post(server: RunningServer, path: str, body: bytes) -> bytes:
    headers = signed(server, "POST", path, body=body)
    length = f"Content-Length: {len(body)}"
    return server.ask(path, *headers, length, "Content-Type: application/json", method="POST", body=body)


@pytest.mark.parametrize(
    ("path", "most"), [("/v1/grants", limits.MAX_BODY), ("/v1/uploads", limits.MAX_UPLOAD_BODY)]
)
def test_I17_a_body_at_the_limit_and_one_past_it(server: RunningServer, path: str, most: int) -> None:
    at = _post(server, path, b"{}" + b" " * (most - 2))
    assert (status_of(at), body_of(at)["code"]) == (422, "invalid")
    # Only announced: nothing of it has to be read to refuse it.
    headers = ["DPoP: a.b.c", "Authorization: DPoP a.b.c", f"Content-Length: {most + 1}"]
    past = server.ask(path, *headers, method="POST")
    assert (status_of(past), body_of(past)["code"]) == (413, "too_large")


def test_I17_a_large_body_of_a_stranger_is_not_parsed(server: RunningServer) -> None:
    body = b"[" * (2 * limits.MIB)
    headers = ["DPoP: a.b.c", "Authorization: DPoP a.b.c", f"Content-Length: {len(body)}"]
    answer = server.ask("/v1/uploads", *headers, "Content-Type: application/json", method="POST", body=body)
    assert status_of(answer) == 401


@pytest.mark.parametrize("levels", [limits.MAX_JSON_DEPTH, limits.MAX_JSON_DEPTH + 1, 100_000])
def test_I17_json_at_the_depth_limit_and_past_it(server: RunningServer, levels: int) -> None:
    answer = _post(server, "/v1/grants", b'{"a":' + b"[" * levels + b"]" * levels + b"}")
    assert body_of(answer)["code"] == ("malformed" if levels > limits.MAX_JSON_DEPTH else "invalid")


@pytest.mark.parametrize("count", [limits.MAX_PAIRS, limits.MAX_PAIRS + 1])
def test_I17_parameters_at_the_limit_and_one_past_it(server: RunningServer, count: int) -> None:
    query = "&".join(f"a{i}=1" for i in range(count))
    answer = server.ask(f"/v1/whoami?{query}", *signed(server, "GET", "/v1/whoami", query=query))
    assert body_of(answer)["code"] == ("invalid" if count <= limits.MAX_PAIRS else "too_large")


def test_I17_a_body_that_stops_is_given_up(server: RunningServer) -> None:
    half = server.ask(
        "/v1/grants",
        "DPoP: a.b.c",
        "Authorization: DPoP a.b.c",
        "Content-Length: 9",
        method="POST",
        body=b"{",
    )
    assert (status_of(half), body_of(half)["code"]) == (400, "malformed")


def test_I17_silent_connections_do_not_hold_the_server(server: RunningServer) -> None:
    """More stalled connections than threads: each is dropped in time, and others are served."""
    answers: list[bytes] = []

    def stall() -> None:
        answers.append(server.say(b"GET /livez HTTP/1.1\r\nHost: x\r\n"))

    stalled = [threading.Thread(target=stall) for _ in range(8)]
    for thread in stalled:
        thread.start()
    assert status_of(server.ask("/livez")) == 200
    for thread in stalled:
        thread.join(10 * IO_TIMEOUT)
    assert not any(thread.is_alive() for thread in stalled)
    assert answers == [b""] * 8


# -- what is left behind ------------------------------------------------------------------------------------


def test_I17_junk_is_no_entry_and_not_in_the_log(server: RunningServer) -> None:
    def size() -> int:
        return int(server.ask("/ledger/checkpoint").split(b"\r\n\r\n", 1)[1].split(b"\n")[1])

    before = size()
    for junk in (
        f"{SECRET}\r\n\r\n",
        f"GET /{SECRET}?{SECRET} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        f"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: DPoP {SECRET}\r\nConnection: close\r\n\r\n",
        f"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization {SECRET}\r\n\r\n",
        f"{SECRET} / HTTP/1.1\r\n\r\n",
        f"GET / HTTP/{SECRET}\r\n\r\n",
    ):
        answer = server.say(junk.encode())
        assert 400 <= status_of(answer) < 500
        assert SECRET.encode() not in answer
    assert size() == before
    assert not [line for line in server.log if SECRET in line or server.admin.token in line]


def test_I17_the_server_stops_when_told_and_counts_over_its_workers(tmp_path: Path) -> None:
    with running_server(tmp_path, workers=2) as running:
        for _ in range(20):
            assert status_of(running.ask("/livez")) == 200
        text = running.ask("/metrics").decode()
        assert 'broker_http_requests_total{method="GET",route="public.live",status="200"} 20.0' in text
        running.process.terminate()
        assert running.process.wait(20) == 0
