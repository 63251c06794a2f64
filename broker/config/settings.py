"""What an operator sets: environment > TOML file > default."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from broker import limits
from broker.config.forward import ForwardSettings
from broker.config.parts import (
    LOOPBACK,
    AbsolutePath,
    BaseUrl,
    KeySettings,
    LogStoreSettings,
    StoreSettings,
    Urls,
)
from broker.errors import ConfigurationError

CONFIG_VARIABLE: Final = "BROKER_CONFIG"
PREFIX: Final = "BROKER_"


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
    heads_max_lag: float = Field(default=10.0, ge=0.0, le=300.0)
    """Seconds for which the store of tree heads may fail before nothing more is released."""
    witness_policy: AbsolutePath | None = None
    """File (C2SP tlog-policy) of the witnesses that are asked to cosign tree heads, and of their quorum."""
    witness_max_lag: float = Field(default=60.0, ge=1.0, le=60.0)
    """Seconds for which an entry may go without a cosigned head that covers it; then no further lease."""
    lease_window: int = Field(
        default=limits.DEFAULT_LEASE_WINDOW, ge=limits.SEGMENT_SIZE, le=limits.MAX_LEASE_BYTES
    )
    """Plaintext bytes that one lease opens."""
    evidence_retention: int = Field(default=0, ge=0, le=36_500)
    """Days for which evidence may not be erased."""
    nonces_required: bool | None = None
    """Every signed request needs a nonce of this server; unless given, in production yes, in dev mode no."""
    unsafe_single_admin: bool = False
    """Protected changes may be made by one administrator alone."""
    store: StoreSettings
    """The object store."""
    heads_store: StoreSettings | None = None
    """A bucket that remembers every signed tree head, instead of the folder `tree_heads`."""
    log_store: LogStoreSettings | None = None
    """A bucket to which the log is published as static files."""
    keys: KeySettings
    """Where the broker's keys are."""
    forward: tuple[ForwardSettings, ...] = ()
    """Who is told of every entry by `broker forward`."""

    @model_validator(mode="after")
    def _check_dev(self) -> Self:
        if self.mode == "dev" and self.host not in LOOPBACK:
            raise ValueError("in dev mode the server listens on loopback only")
        if self.tree_heads is not None and self.heads_store is not None:
            raise ValueError("either tree_heads or heads_store")
        if len({each.name for each in self.forward}) != len(self.forward):
            raise ValueError("two destinations of forwarding have one name")
        return self

    @property
    def token_issuer(self) -> str:
        """The issuer identifier: given, or the first public URL."""
        return self.issuer or self.public_urls[0]

    @property
    def needs_nonces(self) -> bool:
        """Whether signed requests need a nonce: given, or as the mode has it."""
        return self.mode == "production" if self.nonces_required is None else self.nonces_required

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
    stores = [found.get("store"), found.get("heads_store"), found.get("log_store")]
    secret = "database_url" in found or any(isinstance(s, dict) and "secret_key" in s for s in stores)
    if secret and stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(
            f"the settings file {named} has secrets and can be read by others", next=f"chmod 600 {named}"
        )
