"""What production refuses: settings and facts that would make the promises hollow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from broker.config.parts import LOOPBACK, StoreSettings
from broker.config.settings import Settings
from broker.errors import ConfigurationError

MIN_SECRET: Final = 16
"""Characters below which a store's secret key is taken for a default one."""
_EXAMPLE_SECRETS: Final = frozenset({"wjalrxutnfemi/k7mdeng/bpxrficyexamplekey"})
"""Long secrets of vendors' examples; the known short ones (`minioadmin`, ...) are below MIN_SECRET."""


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
            "keep it in Vault or OpenBao (keys.custody)",
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
            settings.tree_heads is None and settings.heads_store is None,
            "no-tree-head-store",
            "no store outside the database remembers tree heads",
            "set tree_heads or heads_store",
        ),
        _refuse_default_credentials(settings.store),
        _refuse_default_credentials(settings.heads_store) if settings.heads_store else None,
        _refuse_default_credentials(settings.log_store) if settings.log_store else None,
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
    paths = [path.resolve() for path in (settings.keys.file("log"), *settings.keys.log_also)]
    places = [facts.home.resolve()]
    url = settings.database_url.get_secret_value()
    if url.startswith("sqlite"):
        places.append(Path(urlsplit(url).path.removeprefix("/")).resolve().parent)
    return _refuse_if(
        any(path.is_relative_to(place) for path in paths for place in places),
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
