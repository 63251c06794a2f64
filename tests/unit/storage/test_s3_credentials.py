"""Where the store's credentials come from when the settings have none, and when they end."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from broker.errors import StoreUnavailable
from broker.storage.s3 import chain_credentials, multipart_etag


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An AWS configuration of its own, and no way to ask the network."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return config


def test_long_lived_keys_do_not_expire(aws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = chain_credentials()()
    assert (found.access_key, found.secret_key, found.session_token) == ("AKIA", "secret", None)
    assert found.expires_at is None


def test_the_real_end_of_temporary_keys_is_known(aws: Path) -> None:
    answer = {
        "Version": 1,
        "AccessKeyId": "ASIA",
        "SecretAccessKey": "secret",
        "SessionToken": "token",
        "Expiration": "2099-01-02T03:04:05Z",
    }
    command = shlex.join([sys.executable, "-c", f"print({json.dumps(answer)!r})"])
    aws.write_text(f"[default]\ncredential_process = {command}\n")
    found = chain_credentials()()
    assert (found.access_key, found.session_token) == ("ASIA", "token")
    assert found.expires_at == 4_071_006_245_000


def test_no_credentials_is_unavailable(aws: Path) -> None:
    with pytest.raises(StoreUnavailable):
        chain_credentials()()


def test_the_etag_of_joined_parts() -> None:
    # MD5 over the two digests, computed with: printf ... | xxd -r -p | md5sum
    etags = ["900150983cd24fb0d6963f7d28e17f72", "d41d8cd98f00b204e9800998ecf8427e"]
    assert multipart_etag(etags) == "fdf1fdf1567f6942ffe1743f1e72301e-2"
    assert multipart_etag(["not-md5"]) is None
