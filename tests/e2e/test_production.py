"""Production for real: ``broker serve`` on PostgreSQL, an S3 store and OpenBao, as the documents set it up.

The database's roles are made with the SQL of docs/operations/database.md, the rights in OpenBao with the
policy of docs/operations/configuration.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import urllib3
from psycopg import errors as pg_errors

from broker.client.sdk import Client
from broker.dev.seaweed import BUCKET, choose_ports
from broker.errors import IntegrityFailure, NotFound, Unavailable
from broker.keys import vault
from broker.keys.local import ALGORITHMS, KEK, create_key_file
from broker.runtime import SystemClock, SystemEntropy
from tests import seaweed as stores
from tests.e2e.running import MIB, PROGRAM, ROOT, Done, environment, noise, read_tree, until, write_tree
from tests.openbao import OpenBao, openbao
from tests.postgres import run, server_url, text_of

__all__ = ["openbao"]

pytestmark = pytest.mark.postgres

START_SECONDS = 60.0
STOP_SECONDS = 20.0
FILES = {"config.json": b"{}", "weights/one.bin": noise(3 * MIB + 5), "weights/two.bin": noise(MIB, 2)}


def documented_roles() -> tuple[list[str], list[str], str]:
    """Statements of the page about the database: for the owner, for the broker's role, for PostgreSQL 14."""
    page = (ROOT / "docs" / "operations" / "database.md").read_text()
    section = page[page.index("\n## Roles on PostgreSQL\n") :]
    owner, app = (
        [each.strip() for each in block.split(";") if each.strip()]
        for block in re.findall(r"^```sql\n(.*?)^```", section, flags=re.S | re.M)[:2]
    )
    revoke = re.search(r"`(REVOKE [^`]+)`", section)
    assert revoke
    return owner, app, revoke[1]


class Database:
    """A database with an owner, and the role that the broker runs as, both made as the page says."""

    def __init__(self) -> None:
        self.name = f"broker_test_{secrets.token_hex(6)}"
        self.password = secrets.token_hex(12)
        self.url = server_url().set(database=self.name)

    def url_of(self, role: str) -> str:
        return text_of(self.url.set(username=f"{self.name}_{role}", password=self.password))

    def _said(self, statement: str) -> str:
        for role in ("owner", "app"):
            statement = statement.replace(f"broker_{role}", f"{self.name}_{role}")
        statement = statement.replace("DATABASE broker ", f"DATABASE {self.name} ")
        return statement.replace(" LOGIN", f" LOGIN PASSWORD '{self.password}'")

    def create(self) -> None:
        owner, _, revoke = documented_roles()
        for statement in owner:
            run(self._said(statement))
        run(revoke, self.url)

    def make_app(self) -> None:
        """Only the role itself needs an administrator; the owner grants."""
        _, app, _ = documented_roles()
        for statement in map(self._said, app):
            if statement.startswith("CREATE ROLE"):
                run(statement)
            else:
                with psycopg.connect(self.url_of("owner"), autocommit=True) as connection:
                    connection.execute(statement)  # type: ignore[call-overload]

    def drop(self) -> None:
        run(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
        for role in ("app", "owner"):
            run(f"DROP ROLE IF EXISTS {self.name}_{role}")


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    made = Database()
    try:
        made.create()
        yield made
    finally:
        made.drop()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.RunningStore]:
    with stores.running(tmp_path_factory.mktemp("store")) as found:
        yield found


class Site:
    """One broker in production mode: its files, its settings, its server."""

    def __init__(self, folder: Path, *, database: Database, store: stores.RunningStore, bao: OpenBao) -> None:
        self.folder = folder
        self.database = database
        self.bao = bao
        self.port = choose_ports(("http",), entropy=SystemEntropy())["http"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = folder / "home"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "serve.out"
        for made in (self.home, folder / "keys", folder / "heads"):
            made.mkdir(mode=0o700)
        for use in ALGORITHMS:
            if use != KEK:
                path = folder / "keys" / f"{use}.json"
                create_key_file(path, use, dev=False, entropy=SystemEntropy(), now=SystemClock().now())
        self.kek = bao.make_key(f"site-{secrets.token_hex(4)}")
        self.role = bao.make_role(self.kek, bao.make_policy(self.kek, self.kek), folder)
        self.env = self._environment(store)

    def _environment(self, store: stores.RunningStore) -> dict[str, str]:
        return {
            "BROKER_PORT": str(self.port),
            "BROKER_PUBLIC_URLS": self.url,
            "BROKER_DATABASE_URL": self.database.url_of("app"),
            "BROKER_LOG_ORIGIN": "site.example/log",
            "BROKER_TREE_HEADS": str(self.folder / "heads"),
            "BROKER_STORE__ENDPOINT": store.settings.endpoint,
            "BROKER_STORE__BUCKET": BUCKET,
            "BROKER_STORE__ACCESS_KEY": store.settings.access_key,
            "BROKER_STORE__SECRET_KEY": store.settings.secret_key,
            "BROKER_KEYS__FOLDER": str(self.folder / "keys"),
            "BROKER_KEYS__CUSTODY": "vault",
            "BROKER_KEYS__VAULT__URL": self.bao.url,
            "BROKER_KEYS__VAULT__KEY": self.kek,
            "BROKER_KEYS__VAULT__CA_FILE": str(self.bao.ca_file),
            "BROKER_KEYS__VAULT__ROLE_ID": self.role.role_id,
            "BROKER_KEYS__VAULT__SECRET_ID_FILE": str(self.role.secret_id_file),
            "HOME": str(self.home),
            "NO_COLOR": "1",
        }

    def _environment_with(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        joined = {**self.env, **changes}
        return environment(**{name: value for name, value in joined.items() if value is not None})

    def run(self, *words: str, expect: int = 0, **changes: str | None) -> Done:
        """``broker WORDS`` with the site's settings, of which some are changed or (None) left out."""
        done = subprocess.run(
            [*PROGRAM, *words],
            env=self._environment_with(changes),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=START_SECONDS,
        )
        found = Done(code=done.returncode, data=done.stdout, err=done.stderr.decode())
        assert found.code == expect, f"exit {found.code}: {found.out}{found.err}"
        return found

    def start(self, **changes: str | None) -> None:
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                [*PROGRAM, "serve"],
                env=self._environment_with(changes),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: self.status("/readyz") == 200 or self._ended(), what="/readyz", seconds=START_SECONDS)
        assert not self._ended(), self.log.read_text()[-3000:]

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def status(self, path: str) -> int | None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", self.url + path, retries=False, timeout=10).status
        return None

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """One query as the database's administrator."""
        with psycopg.connect(text_of(self.database.url)) as connection:
            return connection.execute(statement).fetchall()  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class People:
    """Who has a profile."""

    ana: Client
    pub: Client
    eng: Client
    eve: Client


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, database: Database, store: stores.RunningStore, openbao: OpenBao
) -> Iterator[Site]:
    """A site that is migrated by the owner, before anybody is enrolled."""
    made = Site(tmp_path_factory.mktemp("site"), database=database, store=store, bao=openbao)
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def people(site: Site) -> Iterator[People]:
    """Everybody enrolled, two administrators; afterwards the broker runs without any ``unsafe_``."""
    migrated = site.run(
        "admin", "migrate", "--first-admin", "ana", "-o", "json",
        BROKER_DATABASE_URL=site.database.url_of("owner"),
    )  # fmt: skip
    site.database.make_app()
    refused = site.run("serve", expect=2)
    assert "single-admin" in refused.err
    site.start(BROKER_UNSAFE_SINGLE_ADMIN="true")
    ana = Client.login(site.url, migrated.json()["enrolment_code"], folder=site.folder / "ana")
    ana.admin.add_principal("ben", roles=["admin"])
    found = People(
        ana=ana,
        pub=_add(site, ana, "pub", roles=["publisher"], groups=["acme"]),
        eng=_add(site, ana, "eng", groups=["acme"]),
        eve=_add(site, ana, "eve"),
    )
    assert site.stop() == 0
    site.start()
    yield found
    for each in (found.ana, found.pub, found.eng, found.eve):
        each.close()


def _add(site: Site, ana: Client, name: str, **members: Any) -> Client:
    code = ana.admin.add_principal(name, **members)["enrolment_code"]
    return Client.login(site.url, code, folder=site.folder / name)


@pytest.fixture(scope="module")
def published(people: People, site: Site) -> str:
    people.pub.publish(write_tree(site.folder / "tree", FILES), "acme/model@v1")
    return "acme/model@v1"


def _entries(site: Site) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in site.sql("SELECT entry FROM ledger_entries ORDER BY idx")]


def test_production_serves_what_was_published(
    site: Site, people: People, published: str, tmp_path: Path
) -> None:
    assert (site.status("/livez"), site.status("/readyz")) == (200, 200)
    people.eng.fetch(published, tmp_path / "out", purpose="evaluation")
    assert read_tree(tmp_path / "out") == FILES
    with pytest.raises(NotFound):
        people.eve.fetch(published, tmp_path / "eve")
    entries = _entries(site)
    assert {"grant", "commit"} <= {each["type"] for each in entries}
    assert list((site.folder / "heads").iterdir())


def test_every_version_key_is_wrapped_by_openbao(site: Site, published: str) -> None:
    wraps = [bytes(row[0]) for row in site.sql("SELECT wrapped_key FROM versions")]
    assert wraps
    assert {(wrap[0], len(wrap)) for wrap in wraps} == {(2, vault.WRAPPED_SIZE)}


def test_a_rotation_in_openbao_leaves_everything_readable(
    site: Site, people: People, published: str, tmp_path: Path
) -> None:
    site.bao.admin("POST", f"transit/keys/{site.kek}/rotate")
    people.pub.publish(site.folder / "tree" / "config.json", "acme/model@v2")
    for version in ("v1", "v2"):
        people.eng.fetch(f"acme/model@{version}", tmp_path / version)
    assert read_tree(tmp_path / "v1") == FILES
    numbers = site.sql("SELECT substr(wrapped_key, 2, 4) FROM versions ORDER BY name")
    assert {bytes(row[0]) for row in numbers} == {b"\0\0\0\x01", b"\0\0\0\x02"}


def test_without_its_rights_in_openbao_the_broker_opens_nothing(
    site: Site, people: People, published: str, tmp_path: Path
) -> None:
    try:
        site.bao.admin("PUT", f"sys/policies/acl/{site.kek}", {"policy": 'path "none" {}'})
        with pytest.raises(Unavailable):
            people.eng.fetch(published, tmp_path / "out")
        assert not (tmp_path / "out" / "config.json").exists()
    finally:
        site.bao.make_policy(site.kek, site.kek)
    people.eng.fetch(published, tmp_path / "out")
    assert read_tree(tmp_path / "out") == FILES


def test_a_wrap_that_was_changed_opens_nothing(
    site: Site, people: People, published: str, tmp_path: Path
) -> None:
    """The row's MAC notices it first; what the wrap is bound to is the contract suite's."""
    was = site.sql("SELECT wrapped_key FROM versions WHERE name = 'model' AND version = 'v1'")[0][0]
    statement = "UPDATE versions SET wrapped_key = %s WHERE name = 'model' AND version = 'v1'"
    with psycopg.connect(text_of(site.database.url), autocommit=True) as connection:
        connection.execute(statement, [bytes(was[:-1]) + bytes([was[-1] ^ 1])])
        with pytest.raises(IntegrityFailure):
            people.eng.fetch(published, tmp_path / "out")
        connection.execute(statement, [was])
    people.eng.fetch(published, tmp_path / "out")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET entry = entry",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
        "UPDATE ledger_hashes SET hash = hash",
        "DELETE FROM ledger_heads",
        "DELETE FROM ledger_records",
        "DELETE FROM ledger_evidence",
        "DELETE FROM ledger_tail",
        "DELETE FROM principals",
        "DROP TABLE replays",
        "ALTER TABLE ledger_entries DISABLE TRIGGER ALL",
        "CREATE TABLE more (x int)",
    ],
)
def test_the_documented_role_changes_no_history(site: Site, people: People, statement: str) -> None:
    with (
        psycopg.connect(site.database.url_of("app")) as connection,
        pytest.raises(pg_errors.InsufficientPrivilege),
    ):
        connection.execute(statement)  # type: ignore[call-overload]


# -- what keeps it from starting ----------------------------------------------------------------------------


def _refused(site: Site, *said: str, **changes: str | None) -> None:
    port = str(choose_ports(("http",), entropy=SystemEntropy())["http"])
    done = site.run("serve", expect=2, **{"BROKER_PORT": port, **changes})
    for each in said:
        assert each in done.err
    for secret in (site.database.password, site.bao.root, site.role.secret_id_file.read_text()):
        assert secret not in done.err


def test_it_names_everything_that_keeps_it_from_starting(site: Site, people: People, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    shutil.copytree(site.folder / "keys", keys)
    create_key_file(keys / "kek.json", KEK, dev=True, entropy=SystemEntropy(), now=SystemClock().now())
    without = {name: None for name in site.env if "__VAULT__" in name}
    _refused(
        site, "file-kek", "dev-keys", "ledger-rights", "no-tree-head-store", "http-url",
        BROKER_KEYS__FOLDER=str(keys),
        BROKER_KEYS__CUSTODY="file",
        BROKER_DATABASE_URL=site.database.url_of("owner"),
        BROKER_TREE_HEADS=None,
        BROKER_ISSUER="http://broker.example",
        **without,
    )  # fmt: skip


def test_it_does_not_start_with_the_log_key_at_home(site: Site, people: People) -> None:
    _refused(site, "log-key-place", HOME=str(site.folder))


def test_it_does_not_start_with_a_key_that_could_leave_openbao(site: Site, people: People) -> None:
    name = site.bao.make_key(f"{site.kek}-exportable", exportable=True)
    site.bao.make_policy(site.kek, name)
    try:
        _refused(site, "exportable must be off", BROKER_KEYS__VAULT__KEY=name)
    finally:
        site.bao.make_policy(site.kek, site.kek)


def test_it_does_not_start_without_its_rights_in_openbao(site: Site, people: People) -> None:
    _refused(site, "Vault refuses the broker", BROKER_KEYS__VAULT__KEY="of-somebody-else")


def test_it_stops_when_told(site: Site, people: People, published: str, tmp_path: Path) -> None:
    assert site.stop() == 0
    site.start()
    people.eng.fetch(published, tmp_path / "out")
    assert read_tree(tmp_path / "out") == FILES
