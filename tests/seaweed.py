"""A real S3 server for tests: one SeaweedFS for each run (and worker), stopped at its end."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.dev import seaweed as embedded
from broker.runtime import SystemEntropy
from broker.storage.presign import Presigner
from broker.storage.s3 import S3Store


@dataclass(frozen=True, kw_only=True)
class RunningStore:
    """The store under test, as the broker holds it."""

    settings: embedded.SeaweedSettings
    store: S3Store
    presigner: Presigner


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a plain HTTP client sees."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "").strip('"')


def make_settings(home: Path) -> embedded.SeaweedSettings:
    """Settings of a fresh embedded store under ``home``."""
    return embedded.SeaweedSettings(
        home=home,
        ports=embedded.choose_ports(embedded.PORT_NAMES, entropy=SystemEntropy()),
        access_key="test-access",
        secret_key=SystemEntropy().random_bytes(16).hex(),
    )


def make_presigner(settings: embedded.SeaweedSettings) -> Presigner:
    """A presigner for its bucket."""
    return Presigner(
        endpoint=settings.endpoint,
        region=embedded.REGION,
        bucket=embedded.BUCKET,
        credentials=settings.credentials,
    )


@contextlib.contextmanager
def running(home: Path) -> Iterator[RunningStore]:
    """A store that runs for the duration of a with-block."""
    settings = make_settings(home)
    server = embedded.Seaweed(settings)
    server.start(SystemEntropy())
    try:
        server.wait_ready()
        yield RunningStore(settings=settings, store=settings.store(), presigner=make_presigner(settings))
    finally:
        server.stop()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStore]:
    with running(tmp_path_factory.mktemp("seaweed")) as store:
        yield store


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def send(
    method: str, url: str, *, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """One request by a client that adds nothing of its own but Host and Content-Length."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body=body, headers=headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, body=response.read(), headers=found)
    finally:
        connection.close()
