"""I02: nothing of the Hub endpoint is answered without the secret of its start."""

from __future__ import annotations

import pytest

from broker.client.agent.http import Request
from broker.client.agent.hub import HubApp

SECRET = "Zm9vYmFyZm9vYmFyZm9vYmFyZm9vYmFyZm9vYmFyZm8"
PATHS = (
    "/",
    "/api/whoami-v2",
    "/api/models",
    "/api/datasets?author=acme",
    "/api/models/acme/llama",
    "/api/models/acme/llama/revision/main",
    "/api/models/acme/llama/refs",
    "/api/datasets/acme/rows/tree/main/a?recursive=true",
    "/api/models/acme/llama/paths-info/main",
    "/acme/llama/resolve/main/config.json",
    "/datasets/acme/rows/resolve/main/part-0",
    "/api/repos/create",
    "/%ff",
)
GIVEN = {
    "none": {},
    "empty": {"authorization": ""},
    "scheme alone": {"authorization": "Bearer"},
    "empty token": {"authorization": "Bearer "},
    "no scheme": {"authorization": SECRET},
    "other scheme": {"authorization": f"Basic {SECRET}"},
    "wrong": {"authorization": "Bearer x"},
    "shorter": {"authorization": f"Bearer {SECRET[:-1]}"},
    "longer": {"authorization": f"Bearer {SECRET}x"},
    "other case": {"authorization": f"Bearer {SECRET.swapcase()}"},
    "not ascii": {"authorization": f"Bearer {SECRET[:-1]}\xe9"},
    "elsewhere": {"cookie": f"token={SECRET}", "x-amz-security-token": SECRET},
}


class Untouched:
    """A library that nobody may ask."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the library was asked for {name}")


def answered(
    path: str, method: str, headers: dict[str, str]
) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
    app = HubApp(Untouched(), secret=SECRET, principal="user:ana")  # type: ignore[arg-type]
    raw, _, query = path.partition("?")
    asked = Request(
        method=method, raw_path=raw, query=query, headers={"host": "127.0.0.1:1", **headers}, body=b"paths=a"
    )
    answer = app.answer(asked)
    assert isinstance(answer.body, bytes)
    return answer.status, answer.body, tuple(answer.headers)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("given", GIVEN)
def test_I02_without_the_secret_every_request_has_the_same_answer(given: str, method: str) -> None:
    answers = {answered(path, method, GIVEN[given]) for path in PATHS}
    answers.add(answered(f"/api/models?token={SECRET}", method, GIVEN[given]))
    assert len(answers) == 1
    status, body, headers = answers.pop()
    assert status == 401
    for said in (body.decode(), str(headers)):
        assert SECRET not in said
        assert "ana" not in said


def test_I02_the_secret_is_what_opens_it() -> None:
    status, body, _ = answered("/api/whoami-v2", "GET", {"authorization": f"Bearer {SECRET}"})
    assert status == 200
    assert b"user:ana" in body
    assert SECRET.encode() not in body
