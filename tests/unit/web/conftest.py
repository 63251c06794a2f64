"""The HTTP API over a world: requests signed as a client signs them, answered without a socket."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from broker.canonical import Json, b64url
from broker.identity import proof
from broker.web.app import create_app
from tests.world import URL, Person, World


class Api:
    """One application and its callers."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self.app = create_app(world.house, **options)
        self.client = Client(self.app)

    def headers(
        self,
        who: Person,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        query: str = "",
        token: str | None = "",
        nonce: str | None = None,
    ) -> dict[str, str]:
        """What a client sends with a request; ``token`` None leaves the access token out."""
        text = who.token if token == "" else token
        made = proof.build_proof(
            key=who.key,
            method=method,
            url=URL + path,
            now=self.world.clock.now(),
            jti=b64url(os.urandom(16)),
            body=body,
            query=query or None,
            access_token=text,
            nonce=nonce,
        )
        return {"DPoP": made} if text is None else {"DPoP": made, "Authorization": f"DPoP {text}"}

    def send(
        self,
        who: Person | None,
        method: str,
        path: str,
        body: Json | bytes | None = None,
        *,
        query: str = "",
        token: str | None = "",
        content_type: str | None = None,
        headers: dict[str, str] | None = None,
        nonce: str | None = None,
        **environ: Any,
    ) -> TestResponse:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {}
        if who is not None:
            sent = self.headers(who, method, path, body=data, query=query, token=token, nonce=nonce)
        if data or method in ("POST", "PUT", "PATCH"):
            sent["Content-Type"] = content_type or "application/json"
        return self.client.open(
            path + (f"?{query}" if query else ""),
            method=method,
            data=data,
            headers={**sent, **(headers or {})},
            environ_overrides={"REMOTE_ADDR": "203.0.113.7", **environ},
        )

    def ok(
        self, who: Person | None, method: str, path: str, body: Json | bytes | None = None, **rest: Any
    ) -> Json:
        """The JSON object of an answer that has to be good."""
        answer = self.send(who, method, path, body, **rest)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        found = answer.get_json()
        assert isinstance(found, dict)
        return found

    def refused(
        self, who: Person | None, method: str, path: str, body: Json | bytes | None = None, **rest: Any
    ) -> Json:
        """The problem document of an answer that has to be a refusal; its status is the document's."""
        answer = self.send(who, method, path, body, **rest)
        assert answer.mimetype == "application/problem+json", answer.get_data(as_text=True)
        found: Json = json.loads(answer.get_data())
        assert found["status"] == answer.status_code
        return found


@pytest.fixture
def api(world: World) -> Api:
    return Api(world)
