"""Signed requests: tokens, nonces, retries, and problems that become errors."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from broker.client import session as session_module
from broker.client import wire
from broker.client.sdk import Client
from broker.client.session import Request, Session
from broker.errors import (
    ApprovalNeeded,
    BrokerError,
    ClockSkew,
    Denied,
    IntegrityFailure,
    InternalError,
    InvalidProof,
    LedgerUnavailable,
    NotAuthenticated,
    NotFound,
    RateLimited,
    RollbackDetected,
    Unreachable,
)
from broker.jose import PrivateKey
from tests.unit.client.conftest import Stack

PROBLEM = "application/problem+json"


class Scripted:
    """A server that answers what it is told to, in order, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: deque[tuple[int, dict[str, str], bytes] | None] = deque()
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        home = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                home.seen.append((self.command, self.path, dict(self.headers), body))
                answer = home.answers.popleft()
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, data = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/base"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def problem(self, status: int, code: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        body = json.dumps(
            {"title": "t", "status": status, "detail": "what", "code": code, **members}
        ).encode()
        self.answers.append((status, {"Content-Type": PROBLEM, **(headers or {})}, body))

    def good(self, **members: Any) -> None:
        self.answers.append((200, {"Content-Type": "application/json"}, json.dumps(members).encode()))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setattr(session_module, "FIRST_PAUSE", 0.001)
    made = Scripted()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def session(server: Scripted) -> Session:
    return Session(server=server.url, key=PrivateKey.generate())


def ask(session: Session, **members: Any) -> Any:
    return session.write("POST", "/v1/x", members or {"request_id": "r"}, auth="proof")


def claims(proof: str) -> dict[str, Any]:
    import base64

    part = proof.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def test_retries_repeat_the_body_under_a_fresh_proof(server: Scripted, session: Session) -> None:
    server.answers.append(None)
    server.problem(503, "ledger_unavailable")
    server.answers.append((502, {}, b"<html>bad gateway</html>"))
    server.good(a=1)
    assert ask(session) == {"a": 1}
    assert len({body for *_, body in server.seen}) == 1
    proofs = [claims(headers["DPoP"]) for _, _, headers, _ in server.seen]
    assert len({proof["jti"] for proof in proofs}) == 4
    assert {proof["htu"] for proof in proofs} == {f"{server.url}/v1/x"}
    assert all(proof["content_digest"].startswith("sha-256=:") for proof in proofs)


def test_retries_end(server: Scripted, session: Session) -> None:
    for _ in range(session_module.ATTEMPTS):
        server.problem(503, "ledger_unavailable")
    with pytest.raises(LedgerUnavailable):
        ask(session)
    assert not server.answers
    for _ in range(session_module.ATTEMPTS):
        server.answers.append(None)
    with pytest.raises(Unreachable):
        ask(session)


def test_a_nonce_is_taken_over_once(server: Scripted, session: Session) -> None:
    server.problem(401, "use_dpop_nonce", {"DPoP-Nonce": "n1"})
    server.good()
    ask(session)
    assert [claims(h["DPoP"]).get("nonce") for _, _, h, _ in server.seen] == [None, "n1"]
    server.answers.append((200, {"DPoP-Nonce": "n2"}, b"{}"))
    server.good()
    ask(session)
    ask(session)
    assert [claims(h["DPoP"]).get("nonce") for _, _, h, _ in server.seen[2:]] == ["n1", "n2"]
    server.problem(401, "use_dpop_nonce", {"DPoP-Nonce": "n3"})
    server.problem(401, "use_dpop_nonce", {"DPoP-Nonce": "n4"})
    with pytest.raises(InvalidProof):
        ask(session)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "denied", Denied),
        (403, "needs_approval", ApprovalNeeded),
        (404, "not_found", NotFound),
        (401, "replayed_proof", InvalidProof),
        (503, "rollback", RollbackDetected),
        (500, "integrity", IntegrityFailure),
        (401, "of-the-future", NotAuthenticated),
        (418, "tea", InternalError),
    ],
)
def test_problems_become_errors(
    server: Scripted, session: Session, status: int, code: str, kind: type[BrokerError]
) -> None:
    server.problem(status, code, why="because\x1b[31m", next="do this", policies=["p1", "p2\n"])
    with pytest.raises(kind) as caught:
        ask(session)
    assert caught.value.what == "what"
    assert caught.value.why == "because?[31m"
    assert caught.value.next == "do this"
    if isinstance(caught.value, Denied):
        assert caught.value.policies == ("p1", "p2?")
    assert len(server.seen) == 1, "a refusal is not retried"


def test_oauth_errors_and_junk(server: Scripted, session: Session) -> None:
    server.answers.append((400, {}, b'{"error":"invalid_grant","error_description":"no"}'))
    with pytest.raises(NotAuthenticated, match="no"):
        ask(session)
    for body in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"code": 7, "detail": {}}'):
        server.answers.append((404, {}, body))
        with pytest.raises(NotFound, match="404"):
            ask(session)
    for body in (b"", b"[]", b"<html>"):
        server.answers.append((200, {}, body))
        for _ in range(session_module.ATTEMPTS):
            server.answers.append((200, {}, body))
        with pytest.raises(Unreachable, match="not JSON"):
            ask(session)
        server.answers.clear()


def test_rate_limits(server: Scripted, session: Session) -> None:
    server.problem(429, "rate_limited", {"Retry-After": "3600"})
    with pytest.raises(RateLimited) as caught:
        ask(session)
    assert caught.value.retry_after == 3600
    server.problem(429, "rate_limited", retry_after=0.5)
    server.good()
    session._pause.set()
    ask(session)


def test_the_clocks_difference_is_named(server: Scripted, session: Session) -> None:
    server.problem(401, "clock_skew")
    body = server.answers.pop()
    assert body is not None
    error = wire.error_of(
        wire.Answer(status=401, headers={"date": "Mon, 23 Nov 2026 10:00:00 GMT"}, body=body[2]),
        now=1795428000_000 + 125_000,
    )
    assert isinstance(error, ClockSkew)
    assert error.why == "this machine's clock is 125 s ahead of the server's"


def test_redirects_are_not_followed(server: Scripted, session: Session) -> None:
    server.answers.append((307, {"Location": server.url + "/v1/elsewhere"}, b""))
    with pytest.raises(BrokerError):
        ask(session)
    assert len(server.seen) == 1


def test_answers_are_bounded(server: Scripted, session: Session) -> None:
    request = Request(method="GET", path="/v1/x", auth="proof", max_size=100)
    server.answers.append((200, {}, b"x" * 100))
    assert len(session.call(request).body) == 100
    server.answers.append((200, {}, b"x" * 101))
    with pytest.raises(IntegrityFailure, match="larger"):
        session.call(request)
    server.answers.append((200, {}, b"x" * 2_000_000))
    with pytest.raises(IntegrityFailure, match="line"):
        list(session.lines("/v1/y", {}, longest=1000)) if session.profile else list(
            session_module._split_lines(iter([b"x" * 2000]), 1000)
        )


def test_queries_and_paths_are_signed_as_sent(server: Scripted, session: Session) -> None:
    server.good()
    session.call(
        Request(method="GET", path="/v1/prïncipals/user:a b", query={"q": "a b&c=ü", "n": None}, auth="proof")
    )
    _, path, headers, _ = server.seen[0]
    assert path == "/base/v1/pr%C3%AFncipals/user:a%20b?q=a+b%26c%3D%C3%BC"
    assert claims(headers["DPoP"])["htu"] == f"{server.url}/v1/pr%C3%AFncipals/user:a%20b"
    assert "query_digest" in claims(headers["DPoP"])


def test_nobody_is_there() -> None:
    session = Session(server="http://127.0.0.1:9", key=PrivateKey.generate())
    session._pause.set()
    with pytest.raises(Unreachable, match="does not answer"):
        ask(session)


# -- tokens, against the real server ------------------------------------------------------------------------


def tokens_issued(stack: Stack) -> int:
    return sum(stack.world.entry(i)["type"] == "token" for i in range(stack.world.size()))


def test_a_token_is_kept_and_shared(stack: Stack) -> None:
    first = stack.add("ana")
    before = tokens_issued(stack)
    first.whoami()
    first.whoami()
    Client(first.profile).whoami()
    assert tokens_issued(stack) == before + 1
    path = first.profile.folder / "token.json"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_is_renewed_before_it_expires_and_when_it_is_refused(stack: Stack) -> None:
    client = stack.add("ana")
    client.whoami()
    before = tokens_issued(stack)
    path = client.profile.folder / "token.json"
    held = json.loads(path.read_text())
    client.admin.revoke_token(held["access_token"])
    client.whoami()
    assert tokens_issued(stack) == before + 1
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "expires_at": held["expires_at"] - 14 * 60_000 - 31_000}))
    Client(client.profile).whoami()
    assert tokens_issued(stack) == before + 2


@pytest.mark.parametrize("text", ["", "junk", "[]", '{"access_token": 7}', "{}"])
def test_a_damaged_token_file_is_replaced(stack: Stack, text: str) -> None:
    client = stack.add("ana")
    path: Path = client.profile.folder / "token.json"
    path.write_text(text)
    path.chmod(0o600)
    client.whoami()
    assert json.loads(path.read_text())["jkt"] == client.profile.key.jkt


def test_nonces_of_the_real_server(stack: Stack) -> None:
    stack.apply(nonces_required=True)
    assert stack.add_without_login("ana").whoami()["principal"]["id"] == "user:ana"
