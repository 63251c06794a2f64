"""Settings of forwarding: what does not go together, or would send the record in clear, stops the start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker.config import CONFIG_VARIABLE, load_settings
from broker.config.forward import ForwardSettings
from broker.errors import ConfigurationError
from broker.wiring import create_keys, migrate_and_found
from broker.wiring.forwarding import open_forwarding
from tests.receivers import SECRET

SYSLOG = {"name": "a", "kind": "syslog", "url": "tls://siem.example:6514"}
WEBHOOK = {"name": "a", "kind": "webhook", "url": "https://siem.example/x", "secret_file": "/s"}
FILE = {"name": "a", "kind": "file", "path": "/var/x.jsonl"}


@pytest.mark.parametrize(
    "given",
    [
        SYSLOG,
        {**SYSLOG, "url": "tcp://127.0.0.1:514"},
        {**SYSLOG, "url": "tcp://[::1]:514"},
        {**SYSLOG, "url": "tcp://siem.example:514", "unsafe_plaintext": True},
        {**SYSLOG, "ca_file": "/c", "cert_file": "/d", "key_file": "/e"},
        WEBHOOK,
        {**WEBHOOK, "url": "http://localhost:8080/x?y=z"},
        {**FILE, "from": "now", "types": ["grant"], "format": "jsonl", "batch": 1, "timeout": 60},
    ],
    ids=range(8),
)
def test_destinations(given: dict[str, Any]) -> None:
    found = ForwardSettings.model_validate(given)
    assert found.start == given.get("from", "first")
    assert "url=" not in repr(found)  # some receivers want a secret in it


@pytest.mark.parametrize(
    "given",
    [
        {**SYSLOG, "url": "tcp://siem.example:514"},
        {**SYSLOG, "url": "udp://siem.example:514"},
        {**SYSLOG, "url": "tls://siem.example"},
        {**SYSLOG, "url": "tls://:6514"},
        {**SYSLOG, "url": "tls://siem.example:6514/path"},
        {**SYSLOG, "url": "tls://u@siem.example:6514"},
        {**SYSLOG, "url": "tls://siem.example:99999"},
        {**SYSLOG, "url": None},
        {**SYSLOG, "path": "/x"},
        {**SYSLOG, "secret_file": "/x"},
        {**SYSLOG, "cert_file": "/x"},
        {**SYSLOG, "name": "A"},
        {**SYSLOG, "name": "a b"},
        {**SYSLOG, "batch": 0},
        {**SYSLOG, "batch": 1_001},
        {**SYSLOG, "timeout": 0.4},
        {**SYSLOG, "timeout": 61},
        {**SYSLOG, "from": "middle"},
        {**SYSLOG, "format": "xml"},
        {**SYSLOG, "unknown": 1},
        {**WEBHOOK, "url": "http://siem.example/x"},
        {**WEBHOOK, "url": "tls://siem.example:6514"},
        {**WEBHOOK, "secret_file": None},
        {**WEBHOOK, "unsafe_plaintext": True},
        {**FILE, "path": "relative"},
        {**FILE, "path": None},
        {**FILE, "url": "https://siem.example/x"},
        {**FILE, "ca_file": "/c"},
    ],
    ids=range(28),
)
def test_what_is_none(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        ForwardSettings.model_validate(given)
    assert "siem.example" not in " ".join(
        each["msg"]
        for each in caught.value.errors(include_input=False)  # type: ignore[attr-defined]
    )


# -- joined to a log ---------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A founded log whose settings are in the environment, but for the destinations."""
    for name in [name for name in os.environ if name.startswith("BROKER_")]:
        monkeypatch.delenv(name)
    create_keys(tmp_path / "keys")
    settings = {
        "MODE": "dev",
        "LOG_ORIGIN": "test.example/log",
        "PUBLIC_URLS": "http://127.0.0.1:9",
        "DATABASE_URL": f"sqlite:///{tmp_path}/broker.db",
        "STORE__ENDPOINT": "http://127.0.0.1:9",
        "STORE__BUCKET": "b",
        "STORE__ACCESS_KEY": "a",
        "STORE__SECRET_KEY": "s",
        "KEYS__FOLDER": f"{tmp_path}/keys",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"BROKER_{name}", value)
    assert CONFIG_VARIABLE not in os.environ
    migrate_and_found(load_settings())
    return tmp_path


def join(monkeypatch: pytest.MonkeyPatch, *tables: dict[str, Any]) -> None:
    monkeypatch.setenv("BROKER_FORWARD", json.dumps(tables))
    open_forwarding(load_settings()).close()


def test_a_wrong_url_is_not_quoted() -> None:
    with pytest.raises(ValidationError) as wrong:
        ForwardSettings.model_validate({**WEBHOOK, "url": "https://user:hunter2/x@siem.example/"})
    assert not any("hunter" in str(error["msg"]) for error in wrong.value.errors())
    assert wrong.value.errors()[0]["msg"].endswith("the url is not one")


def test_destinations_are_joined(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = site / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    join(monkeypatch, SYSLOG, {**WEBHOOK, "name": "b", "secret_file": str(secret)}, {**FILE, "name": "c"})
    join(monkeypatch, {**FILE, "types": ["grant", "denial"]})


def test_nobody_to_forward_to(site: Path) -> None:
    with pytest.raises(ConfigurationError, match="nobody to forward to"):
        open_forwarding(load_settings())


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([FILE, FILE], "two destinations"),
        ([{**FILE, "types": ["grants"]}], "no entry has the type grants"),
        ([WEBHOOK], "cannot be read"),
        ([{**SYSLOG, "ca_file": "/nowhere"}], "authorities"),
        ([{**SYSLOG, "cert_file": "/nowhere", "key_file": "/nowhere"}], "cannot be read"),
    ],
    ids=["one-name", "type", "secret", "authorities", "key"],
)
def test_what_cannot_be_joined(
    site: Path, monkeypatch: pytest.MonkeyPatch, tables: list[dict[str, Any]], why: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        join(monkeypatch, *tables)
    assert why in f"{caught.value.what} {caught.value.why}"


def test_a_secret_that_others_can_read_is_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = site / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o640)
    with pytest.raises(ConfigurationError, match="by others"):
        join(monkeypatch, {**WEBHOOK, "secret_file": str(secret)})
    secret.chmod(0o600)
    secret.write_text("no secret at all")
    with pytest.raises(ConfigurationError, match="whsec_") as caught:
        join(monkeypatch, {**WEBHOOK, "secret_file": str(secret)})
    assert "no secret at all" not in f"{caught.value.what} {caught.value.why}"
