"""Signed requests by hand: what a test sends, byte for byte, and again."""

from __future__ import annotations

import http.client
import json
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from broker.canonical import b64url
from broker.client.grants import GrantClient, Granted, all_runs
from broker.client.opening import open_lease
from broker.client.sdk import Client
from broker.client.versions import TrustedVersion, fetch_version, selected_files
from broker.envelope import seal
from broker.envelope.lease import OpenLease
from broker.identity import proof
from broker.names import Ref
from broker.runtime import SystemClock
from tests.e2e.running import User


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A request with its token and proof, ready to be sent any number of times."""

    method: str
    server: str
    target: str
    body: bytes
    headers: dict[str, str]

    def send(self, **changes: Any) -> Answer:
        """Send it over a connection of its own, with some of it changed."""
        parts = {
            name: changes.get(name, getattr(self, name)) for name in ("method", "target", "body", "headers")
        }
        return send(
            parts["method"], self.server + parts["target"], body=parts["body"], headers=parts["headers"]
        )


def send(method: str, url: str, *, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    """One request over a connection of its own; nothing but ``Host`` and lengths is added."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body=body or None, headers=headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, body=response.read(), headers=found)
    finally:
        connection.close()


def sign(
    client: Client, method: str, path: str, body: Any = None, query: dict[str, str] | None = None
) -> Signed:
    """A request as this client would send it, in the caller's hands."""
    data = b"" if body is None else json.dumps(body).encode()
    raw = urlencode(query) if query else ""
    token = client._session.access_token()
    server = client.profile.server
    made = proof.build_proof(
        key=client.profile.key,
        method=method,
        url=server + proof.encode_path(path),
        now=SystemClock().now(),
        jti=str(uuid.uuid4()),
        body=data,
        query=raw or None,
        access_token=token,
        nonce=None,
    )
    headers = {"Authorization": f"DPoP {token}", "DPoP": made}
    if data or method in ("POST", "PUT", "PATCH"):
        headers["Content-Type"] = "application/json"
    target = proof.encode_path(path) + (f"?{raw}" if raw else "")
    return Signed(method=method, server=server, target=target, body=data, headers=headers)


def grant_body(ref: str, **more: Any) -> dict[str, Any]:
    """A grant request for a recipient key that nobody keeps."""
    artifact, _, version = ref.partition("@")
    return {
        "request_id": str(uuid.uuid4()),
        "artifact": artifact,
        "version": version,
        "include": ["**"],
        "exclude": [],
        "recipient": {"kem": seal.KEM, "public_key": b64url(seal.Recipient.generate().public_bytes)},
        **more,
    }


def opened(who: User, ref: Ref) -> tuple[Granted, TrustedVersion, OpenLease]:
    """A grant with its first lease opened, as the SDK does it on the way to the data."""
    from broker.client.grants import Ask

    with who.client() as client:
        ask = Ask(ref=ref)
        granted = GrantClient(client._session, client._log).request_grant(ask)
        version = fetch_version(client._session, client._log, ref)
        files = selected_files(version.manifest, ask.patterns, ask.exclude)
        lease = open_lease(granted.lease, version, files, asked=None, jkt=client._session.jkt)
    assert {run[0] for run in all_runs(version.manifest, files)} >= {file.file for file in lease.files}
    return granted, version, lease
