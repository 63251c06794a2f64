"""Where the client's settings come from: flag > environment > profile > default.

A profile is a folder: ``config.toml`` (server, principal, store hosts, the pinned log), ``key.jwk``
(mode 0600), ``treehead`` (the last tree head that was verified) and ``token.json`` (mode 0600). A job's
profile is less: ``config.toml`` without a principal, beside a ``token`` and the key that it was minted
for, or with the token wherever the environment says; or no folder at all, only the server's URL and the
log's key. This is the only module of the client that reads the environment.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from broker import jose, names
from broker.client import private_files, workload
from broker.client.workload import ActionsToken, JobSource, TokenFile
from broker.errors import BrokerError, ConfigurationError, MalformedRequest

CONFIG: Final = "config.toml"
KEY: Final = workload.KEY
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
    """The variables that the client knows; ``None`` where one is not set.

    ``places`` are where the processes of a job may keep what they share, best first; ``actions`` is the
    endpoint that GitHub Actions gives to a job which may ask for tokens.
    """

    profile_dir: Path | None = None
    profiles: Path
    url: str | None = None
    log_vkey: str | None = None
    token_file: Path | None = None
    actions: ActionsToken | None = None
    places: tuple[Path, ...] = ()
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
        log_vkey=found.get("BROKER_LOG_VKEY") or None,
        token_file=_path(found.get("BROKER_TOKEN_FILE")),
        actions=workload.find_actions(found),
        places=workload.find_places(found),
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
    """A profile: whom the client talks to, as whom, and which log it holds them to.

    Attributes:
        folder: Where its files are. For a job it may be read-only, or not exist.
        server: Base URL of the broker, without a slash at the end.
        principal: The caller's own id; "" for a job, which learns it with its first token.
        issuer: The server's issuer identifier: the audience of our assertions; "" until it is known.
        origin: Name of the log.
        vkey: The log's verifier key, pinned at enrolment.
        store_hosts: ``host:port`` of each store that data may come from; no other is contacted.
        source: Where a job's token comes from; None for an enrolled key.
        places: Where the processes of a job may keep what they share, best first.
    """

    folder: Path
    server: str
    principal: str
    issuer: str
    origin: str
    vkey: str
    store_hosts: tuple[str, ...]
    source: JobSource | None = field(default=None, compare=False)
    places: tuple[Path, ...] = field(default=(), compare=False)

    @cached_property
    def key(self) -> jose.PrivateKey:
        """The private key: that of the profile, or the one that the processes of a workload share.

        Raises:
            ConfigurationError: It is missing, malformed, or other users may read it.
        """
        if self.source is not None and not self.source.minted:
            return workload.job_key(self.state)
        path = self.folder / KEY
        key = workload.find_key(path)
        if key is None or not (self.principal or self.source):
            raise self._without_key(path)
        return key

    def _without_key(self, path: Path) -> ConfigurationError:
        if self.source is None and self.principal:
            return ConfigurationError(f"the profile has no key: {path}", next="broker login")
        if self.source is None:
            return ConfigurationError(
                f"the profile in {self.folder} is that of a job, and there is no token for it",
                next=f"set BROKER_TOKEN_FILE, or mint one: broker token mint --out {self.folder}",
            )
        return ConfigurationError(
            f"there is no key for the token in {self.source.where}: {path}",
            why="a minted token is of use only with the key that it was minted for",
            next="set BROKER_PROFILE_DIR to the folder that holds this key",
        )

    @cached_property
    def state(self) -> Path | None:
        """The folder for what is kept between calls; None when that is this process's memory.

        An enrolled profile keeps it beside its key. A job does if it can: what it cannot write is not
        worth failing for.
        """
        if self.source is None:
            return self.folder
        if self.source.minted:
            return self.folder if os.access(self.folder, os.W_OK | os.X_OK) else None
        own = (self.folder / workload.JOBS,) if (self.folder / CONFIG).exists() else ()
        return workload.find_state((*own, *self.places), self.server, self.vkey, self.source.job())


def load_profile(folder: Path, *, url: str | None = None) -> Profile:
    """The profile in a folder. A file ``token`` in it makes it that of a job.

    Args:
        url: Use this server instead of the profile's (flag or ``BROKER_URL``). The pinned log and the
            issuer stay: another broker does not pass for this one.

    Raises:
        ConfigurationError: There is no profile, or it is not valid.
    """
    path = folder / CONFIG
    data = private_files.find_file(path, follow=True)
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


def find_profile(
    name: str | None = None, *, url: str | None = None, token_file: Path | None = None
) -> Profile:
    """The profile that flag, environment and default point to.

    A profile that is named is that of its folder, whatever identity the environment offers. Otherwise
    ``BROKER_TOKEN_FILE`` makes it that of a job, and so does GitHub Actions where the folder has no key.

    Args:
        name: Of the profile.
        url: The server's URL instead of the profile's.
        token_file: A job's token: the profile is that of this job.

    Raises:
        ConfigurationError: There is none, or it is not valid.
    """
    env = read_environment()
    folder, server = profile_folder(name, env), url or env.url
    if token_file is not None:
        source: JobSource | None = TokenFile(token_file)
    else:
        source = None if name is not None else _find_source(env, folder)
    if name is None and not (folder / CONFIG).exists() and server and env.log_vkey and source:
        return replace(_bare_profile(folder, server, env.log_vkey, source), places=env.places)
    profile = _load(folder, server, job=source is not None)
    if name is None and env.log_vkey not in (None, profile.vkey):
        raise ConfigurationError(
            f"BROKER_LOG_VKEY is another log than the one that {folder / CONFIG} pins",
            next="take one of them away",
        )
    return replace(profile, source=source or profile.source, places=env.places)


def _find_source(env: Environment, folder: Path) -> JobSource | None:
    if env.token_file is not None:
        return TokenFile(env.token_file)
    own = any((folder / name).exists() for name in (KEY, workload.TOKEN))
    return None if own else env.actions


def _load(folder: Path, server: str | None, *, job: bool) -> Profile:
    if job and not (folder / CONFIG).exists():
        raise ConfigurationError(
            f"there is no profile in {folder}, and the environment names no broker",
            why="a job needs to know its server, and the log that it holds it to",
            next=f"set BROKER_PROFILE_DIR to a folder with a {CONFIG}, or BROKER_URL and BROKER_LOG_VKEY",
        )
    return load_profile(folder, url=server)


def _bare_profile(folder: Path, server: str, vkey: str, source: JobSource) -> Profile:
    from broker.ledger import note

    try:
        origin = note.parse_vkey(vkey).name
    except ConfigurationError as exc:
        raise ConfigurationError("BROKER_LOG_VKEY is not a log's verifier key", why=exc.what) from exc
    return Profile(
        folder=folder,
        server=check_server(server),
        principal="",
        issuer="",
        origin=origin,
        vkey=vkey,
        store_hosts=(),
        source=source,
    )


def _parse_config(folder: Path, config: Mapping[str, Any]) -> Profile:
    # ledger.note needs the crypto library: only where a profile is really read.
    from broker.ledger import note

    log = config.get("log")
    known = _MEMBERS - {"principal"} <= set(config) <= _MEMBERS
    if not isinstance(log, dict) or set(log) != {"origin", "vkey"} or not known:
        raise ConfigurationError(f"it has exactly {', '.join(sorted(_MEMBERS))}; log has origin and vkey")
    hosts = config["store_hosts"]
    if not isinstance(hosts, list):
        raise ConfigurationError("store_hosts is not a list")
    if note.parse_vkey(log["vkey"]).name != log["origin"]:
        raise ConfigurationError("the log's verifier key is of another origin")
    return Profile(
        folder=folder,
        server=check_server(_text(config["server"])),
        principal=names.parse_principal(_text(config["principal"])) if "principal" in config else "",
        issuer=_text(config["issuer"]),
        origin=_text(log["origin"]),
        vkey=_text(log["vkey"]),
        store_hosts=tuple(check_store_host(host) for host in hosts),
        source=workload.find_token(folder),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise MalformedRequest("a setting is not printable text")
    return value


def config_text(profile: Profile) -> str:
    """The ``config.toml`` of a profile; a job's has no principal."""
    hosts = ", ".join(_quote(host) for host in profile.store_hosts)
    return (
        f"server = {_quote(profile.server)}\n"
        + (f"principal = {_quote(profile.principal)}\n" if profile.principal else "")
        + f"issuer = {_quote(profile.issuer)}\n"
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
    workload.write_key(profile.folder / KEY, key)
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
