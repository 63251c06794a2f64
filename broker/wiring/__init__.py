"""The one place where rules and hands are joined to a house."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from broker import jose, limits, sandbox
from broker.canonical import Json
from broker.config import Facts, Settings, check_production
from broker.db import migrate
from broker.db.engine import open_engine, role_may_change_ledger
from broker.db.ledger_store import LedgerStore
from broker.discovery import IssuerKeys
from broker.errors import BrokerError, ConfigurationError
from broker.keys.local import (
    LOG,
    KeyPaths,
    KeyRing,
    LogKey,
    create_key_file,
    create_missing_keys,
    load_key_ring,
)
from broker.keys.vault import VaultCustody
from broker.ledger import merkle, note
from broker.model import Principal
from broker.policy import sandbox as policy_check
from broker.policy.bundle import Bundle, build_bundle, bundle_bytes
from broker.runtime import SystemClock, SystemEntropy
from broker.services import erasing, folding, founding, log_keys, log_names, succession
from broker.services.heads import HeadKeeper, check_extends
from broker.services.house import House, LogIdentity, TokenKeys
from broker.wiring.outside import open_heads, open_log_site, open_store, open_vault, open_witnessed


class MerkleRules:
    """The Merkle rules as the database needs them: frontiers as opaque bytes."""

    def leaf_hash(self, data: bytes) -> bytes:
        """The leaf hash (32 bytes) of an entry."""
        return merkle.leaf_hash(data)

    def empty(self) -> bytes:
        """The frontier of the tree without leaves."""
        return merkle.Frontier().to_bytes()

    def size_root(self, frontier: bytes) -> tuple[int, bytes]:
        """Size and root (32 bytes) of a frontier's tree."""
        found = merkle.Frontier.from_bytes(frontier)
        return found.size, found.root()

    def extend(
        self, frontier: bytes, leaf_hashes: Iterable[bytes]
    ) -> tuple[bytes, bytes, list[tuple[int, int, bytes]]]:
        """(frontier, root, completed stored nodes) with these leaves added."""
        grown, completed = merkle.Frontier.from_bytes(frontier).extend(leaf_hashes)
        return grown.to_bytes(), grown.root(), list(completed)


def check_policy(files: Mapping[str, bytes]) -> Bundle:
    """A bundle of unknown origin, parsed and validated in a capped child process first (I13).

    Raises:
        InvalidRequest: It is not valid, or could not be parsed within the caps.
    """
    bundle = build_bundle(files)
    answer = sandbox.run_capped(
        policy_check.MODULE,
        bundle_bytes(bundle),
        seconds=limits.POLICY_PARSE_SECONDS,
        memory=limits.POLICY_PARSE_MEMORY,
    )
    policy_check.parse_report(answer, bundle)
    return bundle


def policy_folder(settings: Settings) -> Path:
    """Where the policies are that a new log begins with: the operator's, or the shipped ones."""
    if settings.policies is not None:
        return settings.policies
    shipped = Path(str(resources.files("broker"))) / "_policies"
    return shipped if shipped.is_dir() else Path(__file__).resolve().parents[2] / "policies"


def read_policies(folder: Path) -> dict[str, bytes]:
    """The files of a policy folder by name, not those of its sub-folders (its tests).

    Raises:
        ConfigurationError: The folder cannot be read.
    """
    try:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    except OSError as exc:
        raise ConfigurationError(f"the policies in {folder} cannot be read", why=exc.strerror) from exc


def key_paths(settings: Settings) -> KeyPaths:
    """Where the settings say that the key files are."""
    keys = settings.keys
    return KeyPaths(
        kek=keys.kek,
        log=keys.file("log"),
        token=keys.token,
        row_mac=keys.file("row_mac"),
        nonce=keys.file("nonce"),
        log_also=keys.log_also,
    )


@dataclass(frozen=True, kw_only=True)
class Wired:
    """A house, and what has to be closed when it is left."""

    house: House
    ledger: LedgerStore
    keys: KeyRing = field(repr=False)
    close: Callable[[], None]


def check_start(settings: Settings) -> None:
    """Everything that :func:`build_house` checks, before any worker is started, so that it is said once.

    Raises:
        As :func:`build_house`.
    """
    wired = _open(settings)
    wired.close()


def build_house(settings: Settings) -> House:
    """Join everything that the settings name. The database must be migrated and the log founded.

    Raises:
        ConfigurationError: A setting, key or file is missing or wrong, or production refuses to start.
        RollbackDetected: The log does not extend the newest tree head that was published.
        IntegrityFailure: The stored tail does not hold.
    """
    return _open(settings).house


def open_house(settings: Settings) -> Wired:
    """As :func:`build_house`, for a program that does not serve and closes it again.

    Raises:
        As :func:`build_house`.
    """
    return _open(settings)


def audit_rows(settings: Settings, *, on_entries: folding.OnEntries | None = None) -> folding.Folded:
    """Every stored row compared with the log: see :func:`broker.services.folding.audit_rows`.

    Raises:
        As :func:`build_house`, and IntegrityFailure when the log itself is not what was written.
    """
    wired = _open(settings)
    try:
        return folding.audit_rows(wired.house, on_entries=on_entries)
    finally:
        wired.close()


def begin_new_origin(settings: Settings, *, reason: str, force: bool) -> Json:
    """The log goes on under the ``log_origin`` of the settings: see :mod:`broker.services.succession`.

    Raises:
        As :func:`~broker.services.succession.succeed`; ConfigurationError when the database has no ledger.
    """
    wired = _join(settings)
    try:
        if not founding.is_founded(wired.house):
            raise ConfigurationError("the database has no ledger yet")
        with wired.house.ledger.view() as view:
            former = log_names.current_name(view).origin
        heads = open_heads(settings, former)
        return succession.succeed(wired.house, heads, reason=reason, force=force)
    finally:
        wired.close()


def rotate_log_key(settings: Settings) -> Json:
    """The log goes on under the key in ``keys.log_also``: see :func:`broker.services.log_keys.rotate`."""
    wired = _open(settings)
    try:
        return log_keys.rotate(wired.house)
    finally:
        wired.close()


def create_log_key(path: Path, *, origin: str) -> str:
    """Make one more key file for the log; returns the key as clients pin it.

    Args:
        path: The file; its folder is there.
        origin: The log's name.

    Raises:
        ConfigurationError: The file is there, or cannot be written; or this is no name of a log.
    """
    note.check_origin(origin)
    made = create_key_file(path, LOG, dev=False, entropy=SystemEntropy(), now=SystemClock().now())
    return note.vkey(origin, LogKey(made.secret).public)


def sweep_evidence(settings: Settings) -> tuple[int, int]:
    """Delete what recorded erasures speak of: see :func:`broker.services.erasing.sweep`."""
    wired = _open(settings)
    try:
        return erasing.sweep(wired.house)
    finally:
        wired.close()


def _open(settings: Settings) -> Wired:
    wired = _join(settings)
    try:
        if not founding.is_founded(wired.house):
            raise ConfigurationError(
                "the database has no ledger yet", next="broker admin migrate --first-admin ID"
            )
        succession.check_name(wired.house)
        log_keys.check_keys(wired.house)
        _check_mode(settings, wired)
        if isinstance(wired.keys.custody, VaultCustody):
            wired.keys.custody.check()
        check_extends(wired.house)
    except BrokerError:
        wired.close()
        raise
    return wired


def _join(settings: Settings) -> Wired:
    clock, entropy = SystemClock(), SystemEntropy()
    vault = open_vault(settings.keys.vault) if settings.keys.vault is not None else None
    keys = load_key_ring(key_paths(settings), entropy=entropy, custody=vault)
    ledger = LedgerStore(
        open_engine(settings.database_url.get_secret_value()),
        tree=MerkleRules(),
        integrity_key=keys.row_mac,
        clock=clock,
    )
    house = House(
        ledger=ledger,
        clock=clock,
        entropy=entropy,
        custody=keys.custody,
        issuer_keys=IssuerKeys(),
        log=replace(
            _log_identity(settings, keys.log),
            also=tuple(_log_identity(settings, key) for key in keys.log_also),
        ),
        token_keys=_token_keys(keys.tokens),
        nonce_key=keys.nonce,
        check_policy=check_policy,
        issuer=settings.token_issuer,
        public_urls=settings.public_urls,
        heads=open_heads(settings, settings.log_origin),
        log_site=open_log_site(settings),
        lease_window=settings.lease_window,
        evidence_retention=settings.evidence_retention,
        nonces_required=settings.needs_nonces,
        protected_changes=settings.mode == "dev" or settings.unsafe_single_admin,
        **open_store(settings),
    )
    keeper = HeadKeeper(house, expect=ledger.expect, max_lag=int(settings.heads_max_lag * 1000))
    witnessed = open_witnessed(settings, house.log)
    house = replace(house, keep_head=keeper.keep, witnessed=witnessed)

    def close() -> None:
        ledger.close()
        if witnessed is not None:
            witnessed.rows.close()
        if vault is not None:
            vault.close()

    return Wired(house=house, ledger=ledger, keys=keys, close=close)


def _log_identity(settings: Settings, key: LogKey) -> LogIdentity:
    origin = settings.log_origin
    return LogIdentity(origin=origin, vkey=note.vkey(origin, key.public), sign=key.sign)


def _token_keys(keys: tuple[jose.PrivateKey, ...]) -> TokenKeys:
    current = keys[0]
    return TokenKeys(current=current, kid=current.jkt, accepted={key.jkt: key.jwk for key in keys})


def _check_mode(settings: Settings, wired: Wired) -> None:
    if settings.mode == "dev":
        return
    engine = open_engine(settings.database_url.get_secret_value())
    try:
        may_change = role_may_change_ledger(engine)
    finally:
        engine.dispose()
    with wired.house.ledger.view() as view:
        people = view.list(Principal)
    facts = Facts(
        home=Path.home(),
        dev_keys=wired.keys.dev,
        equal_keys=False,  # load_key_ring has refused equal keys by now
        can_change_ledger=may_change,
        admins=sum(1 for row in people if "admin" in row.roles and not row.disabled),
    )
    check_production(settings, facts)


def migrate_and_found(settings: Settings, first_admin: str | None = None) -> str | None:
    """Bring the database to the newest schema and, if it has no log, begin it.

    Args:
        first_admin: Id of the administrator that a log without principals gets.

    Returns:
        The one-time code of the first administrator, when one was added now.
    """
    migrate.upgrade(settings.database_url.get_secret_value())
    wired = _join(settings)
    try:
        wired.ledger.initialize()
        bundle = check_policy(read_policies(policy_folder(settings)))
        founding.found(wired.house, bundle=bundle, mode=settings.mode)
        return founding.first_admin(wired.house, first_admin) if first_admin else None
    finally:
        wired.close()


def seed_admin(settings: Settings, key: jose.PrivateKey) -> Json:
    """The embedded stack's first administrator, ``user:admin``, with a key that is at hand.

    Running it again is fine: an administrator that is there is kept.

    Returns:
        What its client profile needs: ``principal``, ``server``, ``log``, ``store_hosts``.
    """
    wired = _join(settings)
    house = wired.house
    try:
        with house.ledger.view() as view:
            known = view.find(Principal, "user:admin")
        if known is None:
            founding.bind_first_key(house, "admin", key)
        return {
            "principal": "user:admin",
            "server": house.public_urls[0],
            "issuer": house.issuer,
            "log": {"origin": house.log.origin, "vkey": house.log.vkey},
            "store_hosts": list(house.store_hosts),
        }
    finally:
        wired.close()


def create_keys(folder: Path, *, kek: bool = True) -> list[Path]:
    """Make the key files that ``folder`` lacks, for production; returns those that were made.

    Args:
        folder: Made with mode 0700 if it is not there.
        kek: Also a key-encryption key; production keeps that one somewhere else.

    Raises:
        ConfigurationError: One cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = KeyPaths.in_folder(folder)
    wanted = paths if kek else replace(paths, kek=())
    return create_missing_keys(wanted, dev=False, entropy=SystemEntropy(), now=SystemClock().now())
