"""What the embedded stack remembers, and the ports that it waits for."""

from __future__ import annotations

import json
import socket
import tomllib
from pathlib import Path

import pytest

from broker.dev import stack
from broker.dev.seaweed import PORT_NAMES, choose_ports
from broker.dev.state import SETTINGS_WRITTEN, load_state, write_settings
from broker.errors import ConfigurationError
from broker.runtime import SystemEntropy


def _load(home: Path, *, port: int | None = None, database_url: str | None = None):  # type: ignore[no-untyped-def]
    return load_state(home, port=port, database_url=database_url, entropy=SystemEntropy())


def test_the_first_start_chooses_and_later_ones_keep(tmp_path: Path) -> None:
    first = _load(tmp_path)
    assert set(first.store_ports) == set(PORT_NAMES)
    assert len({first.port, *first.store_ports.values()}) == len(PORT_NAMES) + 1
    assert first.database_url == f"sqlite:///{tmp_path}/broker.db"
    assert (tmp_path / "dev.json").stat().st_mode & 0o777 == 0o600
    assert _load(tmp_path) == first
    assert first.secret_key not in repr(first)


def test_a_port_that_is_given_is_kept(tmp_path: Path) -> None:
    first = _load(tmp_path)
    assert _load(tmp_path, port=4242).port == 4242
    again = _load(tmp_path)
    assert again.port == 4242
    assert again.store_ports == first.store_ports


def test_the_database_is_chosen_once(tmp_path: Path) -> None:
    url = "postgresql://u:p@127.0.0.1/d"
    assert _load(tmp_path, database_url=url).database_url == url
    assert _load(tmp_path).database_url == url
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, database_url="postgresql://u:p@127.0.0.1/other")
    assert "u:p" not in f"{caught.value} {caught.value.why}"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema":"broker/dev/v2","store_ports":{}}', "7"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    _load(tmp_path)
    (tmp_path / "dev.json").write_text(content)
    with pytest.raises(ConfigurationError):
        _load(tmp_path)


def test_a_file_with_another_member_is_refused(tmp_path: Path) -> None:
    _load(tmp_path)
    body = json.loads((tmp_path / "dev.json").read_text())
    (tmp_path / "dev.json").write_text(json.dumps({**body, "more": 1}))
    with pytest.raises(ConfigurationError):
        _load(tmp_path)


def test_the_settings_are_toml_and_all_that_is_protected(tmp_path: Path) -> None:
    home = tmp_path / 'sp ace "q" é 😀'
    home.mkdir()
    write_settings(home, _load(home), workers=3)
    found = tomllib.loads((home / "broker.toml").read_text())
    assert set(found) == set(SETTINGS_WRITTEN)
    assert found["keys"]["folder"] == str(home / "keys")
    assert found["workers"] == 3
    assert (home / "broker.toml").stat().st_mode & 0o777 == 0o600


def test_a_port_that_stays_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "PORT_SECONDS", 0)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            stack._await_free(port)
    stack._await_free(port)


def test_ports_that_are_chosen_differ() -> None:
    ports = choose_ports(PORT_NAMES, entropy=SystemEntropy())
    assert len(set(ports.values())) == len(PORT_NAMES)
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    assert not outgoing.exists() or max(ports.values()) < int(outgoing.read_text().split()[0])


def test_a_home_that_no_database_url_can_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        stack.run_dev(tmp_path / "what?")
