"""Errors as answers: complete over the tables, and nothing of a bug gets out."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from werkzeug import exceptions

from broker.client.wire import Answer, error_of
from broker.envelope import seal
from broker.errors import (
    ERROR_CLASS,
    HTTP_STATUS,
    BrokerError,
    ConfigurationError,
    Denied,
    InternalError,
    NonceRequired,
    RateLimited,
)
from broker.model import KINDS, ROLES
from broker.web import models, problems

META = "https://broker.example/.well-known/oauth-protected-resource"


def made(kind: type[BrokerError]) -> BrokerError:
    return kind("what happened", why="the reason", next="what to do")


@pytest.mark.parametrize("code", sorted(ERROR_CLASS))
def test_every_error_is_a_problem_that_our_client_understands(code: str) -> None:
    refusal = problems.problem_of(made(ERROR_CLASS[code]), request_id="r", metadata_url=META)
    assert refusal.status == HTTP_STATUS[code] == refusal.body["status"]
    told = {"type", "title", "status", "detail", "code", "request_id", "next"}
    # Why something does not hold may name a row or a key: that is for the log.
    assert refusal.body.keys() >= told | (set() if code == "integrity" else {"why"})
    assert code != "integrity" or "why" not in refusal.body
    response = refusal.as_response()
    headers = {name.lower(): value for name, value in response.headers.items()}
    answer = Answer(status=refusal.status, headers=headers, body=response.get_data())
    again = error_of(answer, now=0)
    assert type(again) is ERROR_CLASS[code]
    assert again.what == "what happened"


@pytest.mark.parametrize("token_endpoint", [True, False])
@pytest.mark.parametrize("code", sorted(ERROR_CLASS))
def test_every_error_is_an_oauth_error_that_our_client_understands(code: str, token_endpoint: bool) -> None:
    error = made(ERROR_CLASS[code])
    error.what = 'a "quoted" \\ caf\xe9'
    refusal = problems.oauth_problem_of(
        error, request_id="r", metadata_url=META, token_endpoint=token_endpoint
    )
    assert re.fullmatch(r"[a-z_]+", refusal.body["error"])
    # RFC 6749 section 5.2: the characters that a description may have.
    assert re.fullmatch(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+", refusal.body["error_description"])
    assert refusal.status in (400, 401, 403, 404, 405, 409, 413, 415, 429, 500, 503)
    answer = Answer(status=refusal.status, headers={}, body=json.dumps(refusal.body).encode())
    assert type(error_of(answer, now=0)) is ERROR_CLASS[code]


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (exceptions.NotFound(), "not_found"),
        (exceptions.MethodNotAllowed(), "method_not_allowed"),
        (exceptions.BadRequest("hunter2"), "malformed"),
        (exceptions.RequestEntityTooLarge(), "too_large"),
        (exceptions.RequestURITooLarge(), "too_large"),
        (exceptions.InternalServerError("hunter2"), "internal"),
        (exceptions.Conflict("hunter2"), "malformed"),
        (RuntimeError("hunter2"), "internal"),
        (InternalError("hunter2"), "internal"),
        (ConfigurationError("hunter2"), "internal"),
    ],
)
def test_what_is_not_ours_says_nothing(exc: Exception, code: str) -> None:
    error = problems.error_of(exc)
    refusal = problems.problem_of(error, request_id="r", metadata_url=META)
    assert refusal.body["code"] == code
    assert "hunter2" not in json.dumps(refusal.body)


def test_headers_that_come_with_an_error() -> None:
    def headers(error: BrokerError) -> dict[str, str]:
        return problems.problem_of(error, request_id="r", metadata_url=META).headers

    assert headers(RateLimited("slow down", retry_after=7))["Retry-After"] == "7"
    asked = headers(NonceRequired("nonce", nonce="n1"))
    assert asked["DPoP-Nonce"] == "n1"
    assert asked["WWW-Authenticate"].startswith('DPoP error="use_dpop_nonce", algs="EdDSA Ed25519 ES256"')
    assert headers(Denied("no")) == {}


def test_the_policies_that_decided_are_named() -> None:
    refusal = problems.problem_of(Denied("no", policies=("a", "b")), request_id="r", metadata_url=META)
    assert refusal.body["policies"] == ["a", "b"]


def test_the_shapes_say_what_the_model_says() -> None:
    assert get_args(models.Kind) == KINDS
    assert get_args(models.Role) == ROLES
    kem: Any = models.RecipientBody.model_fields["kem"].annotation
    assert get_args(kem) == (seal.KEM,)
