"""What the embedded stack remembers between two starts, and the settings that follow from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from broker.client.private_files import find_file, write_file
from broker.dev.seaweed import BUCKET, PORT_NAMES, REGION, SeaweedSettings, choose_ports
from broker.errors import ConfigurationError
from broker.ports import Entropy

SCHEMA: Final = "broker/dev/v1"
STATE: Final = "dev.json"
SETTINGS: Final = "broker.toml"
DATABASE: Final = "broker.db"
_SECRET_SIZE: Final = 24


@dataclass(frozen=True, kw_only=True)
class DevState:
    """One stack: chosen at the first start, kept in ``dev.json`` (mode 0600) ever after.

    Attributes:
        port: Port of the HTTP server.
        store_ports: Ports of the object store by name.
        access_key: The store's one identity.
        secret_key: Its secret.
        log_origin: Name of the log.
        database_url: The database.
    """

    port: int
    store_ports: dict[str, int]
    access_key: str
    secret_key: str = field(repr=False)
    log_origin: str
    database_url: str = field(repr=False)

    @property
    def url(self) -> str:
        """Base URL of the HTTP server."""
        return f"http://127.0.0.1:{self.port}"

    def store(self, home: Path) -> SeaweedSettings:
        """The object store of the stack in ``home``."""
        return SeaweedSettings(
            home=home / "store",
            ports=self.store_ports,
            access_key=self.access_key,
            secret_key=self.secret_key,
        )


def load_state(home: Path, *, port: int | None, database_url: str | None, entropy: Entropy) -> DevState:
    """The state of ``home``, made at the first start; a port that is given now is kept from now on.

    Raises:
        ConfigurationError: The file is damaged, or the database is another one than at the first start.
    """
    found = find_file(home / STATE, private=True)
    state = _new_state(home, port, database_url, entropy) if found is None else _parse(found)
    if database_url is not None and database_url != state.database_url:
        raise ConfigurationError(
            "this stack has another database",
            why="the database is chosen at the first start",
            next="leave --database-url out, or choose another --home",
        )
    if port is not None and port != state.port:
        state = replace(state, port=port)
    write_file(home / STATE, json.dumps({"schema": SCHEMA, **asdict(state)}).encode())
    return state


def _new_state(home: Path, port: int | None, database_url: str | None, entropy: Entropy) -> DevState:
    ports = choose_ports(("http", *PORT_NAMES), entropy=entropy)
    return DevState(
        port=port or ports["http"],
        store_ports={name: ports[name] for name in PORT_NAMES},
        access_key=f"dev-{entropy.random_bytes(8).hex()}",
        secret_key=entropy.random_bytes(_SECRET_SIZE).hex(),
        log_origin=f"broker-dev/{entropy.random_bytes(8).hex()}",
        database_url=database_url or f"sqlite:///{home / DATABASE}",
    )


def _parse(data: bytes) -> DevState:
    try:
        members = json.loads(data)
        if members.pop("schema") != SCHEMA or set(members["store_ports"]) != set(PORT_NAMES):
            raise ConfigurationError(f"{STATE} is of another version")
        return DevState(**members)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigurationError(f"{STATE} of this stack is damaged") from exc


def write_settings(home: Path, state: DevState, *, workers: int) -> None:
    """Write ``broker.toml``, the server's settings (mode 0600): also good for ``broker admin doctor``.

    Raises:
        ConfigurationError: It cannot be written.
    """
    top = {
        "mode": "dev",
        "host": "127.0.0.1",
        "port": state.port,
        "workers": workers,
        "public_urls": [state.url],
        "issuer": state.url,
        "database_url": state.database_url,
        "log_origin": state.log_origin,
        "tree_heads": str(home / "heads"),
    }
    store = {
        "endpoint": state.store(home).endpoint,
        "region": REGION,
        "bucket": BUCKET,
        "access_key": state.access_key,
        "secret_key": state.secret_key,
    }
    text = f"{_table(top)}\n[store]\n{_table(store)}\n[keys]\n{_table({'folder': str(home / 'keys')})}"
    write_file(home / SETTINGS, text.encode())


SETTINGS_WRITTEN: Final = (
    "mode",
    "host",
    "port",
    "workers",
    "public_urls",
    "issuer",
    "database_url",
    "log_origin",
    "tree_heads",
    "store",
    "keys",
)
"""What :func:`write_settings` says: the environment of whoever starts the stack must not say otherwise."""


def _table(members: dict[str, Any]) -> str:
    # Numbers, strings and lists of strings in JSON are the same in TOML as long as no character needs a
    # surrogate pair, which ensure_ascii would make.
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in members.items())
