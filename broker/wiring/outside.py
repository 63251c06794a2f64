"""What the settings name beyond this process and its database: stores, custody, witnesses."""

from __future__ import annotations

from typing import Final

from broker.archive import library
from broker.archive.parts import ParquetParts
from broker.canonical import Json
from broker.config import Settings, StoreSettings, VaultSettings
from broker.db.cosignatures import CosignatureStore
from broker.db.engine import open_engine
from broker.errors import ConfigurationError
from broker.keys.vault import VaultCustody
from broker.keys.vault_server import AppRole, Login, TokenFile, VaultServer
from broker.ledger.columns import COLUMNS, SORTED_BY
from broker.ports import ArchiveFormat, TreeHeadStore
from broker.services.cosigned import Cosigned, parse_policy
from broker.services.house import LogIdentity, PublishedLog
from broker.storage.heads import FolderHeads, S3Heads
from broker.storage.presign import Credentials, CredentialSource, Presigner
from broker.storage.s3 import S3Store, chain_credentials
from broker.storage.site import S3LogSite
from broker.witnesses import HttpWitness

_HEADS_READ_SECONDS: Final = 3.0
"""How long the store of tree heads may be silent in one try: a request may be waiting for it."""


def open_vault(vault: VaultSettings) -> VaultCustody:
    """The custody in Vault or OpenBao; nothing is sent yet.

    Raises:
        ConfigurationError: The settings name no login, or the file of authorities cannot be read.
    """
    login: Login
    if vault.token_file is not None:
        login = TokenFile(path=vault.token_file)
    elif vault.role_id is not None and vault.secret_id_file is not None:
        login = AppRole(role_id=vault.role_id, secret_id_file=vault.secret_id_file, mount=vault.approle_mount)
    else:
        raise ConfigurationError("there is no login for Vault")
    server = VaultServer(
        vault.url,
        login=login,
        namespace=vault.namespace,
        ca_file=vault.ca_file,
        timeout=vault.timeout,
        attempts=vault.attempts,
    )
    return VaultCustody(server, key=vault.key, mount=vault.mount)


def open_heads(settings: Settings, origin: str) -> TreeHeadStore | None:
    """The outside store of one origin's heads, in a folder or a bucket; None where the settings name none."""
    if settings.tree_heads is not None:
        return FolderHeads(settings.tree_heads, origin=origin)
    place = settings.heads_store
    if place is None:
        return None
    store = S3Store(endpoint=place.endpoint, **_common(place), attempts=2, read_seconds=_HEADS_READ_SECONDS)
    return S3Heads(store, origin=origin)


def open_log_site(settings: Settings) -> PublishedLog | None:
    """Where the log is published as static files; None where the settings name no place."""
    place = settings.log_store
    if place is None:
        return None
    store = S3Store(endpoint=place.endpoint, **_common(place))
    site = S3LogSite(store, prefix=place.prefix)
    archive = open_archive() if place.archive else None
    return PublishedLog(site=site, entries=place.entries, every=place.every, archive=archive)


def open_archive() -> ArchiveFormat:
    """How files of the log's archive are written and read.

    Raises:
        ConfigurationError: The extra that it needs is not installed.
    """
    library("pyarrow.parquet")
    return ParquetParts(COLUMNS, sorted_by=SORTED_BY)


def open_witnessed(settings: Settings, log: LogIdentity) -> Cosigned | None:
    """The witnesses that the settings name; None where they name none.

    Raises:
        ConfigurationError: The policy cannot be read, or is not one for this log.
    """
    path = settings.witness_policy
    if path is None:
        return None
    try:
        policy = parse_policy(path.read_bytes(), log)
    except OSError as exc:
        raise ConfigurationError(f"the witness policy {path} cannot be read", why=exc.strerror) from exc
    return Cosigned(
        policy=policy,
        witnesses={each.key.vkey: HttpWitness(each.url) for each in policy.witnesses if each.url},
        rows=CosignatureStore(open_engine(settings.database_url.get_secret_value(), pool_size=2)),
        max_lag=int(settings.witness_max_lag * 1000),
    )


def open_store(settings: Settings) -> Json:
    """The members of a house that have to do with the object store."""
    store = settings.store
    common = _common(store)
    presigner = Presigner(endpoint=store.client_endpoint, **common)
    return {
        "store": S3Store(endpoint=store.endpoint, **common),
        "presigner": presigner,
        "store_hosts": (presigner.host,),
    }


def _common(store: StoreSettings) -> Json:
    return {
        "region": store.region,
        "bucket": store.bucket,
        "credentials": _credentials(store),
        "path_style": store.path_style,
    }


def _credentials(store: StoreSettings) -> CredentialSource:
    if store.access_key is not None and store.secret_key is not None:
        fixed = Credentials(
            access_key=store.access_key.get_secret_value(), secret_key=store.secret_key.get_secret_value()
        )

        return lambda: fixed
    return chain_credentials()
