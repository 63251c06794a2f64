"""An agent's endpoints: bound before they serve, named in variables, gone at the end."""

from __future__ import annotations

import http.client
import socket
import socketserver
import threading

import pytest

from broker.client.agent.running import Address, Agent
from broker.errors import UsageError


class Empty:
    """A library with nothing in it."""

    def artifacts(self, collection: str | None = None) -> list[object]:
        del collection
        return []


def agent(s3: Address | None = Address(), hf: Address | None = Address()) -> Agent:  # noqa: B008 - frozen
    return Agent(Empty(), principal="user:ana", s3=s3, hf=hf)  # type: ignore[arg-type]


def status(made: Agent, path: str = "/api/models") -> int:
    listener = made.endpoints["hf"].listener
    connection = http.client.HTTPConnection(listener.host, listener.port, timeout=30)
    token = made.environment({})["HF_TOKEN"]
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    found = connection.getresponse().status
    connection.close()
    return found


def test_the_variables_are_known_before_anything_is_served() -> None:
    with agent() as made:
        found = made.environment({"NO_PROXY": "x"})
        assert found["HF_ENDPOINT"] == made.endpoints["hf"].url
        assert found["AWS_ENDPOINT_URL_S3"] == made.endpoints["s3"].url
        assert found["NO_PROXY"] == "x,127.0.0.1"
        assert not made.is_running


def test_what_is_asked_before_the_start_is_answered_after_it() -> None:
    with agent() as made:
        answers: list[int] = []
        early = threading.Thread(target=lambda: answers.append(status(made)))
        early.start()
        made.start()
        early.join(30)
        assert answers == [200]
        assert made.is_running


def test_an_endpoint_that_is_off_has_no_variables() -> None:
    with agent(s3=None) as made:
        assert set(made.endpoints) == {"hf"}
        assert not [name for name in made.environment({}) if name.startswith("AWS")]
        assert made.removed({"AWS_PROFILE": "x", "HF_OIDC_RESOURCE": "x"}) == ["HF_OIDC_RESOURCE"]


def test_the_other_loopback_address() -> None:
    with agent(s3=None, hf=Address(host="::1")) as made:
        made.start()
        assert made.endpoints["hf"].url.startswith("http://[::1]:")
        assert made.environment({})["no_proxy"] == "::1,[::1]"
        assert status(made) == 200


def test_an_address_that_is_taken_is_refused_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        with pytest.raises(UsageError):
            agent(s3=Address(port=port), hf=Address(port=taken.getsockname()[1]))
    socket.create_server(("127.0.0.1", port)).close()


def test_nothing_answers_after_the_end() -> None:
    with agent() as made:
        made.start()
        assert status(made) == 200
    assert not made.is_running
    with pytest.raises(ConnectionRefusedError):
        status(made)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_endpoint_whose_thread_failed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(self: socketserver.BaseServer) -> None:
        failed.set()
        raise MemoryError

    with agent() as made:
        made.start()
        monkeypatch.setattr(socketserver.BaseServer, "service_actions", fail)
        assert failed.wait(30)
        for thread in threading.enumerate():
            if thread.name == "agent-listener":
                thread.join(30)
        assert not made.is_running
        monkeypatch.undo()
