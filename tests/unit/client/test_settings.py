"""Profiles: where they are, what they hold, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.client import settings
from broker.errors import ConfigurationError
from broker.jose import PrivateKey
from broker.ledger import note

VKEY = note.vkey("test.example/log", bytes(31) + b"\x01")


def make(folder: Path, **changes: object) -> settings.Profile:
    members: dict[str, object] = {
        "folder": folder,
        "server": "https://broker.example/base",
        "principal": "user:ana",
        "issuer": "https://broker.example",
        "origin": "test.example/log",
        "vkey": VKEY,
        "store_hosts": ("s3.example", "127.0.0.1:8333", "[::1]:9000"),
        **changes,
    }
    return settings.Profile(**members)  # type: ignore[arg-type]


def test_a_profile_comes_back(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    made = make(tmp_path / "new/p", principal="workload:github/acme/train", issuer='a"b\\c ü')
    settings.save_profile(made, key)
    found = settings.load_profile(tmp_path / "new/p")
    assert found == made
    assert found.key.jkt == key.jkt
    assert (tmp_path / "new/p").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new/p/key.jwk").stat().st_mode & 0o777 == 0o600
    assert key.to_jwk()["d"] not in repr(found)
    with pytest.raises(ConfigurationError, match="already"):
        settings.save_profile(made, key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    settings.save_profile(make(tmp_path), PrivateKey.generate())
    os.chmod(tmp_path / "key.jwk", mode)
    with pytest.raises(ConfigurationError, match="other users"):
        _ = settings.load_profile(tmp_path).key


def test_a_key_behind_a_symlink_is_refused(tmp_path: Path) -> None:
    settings.save_profile(make(tmp_path), PrivateKey.generate())
    (tmp_path / "key.jwk").rename(tmp_path / "elsewhere")
    (tmp_path / "key.jwk").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError):
        _ = settings.load_profile(tmp_path).key


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no profile"):
        settings.load_profile(tmp_path)
    settings.save_profile(make(tmp_path), PrivateKey.generate())
    (tmp_path / "key.jwk").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a private key"):
        _ = settings.load_profile(tmp_path).key
    (tmp_path / "key.jwk").unlink()
    with pytest.raises(ConfigurationError, match="no key"):
        _ = settings.load_profile(tmp_path).key
    text = (tmp_path / "config.toml").read_text()
    for broken in (
        "x = [",
        "",
        text + "\nmore = 1\n",
        text.replace("test.example/log", "other/log", 1),
        "\xff",
    ):
        (tmp_path / "config.toml").write_bytes(broken.encode("latin-1"))
        with pytest.raises(ConfigurationError):
            settings.load_profile(tmp_path)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://Broker.Example/", "https://broker.example"),
        ("https://b.example:8443/path/", "https://b.example:8443/path"),
        ("http://127.0.0.1:80", "http://127.0.0.1:80"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_server_urls(given: str, kept: str) -> None:
    assert settings.check_server(given) == kept


@pytest.mark.parametrize(
    "url",
    [
        "http://broker.example",
        "http://127.0.0.1.example",
        "http://user:pass@127.0.0.1",
        "ftp://x",
        "broker.example",
        "https://",
        "https://x?y=1",
        "https://x#y",
        "https://x:99999",
        "https://x y",
        "https://x\r\nHost: y",
        "https://ü.example",
        "http://0.0.0.0",
    ],
)
def test_refused_server_urls(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings.check_server(url)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize("host", ["", "S3.example", "s3.example/x", "user@s3", "s3.example:x", "*", "a b", 7])
def test_refused_store_hosts(host: object) -> None:
    with pytest.raises(ConfigurationError):
        settings.check_store_host(host)


def test_which_profile(tmp_path: Path) -> None:
    env = settings.read_environment(
        {"XDG_CONFIG_HOME": "/c", "BROKER_PROFILE_DIR": "/p", "BROKER_JOBS": "7", "BROKER_PURPOSE": "x"}
    )
    assert settings.profile_folder("team", env) == Path("/c/broker/profiles/team")
    assert settings.profile_folder(None, env) == Path("/p")
    assert (env.jobs, env.purpose, env.no_color) == (7, "x", False)
    bare = settings.read_environment({"HOME": "/h", "NO_COLOR": "1"})
    assert settings.profile_folder(None, bare) == Path("/h/.config/broker/profiles/default")
    assert bare.no_color
    for name in ("..", "a/b", "", "a..b", ".x"):
        with pytest.raises(ConfigurationError):
            settings.profile_folder(name, bare)
    for jobs in ("0", "65", "-1", "x", "1.5", "٣"):
        with pytest.raises(ConfigurationError):
            settings.read_environment({"HOME": "/h", "BROKER_JOBS": jobs})


def test_a_url_overrides_the_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.save_profile(make(tmp_path), PrivateKey.generate())
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(tmp_path))
    assert settings.find_profile().server == "https://broker.example/base"
    monkeypatch.setenv("BROKER_URL", "https://env.example")
    assert settings.find_profile().server == "https://env.example"
    found = settings.find_profile(url="https://flag.example/")
    assert found.server == "https://flag.example"
    assert found.issuer == "https://broker.example"
