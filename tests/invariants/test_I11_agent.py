"""I11: the secrets of an agent are in the variables that it hands out, and nowhere else."""

from __future__ import annotations

import logging

import pytest

from broker.client.agent.environment import find_removed
from broker.client.agent.http import Answer, Request
from broker.client.agent.hub_refusals import message_of
from broker.client.agent.running import Address, Agent
from broker.errors import Denied
from broker.runtime import SystemEntropy


class Empty:
    """A library with nothing in it."""

    def artifacts(self, collection: str | None = None) -> list[object]:
        del collection
        return []


@pytest.fixture
def agent() -> Agent:
    return Agent(Empty(), principal="user:ana", s3=Address(), hf=Address())  # type: ignore[arg-type]


def secrets_of(agent: Agent) -> list[str]:
    found = agent.environment({})
    return [found["HF_TOKEN"], found["AWS_SECRET_ACCESS_KEY"]]


def test_I11_secrets_are_long_and_of_one_start(agent: Agent) -> None:
    with agent, Agent(Empty(), principal="user:ana", s3=Address(), hf=Address()) as other:  # type: ignore[arg-type]
        found = {*secrets_of(agent), *secrets_of(other)}
        assert len(found) == 4
        assert min(map(len, found)) >= 43, "256 bits"


def test_I11_secrets_come_from_the_one_source_of_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def zeros(self: SystemEntropy, size: int) -> bytes:
        drawn.append(size)
        return bytes(size)

    monkeypatch.setattr(SystemEntropy, "random_bytes", zeros)
    with Agent(Empty(), principal="user:ana", s3=Address(), hf=Address()) as made:  # type: ignore[arg-type]
        assert set(secrets_of(made)) == {"A" * 43}
    assert drawn == [32, 32]


def test_I11_no_repr_holds_a_secret(agent: Agent) -> None:
    with agent:
        shown = [
            repr(agent),
            repr(agent.endpoints),
            str(agent.endpoints),
            *map(repr, agent.endpoints.values()),
        ]
        shown += [repr(endpoint.listener) for endpoint in agent.endpoints.values()]
        for secret in secrets_of(agent):
            assert not [text for text in shown if secret in text]
            request = Request(
                method="GET",
                raw_path="/",
                query=secret,
                headers={"authorization": secret},
                body=secret.encode(),
            )
            assert secret not in repr(request)
            assert secret not in repr(Answer(status=200, body=secret.encode()))


def test_I11_no_log_line_holds_a_secret(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    import http.client

    caplog.set_level(logging.DEBUG)
    with agent:
        agent.start()
        token, _ = secrets_of(agent)
        for path in ("/api/models", "/nope", "/api/models/x"):
            connection = http.client.HTTPConnection(
                "127.0.0.1", agent.endpoints["hf"].listener.port, timeout=30
            )
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            assert connection.getresponse().read() is not None
            connection.close()
    assert token not in caplog.text


def test_I11_a_refusal_says_only_what_the_error_says() -> None:
    assert message_of(Denied("no", policies=("p",))) == "no"


def test_I11_the_users_own_secrets_do_not_reach_a_command_by_another_name() -> None:
    mine = {"AWS_SESSION_TOKEN": "x", "AWS_SECURITY_TOKEN": "x", "HUGGING_FACE_HUB_TOKEN": "x", "HOME": "/"}
    assert find_removed(mine, ["s3", "hf"]) == list(mine)[:3]
