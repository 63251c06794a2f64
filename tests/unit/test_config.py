"""Settings: precedence, strictness, no value in a message; and every refusal of production."""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker import limits
from broker.config import Facts, Settings, check_production, find_refusals, load_settings
from broker.errors import ConfigurationError

TOML = """
public_urls = ["https://broker.example"]
database_url = "postgresql://broker:db-password@db.example/broker"
log_origin = "example.com/broker-log"
tree_heads = "/mnt/heads"

[store]
endpoint = "https://s3.example:9000/"
bucket = "models"
access_key = "AKIAREAL"
secret_key = "a-long-and-random-store-secret"

[keys]
folder = "/etc/broker/keys"
"""
GOOD = Facts(home=Path("/home/broker"), dev_keys=False, equal_keys=False, can_change_ledger=False, admins=2)


LOG_STORE = """
[log_store]
endpoint = "https://s3.example:9000/"
bucket = "logs"
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text(TOML)
    path.chmod(0o600)
    monkeypatch.setenv("BROKER_CONFIG", str(path))
    return path


def _refused(config: Path, text: str) -> ConfigurationError:
    config.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    return caught.value


def test_the_file_and_the_defaults(config: Path) -> None:
    settings = load_settings()
    assert settings.mode == "production"
    assert settings.public_urls == ("https://broker.example",)
    assert settings.token_issuer == "https://broker.example"
    assert settings.lease_window == limits.DEFAULT_LEASE_WINDOW
    assert settings.store.endpoint == settings.store.client_endpoint == "https://s3.example:9000"
    assert settings.store.region == "us-east-1"
    assert settings.keys.kek == (Path("/etc/broker/keys/kek.json"),)
    assert settings.keys.file("row_mac") == Path("/etc/broker/keys/row-mac.json")


def test_an_archive_goes_only_where_the_entries_go(config: Path) -> None:
    # It holds every entry: whoever publishes hashes alone must not publish it by one more setting.
    refused = _refused(config, f"{TOML}{LOG_STORE}archive = true\n")
    assert "archive needs entries" in str(refused.why)
    config.write_text(f"{TOML}{LOG_STORE}archive = true\nentries = true\n")
    settings = load_settings()
    assert settings.log_store is not None
    assert settings.log_store.archive
    config.write_text(f"{TOML}{LOG_STORE}")
    settings = load_settings()
    assert settings.log_store is not None
    assert not settings.log_store.archive


@pytest.mark.parametrize(
    ("mode", "given", "needed"),
    [
        ("production", None, True),
        ("dev", None, False),
        ("production", "false", False),
        ("dev", "true", True),
    ],
)
def test_production_needs_nonces_unless_told_otherwise(
    config: Path, monkeypatch: pytest.MonkeyPatch, mode: str, given: str | None, needed: bool
) -> None:
    monkeypatch.setenv("BROKER_MODE", mode)
    if given is not None:
        monkeypatch.setenv("BROKER_NONCES_REQUIRED", given)
    assert load_settings().needs_nonces is needed


def test_the_environment_is_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_LOG_ORIGIN", "example.com/other")
    monkeypatch.setenv("BROKER_STORE__BUCKET", "other")
    monkeypatch.setenv("BROKER_STORE__PUBLIC_ENDPOINT", "https://cdn.example")
    monkeypatch.setenv("BROKER_PUBLIC_URLS", "https://a.example, https://b.example:8443")
    monkeypatch.setenv("BROKER_KEYS__TOKEN", "/k/new.json /k/old.json")
    monkeypatch.setenv("BROKER_WORKERS", "7")
    monkeypatch.setenv("BROKER_UNSAFE_SINGLE_ADMIN", "true")
    settings = load_settings()
    assert settings.log_origin == "example.com/other"
    assert settings.store.bucket == "other"
    assert settings.store.endpoint == "https://s3.example:9000"
    assert settings.store.client_endpoint == "https://cdn.example"
    assert settings.public_urls == ("https://a.example", "https://b.example:8443")
    assert settings.keys.token == (Path("/k/new.json"), Path("/k/old.json"))
    assert settings.keys.kek == (Path("/etc/broker/keys/kek.json"),)
    assert settings.workers == 7
    assert settings.unsafe_single_admin


def test_the_environment_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PUBLIC_URLS": "https://broker.example",
        "DATABASE_URL": "sqlite:////var/lib/broker/broker.db",
        "LOG_ORIGIN": "o",
        "STORE__ENDPOINT": "http://127.0.0.1:8333",
        "STORE__BUCKET": "b",
        "KEYS__FOLDER": "/k",
    }.items():
        monkeypatch.setenv(f"BROKER_{name}", value)
    assert load_settings().store.access_key is None


def test_the_clients_variables_are_no_settings(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings()
    for name in ("URL", "TOKEN_FILE", "PURPOSE", "JOBS", "OUTPUT", "PROFILE_DIR"):
        monkeypatch.setenv(f"BROKER_{name}", "something")
    assert load_settings() == before


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('log_origin = "example.com/broker-log"', "", "log_origin"),
        ('public_urls = ["https://broker.example"]', "public_urls = []", "public_urls"),
        ('public_urls = ["https://broker.example"]', 'public_urls = ["ftp://x"]', "public_urls"),
        ('public_urls = ["https://broker.example"]', 'public_urls = ["https://x/path"]', "public_urls"),
        ('public_urls = ["https://broker.example"]', 'public_urls = ["https://u:p@x"]', "public_urls"),
        ('public_urls = ["https://broker.example"]', 'public_urls = ["https://x:99999"]', "public_urls"),
        ('bucket = "models"', "", "store.bucket"),
        ('bucket = "models"', 'bucket = "models"\nunknown = 1', "store.unknown"),
        ('access_key = "AKIAREAL"', "", "store"),
        ('folder = "/etc/broker/keys"', "", "keys"),
        ('folder = "/etc/broker/keys"', 'folder = "relative"', "keys"),
        ('folder = "/etc/broker/keys"', 'folder = "/k"\ncustody = "paper"', "keys.custody"),
        ('tree_heads = "/mnt/heads"', 'tree_heads = "heads"', "tree_heads"),
        ('tree_heads = "/mnt/heads"', "workers = 0", "workers"),
        ('tree_heads = "/mnt/heads"', "workers = 257", "workers"),
        ('tree_heads = "/mnt/heads"', "port = 65536", "port"),
        ('tree_heads = "/mnt/heads"', f"lease_window = {limits.SEGMENT_SIZE - 1}", "lease_window"),
        ('tree_heads = "/mnt/heads"', f"lease_window = {limits.MAX_LEASE_BYTES + 1}", "lease_window"),
        ('tree_heads = "/mnt/heads"', 'mode = "Production"', "mode"),
        ('tree_heads = "/mnt/heads"', 'mode = "dev"\nhost = "0.0.0.0"', "loopback"),
        ('tree_heads = "/mnt/heads"', "unknown = true", "unknown"),
    ],
)
def test_what_is_missing_wrong_or_unknown_is_named(config: Path, old: str, new: str, named: str) -> None:
    assert old in TOML
    assert named in str(_refused(config, TOML.replace(old, new)).why)


@pytest.mark.parametrize("window", [limits.SEGMENT_SIZE, limits.MAX_LEASE_BYTES])
def test_the_lease_window_has_limits(config: Path, window: int) -> None:
    config.write_text(TOML.replace('tree_heads = "/mnt/heads"', f"lease_window = {window}"))
    assert load_settings().lease_window == window


def test_every_problem_is_named_at_once(config: Path) -> None:
    why = str(_refused(config, "port = 0\n[store]\nbucket = 1\n").why)
    for name in (
        "port",
        "public_urls",
        "database_url",
        "log_origin",
        "store.endpoint",
        "store.bucket",
        "keys",
    ):
        assert name in why


def test_I11_no_secret_is_in_a_message_or_a_text_form(config: Path) -> None:
    secrets = ("db-password", "a-long-and-random-store-secret", "AKIAREAL")
    settings = load_settings()
    for secret in secrets:
        assert secret not in f"{settings!r}{settings}{settings.store!r}{settings.model_dump()}"
    broken = TOML.replace("database_url = ", "database_url = 7 #").replace('"AKIAREAL"', '["AKIAREAL"]')
    broken = broken.replace('"a-long-and-random-store-secret"', '["a-long-and-random-store-secret"]')
    error = _refused(config, broken)
    shown = f"{error!r} {error} {error.why} {error.next}" + "".join(traceback.format_exception(error))
    for secret in secrets:
        assert secret not in shown


def test_I11_a_broken_file_is_not_quoted(config: Path) -> None:
    error = _refused(config, 'database_url = "postgresql://u:db-password@h/d\n')
    assert "db-password" not in f"{error} {error.why}"


def test_a_missing_file_is_refused(config: Path) -> None:
    config.unlink()
    with pytest.raises(ConfigurationError):
        load_settings()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_with_secrets_is_private(config: Path, mode: int) -> None:
    config.chmod(mode)
    with pytest.raises(ConfigurationError, match="read by others"):
        load_settings()


def test_a_file_without_secrets_may_be_shared(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in TOML.splitlines() if "database_url" not in line and "_key =" not in line]
    config.write_text("\n".join(lines))
    config.chmod(0o644)
    monkeypatch.setenv("BROKER_DATABASE_URL", "sqlite:////var/lib/broker/broker.db")
    assert load_settings().store.bucket == "models"


# -- production -----------------------------------------------------------------------------------------


def _codes(settings: Settings, **facts: Any) -> list[str]:
    return [each.code for each in find_refusals(settings, replace(GOOD, **facts))]


def _changed(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


def test_a_file_kek_is_refused_and_nothing_else_is(config: Path) -> None:
    assert _codes(load_settings()) == ["file-kek"]


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"dev_keys": True}, "dev-keys"),
        ({"equal_keys": True}, "equal-keys"),
        ({"can_change_ledger": True}, "ledger-rights"),
        ({"admins": 1}, "single-admin"),
        ({"admins": 0}, "single-admin"),
        ({"home": Path("/etc/broker")}, "log-key-place"),
    ],
)
def test_each_fact_is_refused_alone(config: Path, facts: dict[str, Any], code: str) -> None:
    assert _codes(load_settings(), **facts).count(code) == 1
    assert len(_codes(load_settings(), **facts)) == 2


def test_a_single_admin_may_be_allowed(config: Path) -> None:
    settings = _changed(load_settings(), unsafe_single_admin=True)
    assert "single-admin" not in _codes(settings, admins=1)


def test_the_log_key_is_not_beside_the_database(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, refused in (
        ("sqlite:////etc/broker/broker.db", True),
        ("sqlite:////etc/broker/keys/broker.db", True),
        ("sqlite:////var/lib/broker/broker.db", False),
        ("sqlite:////etc/broker/keys-of-others/broker.db", False),
    ):
        monkeypatch.setenv("BROKER_DATABASE_URL", url)
        assert ("log-key-place" in _codes(load_settings())) == refused


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://broker.example", True),
        ("http://10.0.0.1", True),
        ("http://127.0.0.1.example", True),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
        ("http://localhost", False),
        ("https://broker.example", False),
    ],
)
def test_http_is_for_loopback(config: Path, monkeypatch: pytest.MonkeyPatch, url: str, refused: bool) -> None:
    monkeypatch.setenv("BROKER_PUBLIC_URLS", f"https://first.example {url}")
    assert ("http-url" in _codes(load_settings())) == refused
    monkeypatch.setenv("BROKER_PUBLIC_URLS", "https://first.example")
    monkeypatch.setenv("BROKER_ISSUER", url)
    assert ("http-url" in _codes(load_settings())) == refused


def test_a_store_outside_the_database_is_needed(config: Path) -> None:
    assert "no-tree-head-store" in _codes(_changed(load_settings(), tree_heads=None))


@pytest.mark.parametrize(
    ("access", "secret", "refused"),
    [
        ("minioadmin", "minioadmin", True),
        ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", True),
        ("a-long-enough-access-key", "a-long-enough-access-key", True),
        ("k", "fifteen-letters", True),
        ("k", "sixteen--letters", False),
    ],
)
def test_default_store_credentials_are_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch, access: str, secret: str, refused: bool
) -> None:
    monkeypatch.setenv("BROKER_STORE__ACCESS_KEY", access)
    monkeypatch.setenv("BROKER_STORE__SECRET_KEY", secret)
    assert ("store-credentials" in _codes(load_settings())) == refused


def test_credentials_of_the_aws_chain_are_not_default_ones(config: Path) -> None:
    config.write_text("\n".join(line for line in TOML.splitlines() if "_key =" not in line))
    assert "store-credentials" not in _codes(load_settings())


def test_production_names_every_refusal_at_once(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_STORE__SECRET_KEY", "minioadmin")
    monkeypatch.setenv("BROKER_ISSUER", "http://broker.example")
    settings = _changed(load_settings(), tree_heads=None)
    worst = Facts(home=Path("/etc"), dev_keys=True, equal_keys=True, can_change_ledger=True, admins=0)
    with pytest.raises(ConfigurationError) as caught:
        check_production(settings, worst)
    found = find_refusals(settings, worst)
    assert [each.code for each in found] == [
        "file-kek",
        "log-key-place",
        "http-url",
        "dev-keys",
        "equal-keys",
        "ledger-rights",
        "no-tree-head-store",
        "store-credentials",
        "single-admin",
    ]
    for each in found:
        assert each.code in str(caught.value)
        assert each.why in str(caught.value.why)
        assert each.next in str(caught.value.next)
    assert "minioadmin" not in f"{caught.value} {caught.value.why}"


def test_dev_mode_has_nothing_to_refuse(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_MODE", "dev")
    check_production(load_settings(), replace(GOOD, dev_keys=True, admins=1))
