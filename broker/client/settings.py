"""Where the client's settings come from: flag > environment > profile > default.

A profile is a folder: ``config.toml`` (server, principal, store hosts, the pinned log), ``key.jwk``
(mode 0600), ``treehead`` (the last tree head that was verified) and ``token.json`` (mode 0600). This is
the only module of the client that reads the environment.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from broker import jose, names
from broker.canonical import parse_json_object
from broker.client import private_files
from broker.errors import BrokerError, ConfigurationError, MalformedRequest

CONFIG: Final = "config.toml"
KEY: Final = "key.jwk"
TREE_HEAD: Final = "treehead"
TOKEN: Final = "token.json"  # noqa: S105 - a file name
DEFAULT_PROFILE: Final = "default"
DEFAULT_JOBS: Final = 4
MAX_JOBS: Final = 64

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PROFILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STORE_HOST: Final = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,252}|\[[0-9a-f:]{2,39}\])(?::[0-9]{1,5})?")
_MEMBERS: Final = frozenset({"server", "principal", "issuer", "store_hosts", "log"})


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The variables that the client knows; ``None`` where one is not set."""

    profile_dir: Path | None = None
    profiles: Path
    url: str | None = None
    token_file: Path | None = None
    purpose: str | None = None
    jobs: int | None = None
    output: str | None = None
    no_color: bool = False


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """The client's environment variables, checked.

    Raises:
        ConfigurationError: ``BROKER_JOBS`` is not a number that makes sense.
    """
    found = os.environ if environ is None else environ
    home = found.get("XDG_CONFIG_HOME") or str(Path(found.get("HOME") or Path.home()) / ".config")
    jobs = found.get("BROKER_JOBS")
    return Environment(
        profile_dir=_path(found.get("BROKER_PROFILE_DIR")),
        profiles=Path(home) / "broker" / "profiles",
        url=found.get("BROKER_URL") or None,
        token_file=_path(found.get("BROKER_TOKEN_FILE")),
        purpose=found.get("BROKER_PURPOSE") or None,
        jobs=check_jobs(jobs) if jobs else None,
        output=found.get("BROKER_OUTPUT") or None,
        no_color=bool(found.get("NO_COLOR")),
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def check_jobs(value: str | int) -> int:
    """A number of worker threads, 1 to 64.

    Raises:
        ConfigurationError: It is something else.
    """
    text = str(value)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_JOBS:
        raise ConfigurationError(f"the number of jobs is 1 to {MAX_JOBS}")
    return int(text)


def profile_folder(name: str | None = None, environment: Environment | None = None) -> Path:
    """The folder of the profile that is meant: by name, else ``BROKER_PROFILE_DIR``, else ``default``.

    Raises:
        ConfigurationError: The name is not one.
    """
    env = environment or read_environment()
    if name is None and env.profile_dir is not None:
        return env.profile_dir
    chosen = DEFAULT_PROFILE if name is None else name
    if not _PROFILE_NAME.fullmatch(chosen) or ".." in chosen:
        raise ConfigurationError("a profile's name is letters, digits, '.', '_', '-'; at most 64")
    return env.profiles / chosen


def is_loopback(host: str | None) -> bool:
    """Whether a host name is this machine, where http is allowed."""
    return host in _LOOPBACK


def check_server(url: str) -> str:
    """A server's base URL in its one form: https (http on loopback only), no query, no slash at the end.

    Raises:
        ConfigurationError: It is something else; the URL is not repeated when it carries a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigurationError("the server's URL is not a URL") from exc
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc:
        raise ConfigurationError("the server's URL is https://HOST[:PORT][/PATH]")
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError("the server's URL has no query, fragment or special characters")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigurationError(
            "the server's URL is http beyond this machine", why="http is for loopback only", next="use https"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def check_store_host(text: object) -> str:
    """A store's ``host`` or ``host:port``, lower case.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(text, str) or not _STORE_HOST.fullmatch(text):
        raise ConfigurationError("a store host of the profile is not host or host:port in lower case")
    return text


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An enrolled profile: whom the client talks to, as whom, and which log it holds them to.

    Attributes:
        folder: Where it is kept.
        server: Base URL of the broker, without a slash at the end.
        principal: The caller's own id.
        issuer: The server's issuer identifier: the audience of our assertions.
        origin: Name of the log.
        vkey: The log's verifier key, pinned at enrolment.
        store_hosts: ``host:port`` of each store that data may come from; no other is contacted.
    """

    folder: Path
    server: str
    principal: str
    issuer: str
    origin: str
    vkey: str
    store_hosts: tuple[str, ...]

    @cached_property
    def key(self) -> jose.PrivateKey:
        """The profile's private key.

        Raises:
            ConfigurationError: It is missing, malformed, or other users may read it.
        """
        path = self.folder / KEY
        data = private_files.find_file(path, private=True)
        if data is None:
            raise ConfigurationError(f"the profile has no key: {path}", next="broker login")
        try:
            return jose.PrivateKey.from_jwk(parse_json_object(data))
        except BrokerError as exc:
            raise ConfigurationError(f"{path} is not a private key", why=exc.what) from exc


def load_profile(folder: Path, *, url: str | None = None) -> Profile:
    """The profile in a folder.

    Args:
        url: Use this server instead of the profile's (flag or ``BROKER_URL``). The pinned log and the
            issuer stay: another broker does not pass for this one.

    Raises:
        ConfigurationError: There is no profile, or it is not valid.
    """
    path = folder / CONFIG
    data = private_files.find_file(path)
    if data is None:
        raise ConfigurationError(
            f"there is no profile in {folder}", next="broker login --server URL --code CODE"
        )
    try:
        profile = _parse_config(folder, tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} is not TOML") from exc
    except BrokerError as exc:
        raise ConfigurationError(f"{path} is not a valid profile", why=exc.what, next=exc.next) from exc
    return profile if url is None else replace(profile, server=check_server(url))


def find_profile(name: str | None = None, *, url: str | None = None) -> Profile:
    """The profile that flag, environment and default point to.

    Raises:
        ConfigurationError: There is none, or it is not valid.
    """
    environment = read_environment()
    return load_profile(profile_folder(name, environment), url=url or environment.url)


def _parse_config(folder: Path, config: Mapping[str, Any]) -> Profile:
    # ledger.note needs the crypto library: only where a profile is really read.
    from broker.ledger import note

    log = config.get("log")
    if not isinstance(log, dict) or set(log) != {"origin", "vkey"} or set(config) != _MEMBERS:
        raise ConfigurationError(f"it has exactly {', '.join(sorted(_MEMBERS))}; log has origin and vkey")
    hosts = config["store_hosts"]
    if not isinstance(hosts, list):
        raise ConfigurationError("store_hosts is not a list")
    if note.parse_vkey(log["vkey"]).name != log["origin"]:
        raise ConfigurationError("the log's verifier key is of another origin")
    return Profile(
        folder=folder,
        server=check_server(_text(config["server"])),
        principal=names.parse_principal(_text(config["principal"])),
        issuer=_text(config["issuer"]),
        origin=_text(log["origin"]),
        vkey=_text(log["vkey"]),
        store_hosts=tuple(check_store_host(host) for host in hosts),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise MalformedRequest("a setting is not printable text")
    return value


def config_text(profile: Profile) -> str:
    """The ``config.toml`` of a profile."""
    hosts = ", ".join(_quote(host) for host in profile.store_hosts)
    return (
        f"server = {_quote(profile.server)}\n"
        f"principal = {_quote(profile.principal)}\n"
        f"issuer = {_quote(profile.issuer)}\n"
        f"store_hosts = [{hosts}]\n"
        "\n[log]\n"
        f"origin = {_quote(profile.origin)}\n"
        f"vkey = {_quote(profile.vkey)}\n"
    )


def _quote(text: str) -> str:
    # A JSON string without escapes beyond \" and \\ is a TOML basic string: control characters, which
    # the two write differently, never get here.
    return json.dumps(_text(text), ensure_ascii=False)


def save_profile(profile: Profile, key: jose.PrivateKey) -> None:
    """Write a new profile; its folder is made (mode 0700) or is empty of a profile.

    The configuration comes last: a profile whose enrolment was cut off is no profile.

    Raises:
        ConfigurationError: There is a profile already, or the folder cannot be written.
    """
    text = config_text(profile)
    check_vacant(profile.folder)
    private_files.write_file(profile.folder / KEY, json.dumps(key.to_jwk()).encode() + b"\n")
    private_files.write_file(profile.folder / CONFIG, text.encode(), mode=0o644)


def check_vacant(folder: Path) -> None:
    """The folder exists (it is made, mode 0700) and holds no profile yet.

    Raises:
        ConfigurationError: It holds one, or cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = [name for name in (CONFIG, KEY) if (folder / name).exists()]
    except OSError as exc:
        raise ConfigurationError(f"cannot make the profile's folder {folder}", why=exc.strerror) from exc
    if taken:
        raise ConfigurationError(
            f"there is a profile in {folder} already", next="choose another one with --profile NAME"
        )
