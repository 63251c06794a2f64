"""The server's settings: environment > TOML file > default, checked once, when a process starts.

A setting ``store.bucket`` is ``bucket`` in the table ``[store]`` of the TOML file that ``BROKER_CONFIG``
names, or the variable ``BROKER_STORE__BUCKET``. This is the only module of the server that reads the
environment. ``docs/operations/configuration.md`` lists every setting; a test compares the two.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass
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
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from broker import limits
from broker.errors import ConfigurationError

CONFIG_VARIABLE: Final = "BROKER_CONFIG"
PREFIX: Final = "BROKER_"
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
KEY_NAMES: Final = ("kek", "log", "token", "row_mac", "nonce")
MIN_SECRET: Final = 16
"""Characters below which a store's secret key is taken for a default one."""
_EXAMPLE_SECRETS: Final = frozenset({"wjalrxutnfemi/k7mdeng/bpxrficyexamplekey"})
"""Long secrets of vendors' examples; the known short ones (`minioadmin`, ...) are below MIN_SECRET."""


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


BaseUrl = Annotated[str, AfterValidator(_parse_url)]
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
    """The bucket of all artifacts."""
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


class KeySettings(BaseModel):
    """Where the broker's keys are."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    custody: Literal["file"] = "file"
    """Who holds the key-encryption key: `file`."""
    folder: AbsolutePath | None = None
    """Folder of the key files `kek.json`, `log.json`, `token.json`, `row-mac.json` and `nonce.json`."""
    kek: Paths = ()
    """Key-encryption keys, instead of the folder's: the first wraps, the others still unwrap."""
    log: AbsolutePath | None = None
    """The log's signing key, instead of the folder's."""
    token: Paths = ()
    """Token signing keys, instead of the folder's: the first signs, the others still verify."""
    row_mac: AbsolutePath | None = None
    """Key of the MACs over ledger tail and access-deciding rows, instead of the folder's."""
    nonce: AbsolutePath | None = None
    """Key of the MACs of DPoP nonces, instead of the folder's."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_folder(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        folder = data.get("folder")
        missing = [name for name in KEY_NAMES if not data.get(name)]
        if not folder:
            if missing:
                raise ValueError(f"no file for {', '.join(missing)}, and no folder")
            return data
        files = {name: Path(folder) / f"{name.replace('_', '-')}.json" for name in missing}
        several = {name: (files[name],) for name in ("kek", "token") if name in files}
        return {**data, **files, **several}

    def file(self, name: Literal["log", "row_mac", "nonce"]) -> Path:
        """The file of a use that has one key."""
        path: Path | None = getattr(self, name)
        if path is None:
            raise ConfigurationError(f"there is no key file for {name}")
        return path


class Settings(BaseSettings):
    """Everything that an operator sets. Secrets are not part of its text form."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        # I11: a message of the library would repeat the value that is wrong.
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    mode: Literal["production", "dev"] = "production"
    """`production` refuses whatever is only good for development; `dev` listens on loopback only."""
    host: str = "127.0.0.1"
    """Address that the server listens on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port that the server listens on."""
    workers: int = Field(default=2, ge=1, le=256)
    """Server processes."""
    threads: int = Field(default=8, ge=1, le=256)
    """Threads of each server process."""
    behind_proxy: bool = False
    """One trusted proxy stands in front: the last hop of its `X-Forwarded-For` is the caller."""
    open_metrics: bool = False
    """`/metrics` answers to other machines too."""
    public_urls: Urls = Field(min_length=1)
    """Base URLs under which clients reach the broker; signed requests are compared with them."""
    issuer: BaseUrl | None = None
    """Issuer identifier of tokens; the first public URL unless given."""
    database_url: SecretStr
    """`sqlite:////path/to/broker.db` or `postgresql://user:password@host/database`."""
    policies: AbsolutePath | None = None
    """Folder of the policies that a new log begins with; the shipped ones unless given."""
    log_origin: str
    """Name of the transparency log. It never changes, whatever host or port the log is served from."""
    tree_heads: AbsolutePath | None = None
    """Folder outside the database's reach that remembers every signed tree head."""
    lease_window: int = Field(
        default=limits.DEFAULT_LEASE_WINDOW, ge=limits.SEGMENT_SIZE, le=limits.MAX_LEASE_BYTES
    )
    """Plaintext bytes that one lease opens."""
    nonces_required: bool = False
    """Every signed request needs a nonce of this server (one more round trip for the first one)."""
    unsafe_single_admin: bool = False
    """Protected changes may be made by one administrator alone."""
    store: StoreSettings
    """The object store."""
    keys: KeySettings
    """Where the broker's keys are."""

    @model_validator(mode="after")
    def _check_dev(self) -> Self:
        if self.mode == "dev" and self.host not in LOOPBACK:
            raise ValueError("in dev mode the server listens on loopback only")
        return self

    @property
    def token_issuer(self) -> str:
        """The issuer identifier: given, or the first public URL."""
        return self.issuer or self.public_urls[0]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment, then the TOML file; no `.env` file and no secrets folder."""
        del init_settings, dotenv_settings, file_secret_settings
        named = os.environ.get(CONFIG_VARIABLE)
        if not named:
            return (env_settings,)
        return (env_settings, TomlConfigSettingsSource(settings_cls, toml_file=Path(named)))


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        ConfigurationError: One is missing or wrong, or the file is; ``why`` names every one of them and
            repeats no value.
    """
    _check_file(os.environ.get(CONFIG_VARIABLE))
    try:
        return Settings()  # type: ignore[call-arg]  # from the environment and the file
    except ValidationError as exc:
        problems = exc.errors(include_input=False, include_url=False, include_context=False)
        why = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in problems
        )
        raise ConfigurationError(
            "the settings are not complete", why=why, next="see docs/operations/configuration.md"
        ) from exc
    except SettingsError as exc:
        raise ConfigurationError("a setting in the environment cannot be parsed") from exc


def _check_file(named: str | None) -> None:
    """The settings file is there, is TOML, and nobody else can read the secrets in it."""
    if not named:
        return
    try:
        with open(named, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            found = tomllib.load(file)
    except OSError as exc:
        raise ConfigurationError(f"the settings file {named} cannot be read", why=exc.strerror) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        # The parser's message may quote the line.
        raise ConfigurationError(f"the settings file {named} is not TOML") from exc
    store = found.get("store")
    secret = "database_url" in found or (isinstance(store, dict) and "secret_key" in store)
    if secret and stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(
            f"the settings file {named} has secrets and can be read by others", next=f"chmod 600 {named}"
        )


# -- what production refuses ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the settings alone do not say; whoever starts the broker finds it out.

    Attributes:
        home: Home folder of the account that the broker runs as.
        dev_keys: Whether the embedded stack made any of the keys.
        equal_keys: Whether two uses have the same key.
        can_change_ledger: Whether the broker's database role may update or delete ledger rows.
        admins: Enabled principals with the role admin.
    """

    home: Path
    dev_keys: bool
    equal_keys: bool
    can_change_ledger: bool
    admins: int


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One reason why the broker does not start in production.

    Attributes:
        code: Stable name of the rule.
        why: What is wrong.
        next: What to do about it.
    """

    code: str
    why: str
    next: str


def check_production(settings: Settings, facts: Facts) -> None:
    """Nothing of :func:`find_refusals` holds; in dev mode there is nothing to check.

    Raises:
        ConfigurationError: With every refusal, each on a line of ``why`` and of ``next``.
    """
    found = [] if settings.mode == "dev" else find_refusals(settings, facts)
    if found:
        raise ConfigurationError(
            f"the broker does not start in production: {', '.join(each.code for each in found)}",
            why="\n".join(each.why for each in found),
            next="\n".join(each.next for each in found),
        )


def find_refusals(settings: Settings, facts: Facts) -> list[Refusal]:
    """Every reason, in a fixed order, why these settings are not for production."""
    rules = (
        _refuse_if(
            settings.keys.custody == "file",
            "file-kek",
            "the key-encryption key is a file",
            "keep it in a KMS, Vault or an HSM",
        ),
        _refuse_log_key_place(settings, facts),
        _refuse_http(settings),
        _refuse_if(facts.dev_keys, "dev-keys", "the embedded stack made a key", "make new keys"),
        _refuse_if(facts.equal_keys, "equal-keys", "two uses have the same key", "make one for each use"),
        _refuse_if(
            facts.can_change_ledger,
            "ledger-rights",
            "the database role may update or delete ledger rows",
            "use PostgreSQL with the application role (docs/operations/database.md)",
        ),
        _refuse_if(
            settings.tree_heads is None,
            "no-tree-head-store",
            "no store outside the database remembers tree heads",
            "set tree_heads",
        ),
        _refuse_default_credentials(settings.store),
        _refuse_if(
            facts.admins < 2 and not settings.unsafe_single_admin,
            "single-admin",
            "there are fewer than two administrators",
            "add a second one, or set unsafe_single_admin",
        ),
    )
    return [rule for rule in rules if rule is not None]


def _refuse_if(condition: bool, code: str, why: str, next: str) -> Refusal | None:  # noqa: FBT001
    return Refusal(code=code, why=why, next=next) if condition else None


def _refuse_log_key_place(settings: Settings, facts: Facts) -> Refusal | None:
    path = settings.keys.file("log").resolve()
    places = [facts.home.resolve()]
    url = settings.database_url.get_secret_value()
    if url.startswith("sqlite"):
        places.append(Path(urlsplit(url).path.removeprefix("/")).resolve().parent)
    return _refuse_if(
        any(path.is_relative_to(place) for place in places),
        "log-key-place",
        "the log's signing key is in the home folder, or beside the database",
        "keep it where neither a backup of the database nor of the home folder takes it along",
    )


def _refuse_http(settings: Settings) -> Refusal | None:
    urls = [*settings.public_urls, settings.token_issuer]
    beyond = [url for url in urls if url.startswith("http:") and urlsplit(url).hostname not in LOOPBACK]
    why = "a public URL is http beyond loopback"
    return _refuse_if(bool(beyond), "http-url", why, "serve it with TLS: https")


def _refuse_default_credentials(store: StoreSettings) -> Refusal | None:
    if store.access_key is None or store.secret_key is None:
        return None
    access, secret = store.access_key.get_secret_value(), store.secret_key.get_secret_value()
    known = secret.lower() in _EXAMPLE_SECRETS or secret == access or len(secret) < MIN_SECRET
    why = "the object store's credentials are default or trivial ones"
    return _refuse_if(known, "store-credentials", why, "change them")
