"""I08: what was signed for an agent's endpoint is good for that request there, and web pages get nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from broker.client.agent.environment import S3_ACCESS_KEY
from broker.client.agent.running import Address, Agent
from tests.s3_requests import Credentials, exchange, signed_headers, signed_target
from tests.unit.client.conftest import Stack, make_tree

TARGETS = {"s3": "/acme/llama/w.bin", "hf": "/acme/llama/resolve/main/w.bin"}
HOSTS = (
    "localhost:{port}",
    "127.0.0.1",
    "127.0.0.1:{other}",
    "127.0.0.2:{port}",
    "0.0.0.0:{port}",
    "0:{port}",
    "rebound.example:{port}",
    "127.0.0.1.rebound.example:{port}",
    "acme.127.0.0.1:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "127.0.0.1:{port}:{port}",
    "127.0.0.1:{port}@rebound.example",
    "",
)
BROWSER = (
    {"Origin": "null"},
    {"Origin": "https://example.org"},
    {"Origin": "http://127.0.0.1:{port}"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"sec-ch-ua": '"Chromium"'},
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("stack"))
    pia = found.add("pia", roles=("publisher", "engineer"), groups=("acme",))
    pia.publish(make_tree(tmp_path_factory.mktemp("tree"), {"w.bin": b"weights", "x": b"x"}), "acme/llama@v1")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def agent(stack: Stack) -> Iterator[Agent]:
    library = stack.add("ana", groups=("acme",)).library()
    with Agent(library, principal="user:ana", s3=Address(), hf=Address()) as found:
        found.start()
        yield found
    library.close()


def port_of(agent: Agent, name: str) -> int:
    return agent.endpoints[name].listener.port


def who(agent: Agent) -> Credentials:
    return Credentials(S3_ACCESS_KEY, agent.endpoints["s3"].environment["AWS_SECRET_ACCESS_KEY"])


def good_headers(agent: Agent, name: str, method: str = "GET", **more: str) -> dict[str, str]:
    """Headers with the endpoint's own secret: what is refused with them is refused to everybody."""
    if name == "s3":
        return signed_headers(method, TARGETS[name], port_of(agent, name), who(agent), **more)
    return {"Authorization": f"Bearer {agent.endpoints[name].environment['HF_TOKEN']}", **more}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("name", TARGETS)
def test_I08_another_host_is_refused_also_with_the_secret(agent: Agent, name: str, method: str) -> None:
    port, other = port_of(agent, name), port_of(agent, "hf" if name == "s3" else "s3")
    for text in HOSTS:
        host = text.format(port=port, other=other)
        headers = good_headers(agent, name, method, Host=host)
        status, answered, body = exchange(port, method, TARGETS[name], {**headers, "Host": host})
        assert (status, body) == (421, b""), host
        assert set(answered) == {"date", "content-length", "connection"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("name", TARGETS)
def test_I08_web_pages_are_refused_also_with_the_secret(agent: Agent, name: str, method: str) -> None:
    port = port_of(agent, name)
    for sent in BROWSER:
        more = {field: value.format(port=port) for field, value in sent.items()}
        headers = good_headers(agent, name, method, **more)
        status, answered, body = exchange(port, method, TARGETS[name], headers)
        assert (status, body) == (403, b""), sent
        assert not [field for field in answered if field.startswith("access-control-")]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("field", ["Authorization", "Host", "Range", "Content-Length"])
def test_I08_a_header_twice_is_refused(agent: Agent, name: str, field: str) -> None:
    port = port_of(agent, name)
    headers = {"Host": f"127.0.0.1:{port}", "Range": "bytes=0-0", "Content-Length": "0"}
    headers |= good_headers(agent, name, Range="bytes=0-0")
    lines = [f"{key}: {value}" for key, value in headers.items()]
    once = "\r\n".join([f"GET {TARGETS[name]} HTTP/1.1", *lines, "Connection: close", "", ""])
    twice = "\r\n".join(
        [f"GET {TARGETS[name]} HTTP/1.1", *lines, f"{field.lower()}: {headers[field]}", "", ""]
    )
    assert say(port, once).startswith(b"HTTP/1.1 206 ")
    assert say(port, twice).startswith(b"HTTP/1.1 400 ")


def say(port: int, text: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(text.encode("latin-1"))
        found = b""
        while chunk := line.recv(65536):
            found += chunk
        return found


@pytest.mark.parametrize("presigned", [False, True], ids=["header", "query"])
def test_I08_a_signature_is_good_for_its_own_request(agent: Agent, presigned: bool) -> None:
    port, target = port_of(agent, "s3"), TARGETS["s3"]

    def ask(method: str, sent: str, **more: str) -> int:
        headers = {} if presigned else signed_headers("GET", target, port, who(agent))
        query = signed_target("GET", target, port, who(agent)).partition("?")[2] if presigned else ""
        whole = "?".join(part for part in (sent, query) if part) if "?" not in sent else f"{sent}&{query}"
        return exchange(port, method, whole, {**headers, **more})[0]

    assert ask("GET", target) == 200
    assert ask("HEAD", target) == 403
    assert ask("DELETE", target) == 403
    assert ask("GET", "/acme/llama/x") == 403
    assert ask("GET", "/acme/llama//w.bin") == 403
    assert ask("GET", f"{target}?versionId=1") == 403
    assert ask("GET", target, **{"x-amz-checksum-mode": "ENABLED"}) == 403


def test_I08_a_signature_is_good_for_its_own_endpoint(agent: Agent, stack: Stack) -> None:
    library = stack.add("eva", groups=("acme",)).library()
    with Agent(library, principal="user:eva", s3=Address(), hf=None) as other:
        other.start()
        for sender, receiver in ((agent, other), (other, agent)):
            port = port_of(receiver, "s3")
            headers = signed_headers("GET", TARGETS["s3"], port, who(sender))
            assert exchange(port, "GET", TARGETS["s3"], headers)[0] == 403
    library.close()
