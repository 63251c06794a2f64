"""The tables of the settings: object store and keys, and the types of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import NoDecode

from broker.errors import ConfigurationError

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
KEY_NAMES: Final = ("kek", "log", "token", "row_mac", "nonce")
_VAULT_PATH: Final = re.compile(r"\w(?:[\w.-]*\w)?(?:/\w(?:[\w.-]*\w)?){0,15}", re.ASCII)


def _split(value: object) -> object:
    """A list written as one text: words separated by commas or spaces."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _parse_url(value: str) -> str:
    """A base URL in its one form: scheme, host, port, no path, no slash at the end."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as exc:
        raise ValueError("not a URL") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("not http(s)://host[:port]")
    if parts.path.strip("/") or parts.query or parts.fragment or not value.isascii():
        raise ValueError("a base URL has no path, query or fragment")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def _parse_absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError("not an absolute path")
    return value


def _parse_vault_path(value: str) -> str:
    """Segments that need no escaping in a URL, and no `.` or `..` among them (I04)."""
    if not _VAULT_PATH.fullmatch(value):
        raise ValueError("not letters, digits, `_`, `-` and `.`, in segments separated by `/`")
    return value


def _parse_vault_name(value: str) -> str:
    """One such segment."""
    if "/" in value:
        raise ValueError("a name has no slash")
    return _parse_vault_path(value)


BaseUrl = Annotated[str, AfterValidator(_parse_url)]
VaultPath = Annotated[str, AfterValidator(_parse_vault_path)]
VaultName = Annotated[str, AfterValidator(_parse_vault_name)]
AbsolutePath = Annotated[Path, AfterValidator(_parse_absolute)]
Urls = Annotated[tuple[BaseUrl, ...], NoDecode, BeforeValidator(_split)]
Paths = Annotated[tuple[AbsolutePath, ...], NoDecode, BeforeValidator(_split)]


class StoreSettings(BaseModel):
    """The object store."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    endpoint: BaseUrl
    """Base URL of the S3 server, as the broker reaches it."""
    public_endpoint: BaseUrl | None = None
    """The same as clients reach it, if that differs: presigned URLs point there."""
    region: str = "us-east-1"
    """Region that requests are signed for."""
    bucket: str
    """Name of the bucket."""
    path_style: bool = True
    """`endpoint/bucket/name` (true) or `bucket.endpoint/name` (false)."""
    access_key: SecretStr | None = None
    """Access key; without it, credentials come from the AWS chain (profile, web identity, instance role)."""
    secret_key: SecretStr | None = None
    """Secret of the access key."""

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key come together")
        return self

    @property
    def client_endpoint(self) -> str:
        """Base URL of presigned URLs."""
        return self.public_endpoint or self.endpoint


class LogStoreSettings(StoreSettings):
    """A bucket in which others read the log as static files."""

    prefix: Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+/)*$", max_length=256)] = "log/"
    """Before every name; empty, or ends in `/`."""
    entries: bool = False
    """Whether the entries are published too, and not their hashes only. They say who read what."""
    archive: bool = False
    """Whether an archive in Parquet is written beside the entries; needs `entries` and the extra archive."""
    every: Annotated[float, Field(ge=1.0, le=3600.0)] = 60.0
    """Seconds between two checkpoints."""

    @model_validator(mode="after")
    def _check_archive(self) -> Self:
        if self.archive and not self.entries:
            raise ValueError("archive needs entries = true: it holds the entries, which are not public")
        return self


class VaultSettings(BaseModel):
    """HashiCorp Vault or OpenBao, whose transit engine holds the key-encryption key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    url: BaseUrl
    """Base URL of Vault or OpenBao; https beyond loopback."""
    key: VaultName
    """Name of the transit key, of type `aes256-gcm96`; the broker never makes it."""
    mount: VaultPath = "transit"
    """Where the transit engine is mounted."""
    namespace: VaultPath | None = None
    """Namespace of the engine and of the login."""
    ca_file: AbsolutePath | None = None
    """PEM file of the authorities that may vouch for its certificate; the system's unless given."""
    token_file: AbsolutePath | None = None
    """File with a token that somebody else renews (an agent); it is read again when it is refused."""
    role_id: str | None = Field(default=None, min_length=1, max_length=256, pattern=r"^[!-~]+$")
    """AppRole's role id, instead of a token file."""
    secret_id_file: AbsolutePath | None = None
    """File with AppRole's secret id; it is read again for each login."""
    approle_mount: VaultPath = "approle"
    """Where the AppRole method is mounted."""
    timeout: float = Field(default=5.0, ge=0.1, le=60.0)
    """Seconds that it may be silent in one try."""
    attempts: int = Field(default=3, ge=1, le=10)
    """Tries of one call in all."""

    @model_validator(mode="after")
    def _check_login(self) -> Self:
        if self.url.startswith("http:") and urlsplit(self.url).hostname not in LOOPBACK:
            raise ValueError("http is for loopback only")
        if (self.role_id is None) != (self.secret_id_file is None):
            raise ValueError("role_id and secret_id_file come together")
        if (self.token_file is None) == (self.role_id is None):
            raise ValueError("either token_file, or role_id and secret_id_file")
        return self


class KeySettings(BaseModel):
    """Where the broker's keys are."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    custody: Literal["file", "vault"] = "file"
    """Who holds the key-encryption key: `file`, or `vault` (HashiCorp Vault, OpenBao)."""
    folder: AbsolutePath | None = None
    """Folder of the key files `kek.json`, `log.json`, `token.json`, `row-mac.json` and `nonce.json`."""
    kek: Paths = ()
    """Key-encryption keys, instead of the folder's: the first wraps, the others still unwrap."""
    log: AbsolutePath | None = None
    """The log's signing key, instead of the folder's."""
    log_also: Paths = ()
    """Log keys that sign every tree head too: the next one, or the one before (`log-keys.md`)."""
    token: Paths = ()
    """Token signing keys, instead of the folder's: the first signs, the others still verify."""
    row_mac: AbsolutePath | None = None
    """Key of the MACs over ledger tail and access-deciding rows, instead of the folder's."""
    nonce: AbsolutePath | None = None
    """Key of the MACs of DPoP nonces, instead of the folder's."""
    vault: VaultSettings | None = None
    """HashiCorp Vault or OpenBao, for the custody `vault`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_folder(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        folder = data.get("folder")
        # With another custody a key-encryption key in the folder is not even looked at.
        needed = KEY_NAMES if data.get("custody", "file") == "file" else KEY_NAMES[1:]
        missing = [name for name in needed if not data.get(name)]
        if not folder:
            if missing:
                raise ValueError(f"no file for {', '.join(missing)}, and no folder")
            return data
        files = {name: Path(folder) / f"{name.replace('_', '-')}.json" for name in missing}
        several = {name: (files[name],) for name in ("kek", "token") if name in files}
        return {**data, **files, **several}

    @model_validator(mode="after")
    def _check_custody(self) -> Self:
        if (self.custody == "vault") != (self.vault is not None):
            raise ValueError("the custody vault and the table vault come together")
        if self.custody != "file" and self.kek:
            raise ValueError("kek is for the custody file")
        return self

    def file(self, name: Literal["log", "row_mac", "nonce"]) -> Path:
        """The file of a use that has one key."""
        path: Path | None = getattr(self, name)
        if path is None:
            raise ConfigurationError(f"there is no key file for {name}")
        return path
