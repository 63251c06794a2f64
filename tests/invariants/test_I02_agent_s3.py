"""I02: nothing of the S3 endpoint is answered without the secret of its start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.client.agent.environment import S3_ACCESS_KEY
from broker.client.agent.running import Address, Agent
from tests.s3_requests import Credentials, exchange, signed_headers, signed_target
from tests.unit.client.conftest import Stack, make_tree

TARGETS = (
    "/",
    "/acme",
    "/acme/",
    "/acme?list-type=2&prefix=llama",
    "/acme?location",
    "/acme/llama/w.bin",
    "/acme/llama@v1/w.bin",
    "/acme/llama/nope",
    "/nope/nope/nope",
    "/acme?uploads",
    "/%FF",
    "/api/models",
    "/acme/llama/resolve/main/w.bin",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("stack"))
    pia = found.add("pia", roles=("publisher", "engineer"), groups=("acme",))
    pia.publish(make_tree(tmp_path_factory.mktemp("tree"), {"w.bin": b"weights"}), "acme/llama@v1")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def agent(stack: Stack) -> Iterator[Agent]:
    library = stack.add("ana", groups=("acme",)).library()
    with Agent(library, principal="user:ana", s3=Address(), hf=Address()) as found:
        found.start()
        yield found
    library.close()


def secret_of(agent: Agent) -> str:
    return agent.endpoints["s3"].environment["AWS_SECRET_ACCESS_KEY"]


def keyed(agent: Agent, kind: str) -> Credentials | None:
    """What somebody may have who has not got the secret."""
    secret, token = secret_of(agent), agent.endpoints["hf"].environment["HF_TOKEN"]
    return {
        "nothing": None,
        "no secret": Credentials(S3_ACCESS_KEY, "-"),
        "the other endpoint's": Credentials(S3_ACCESS_KEY, token),
        "shorter": Credentials(S3_ACCESS_KEY, secret[:-1]),
        "longer": Credentials(S3_ACCESS_KEY, secret + "x"),
        "another key": Credentials("AKIAIOSFODNN7EXAMPLE", secret),
        "a session": Credentials(S3_ACCESS_KEY, secret, "session"),
    }[kind]


KINDS = ("nothing", "no secret", "the other endpoint's", "shorter", "longer", "another key", "a session")


@pytest.mark.parametrize("presigned", [False, True], ids=["header", "query"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_I02_without_the_secret_every_s3_request_has_the_same_answer(
    agent: Agent, stack: Stack, method: str, kind: str, presigned: bool
) -> None:
    port, before = agent.endpoints["s3"].listener.port, stack.world.size()
    bodies = set()
    for target in TARGETS:
        who = keyed(agent, kind)
        sent = signed_target(method, target, port, who) if who and presigned else target
        headers = signed_headers(method, target, port, who) if who and not presigned else {}
        status, answered, body = exchange(port, method, sent, headers)
        assert status == 403, target
        assert set(answered) <= {"date", "content-type", "content-length", "connection"}
        assert b"acme" not in body
        assert b"weights" not in body
        bodies.add(body)
    assert len(bodies) == 1
    assert (bodies == {b""}) == (method == "HEAD")
    assert stack.world.size() == before
    assert not stack.store.gets


def test_I02_the_secret_is_what_opens_the_s3_endpoint(agent: Agent) -> None:
    port, who = agent.endpoints["s3"].listener.port, Credentials(S3_ACCESS_KEY, secret_of(agent))
    target = "/acme/llama/w.bin"
    for sent, headers in (
        (target, signed_headers("GET", target, port, who)),
        (signed_target("GET", target, port, who), {}),
    ):
        assert exchange(port, "GET", sent, headers)[::2] == (200, b"weights")


def test_I02_secrets_are_drawn_for_each_start_and_endpoint(agent: Agent, stack: Stack) -> None:
    library = stack.add("eva", groups=("acme",)).library()
    with Agent(library, principal="user:eva", s3=Address(), hf=Address()) as other:
        found = [secret_of(each) for each in (agent, other)]
        found += [each.endpoints["hf"].environment["HF_TOKEN"] for each in (agent, other)]
    library.close()
    assert len(set(found)) == 4
    assert all(len(secret) >= 43 for secret in found)


def test_I02_secrets_are_not_shown(agent: Agent) -> None:
    for endpoint in agent.endpoints.values():
        assert secret_of(agent) not in repr(endpoint)
        assert agent.endpoints["hf"].environment["HF_TOKEN"] not in repr(endpoint)
