"""The schema, its migrations, and how the database is opened."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from broker.db import (
    LedgerStore,
    current_revision,
    head_revision,
    open_engine,
    role_may_change_ledger,
    upgrade,
)
from broker.db.cosignatures import CosignatureStore
from broker.db.cursors import CursorStore
from broker.db.engine import BUSY_SECONDS, parse_database_url
from broker.db.tables import METADATA
from broker.errors import ConfigurationError, IntegrityFailure, LedgerUnavailable
from broker.model import Principal
from broker.runtime import SystemClock
from tests import postgres
from tests.databases import (
    INTEGRITY_KEY,
    append_together,
    check_ledger,
    database_url,  # noqa: F401 - a fixture
    draft,
    entry,
    intruder,  # noqa: F401 - a fixture
    open_store,
    proof,
    request,
    sample_rows,
    store,  # noqa: F401 - a fixture
)
from tests.postgres import migrated_postgres_url, postgres_url  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "operations" / "database.md"


def test_the_migrations_make_the_schema_that_the_program_uses(database_url: str) -> None:
    engine = open_engine(database_url, writes=True)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert current_revision(engine) == head_revision()
    engine.dispose()


def start_upgrade(url: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from broker.db import upgrade; print('ready', flush=True); "
        "sys.stdin.readline(); upgrade(sys.argv[1])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_upgrades_may_run_in_parallel(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path / 'b.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    running = [start_upgrade(url) for _ in range(4)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, errors
    assert upgrade(url) == head_revision()
    made = open_store(url)
    made.initialize()
    assert check_ledger(made) == 0
    made.close()


def test_first_connections_may_be_made_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []
    for at in range(60):
        url, together = f"sqlite:///{tmp_path / f'{at}.db'}", threading.Barrier(6)

        def connect(url: str, together: threading.Barrier) -> None:
            engine = open_engine(url, writes=True, pool_size=1)
            together.wait()
            try:
                with engine.begin() as connection:
                    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (a)")
            except Exception as exc:
                failures.append(exc)
            engine.dispose()

        threads = [threading.Thread(target=connect, args=(url, together)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_schema_of_another_version_is_refused(database_url: str, intruder) -> None:
    with intruder.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError):
        upgrade(database_url)


def test_a_database_without_a_schema_is_unavailable(tmp_path: Path) -> None:
    made = open_store(f"sqlite:///{tmp_path / 'empty.db'}")
    assert current_revision(made._readers) is None
    with pytest.raises(LedgerUnavailable):
        made.initialize()
    with pytest.raises(LedgerUnavailable):
        made.append(draft())
    with pytest.raises(LedgerUnavailable), made.view():
        pass
    made.close()


def test_nothing_is_appended_or_seen_before_the_ledger_begins(database_url: str) -> None:
    made = open_store(database_url)
    with pytest.raises(IntegrityFailure):
        made.append(draft())
    with pytest.raises(IntegrityFailure), made.view():
        pass
    for _ in range(2):
        made.initialize()
    assert made.append(draft()).index == 0
    made.initialize()
    assert check_ledger(made) == 1
    made.close()


@pytest.mark.parametrize(
    "url",
    ["mysql://h/db", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "no url"],
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_engine(url)


def test_sqlite_is_durable_on_every_connection(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    upgrade(f"sqlite:///{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    for writes in (False, True):
        engine = open_engine(f"sqlite:///{path}", writes=writes)
        connections = [engine.connect() for _ in range(3)]
        for connection in connections:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
            }
            assert pragmas == {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": BUSY_SECONDS * 1000,
                "query_only": 0 if writes else 1,
            }
            connection.close()
        engine.dispose()


def test_statements_that_fail_do_not_show_their_parameters(store) -> None:
    with pytest.raises(LedgerUnavailable) as caught, store._snapshot() as connection:
        connection.execute(text("SELECT * FROM nothing WHERE secret = :secret"), {"secret": "hunter2"})
    assert "hunter2" not in str(caught.value.__cause__)


@pytest.mark.postgres
def test_postgresql_that_may_lose_commits_is_refused(migrated_postgres_url: str) -> None:
    url = make_url(migrated_postgres_url)
    made = open_store(migrated_postgres_url)
    made.initialize()
    made.close()
    postgres.run(f"ALTER DATABASE {url.database} SET synchronous_commit = off")
    with pytest.raises(ConfigurationError, match="does not keep"):
        made.initialize()
    with pytest.raises(LedgerUnavailable):
        made.append(draft())
    postgres.run(f"ALTER DATABASE {url.database} SET synchronous_commit = on")
    assert made.append(draft()).index == 0
    made.close()


def connect_many_times(made: LedgerStore) -> None:
    for _ in range(200):  # the server's processes learn of a new setting one after the other
        made.initialize()
        made.close()


@pytest.mark.postgres
def test_postgresql_without_fsync_is_refused(migrated_postgres_url: str) -> None:
    made = open_store(migrated_postgres_url)
    postgres.run("ALTER SYSTEM SET fsync = off")
    try:
        postgres.run("SELECT pg_reload_conf()")
        with pytest.raises(ConfigurationError, match="does not keep"):
            connect_many_times(made)
    finally:
        postgres.run("ALTER SYSTEM RESET fsync")
        postgres.run("SELECT pg_reload_conf()")
        made.close()


# -- who may change the ledger ---------------------------------------------------------------------


REFUSED = [
    "UPDATE ledger_entries SET entry = leaf_hash",
    "DELETE FROM ledger_entries",
    "UPDATE ledger_hashes SET hash = hash",
    "DELETE FROM ledger_hashes",
    "UPDATE ledger_heads SET note = 'x'",
    "DELETE FROM ledger_heads",
    "UPDATE ledger_cosignatures SET line = 'x'",
    "DELETE FROM ledger_cosignatures",
    "UPDATE ledger_records SET body = body",
    "DELETE FROM ledger_records",
    "UPDATE ledger_evidence SET body = body",
    "DELETE FROM ledger_tail",
]
REFUSED_BY_SQLITE = [
    "INSERT OR REPLACE INTO ledger_entries SELECT idx, leaf_hash, leaf_hash FROM ledger_entries",
    "INSERT OR REPLACE INTO ledger_hashes SELECT level, idx, x'00' FROM ledger_hashes",
    "INSERT OR REPLACE INTO ledger_heads SELECT size, 'other' FROM ledger_heads",
    "INSERT OR REPLACE INTO ledger_cosignatures SELECT size, witness, 'x', time FROM ledger_cosignatures",
    "INSERT OR REPLACE INTO ledger_records SELECT digest, x'00' FROM ledger_records",
]
REFUSED_BY_POSTGRESQL = [
    "TRUNCATE ledger_entries",
    "TRUNCATE ledger_hashes",
    "TRUNCATE ledger_heads",
    "TRUNCATE ledger_cosignatures",
    "TRUNCATE ledger_records",
    "TRUNCATE ledger_evidence",
    "TRUNCATE ledger_tail",
]


def test_triggers_refuse_changes_of_the_ledger(store, database_url: str) -> None:
    full = replace(entry(), record=b"r", evidence=b"e", evidence_salt=b"s" * 32)
    append_together(store, [draft(entries=(full,)), *(draft() for _ in range(256))])
    store.keep_head(1, "note")
    cosignatures = CosignatureStore(open_engine(database_url))
    cosignatures.keep(1, witness="w", line="a line", time=1)
    cosignatures.close()
    plain = create_engine(parse_database_url(database_url))
    dialect = REFUSED_BY_SQLITE if plain.dialect.name == "sqlite" else REFUSED_BY_POSTGRESQL
    for statement in (*REFUSED, *dialect):
        with plain.connect() as connection, pytest.raises(DBAPIError, match="insert-only"):
            connection.execute(text(statement))
    with plain.begin() as connection:
        assert connection.execute(text("DELETE FROM ledger_evidence")).rowcount == 1  # an erasure
    plain.dispose()
    assert check_ledger(store) == 257


def test_whoever_writes_the_sqlite_file_may_change_it(tmp_path: Path) -> None:
    assert role_may_change_ledger(open_engine(f"sqlite:///{tmp_path / 'b.db'}"))


@pytest.mark.postgres
def test_the_documented_role_can_do_the_work_and_no_more(migrated_postgres_url: str) -> None:
    """Runs the SQL of the operations guide."""
    database = make_url(migrated_postgres_url)
    blocks = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "broker_app" in block]
    role = f"{database.database}_app"
    statements = found.replace("broker_app", role).replace("DATABASE broker", f"DATABASE {database.database}")
    owner = open_engine(migrated_postgres_url)
    assert role_may_change_ledger(owner)
    owner.dispose()
    try:
        for statement in filter(str.strip, statements.split(";")):
            postgres.run(statement, database)
        url = postgres.text_of(database.set(username=role))
        made = open_store(url)
        assert not role_may_change_ledger(made._readers)
        made.initialize()
        rows = tuple(sample_rows())
        for _ in range(2):
            made.append(draft(rows=rows, proof=proof(), request=request()))
        made.keep_head(1, "note")
        cosignatures = CosignatureStore(open_engine(url))
        cosignatures.keep(1, witness="w", line="a line", time=1)
        cosignatures.close()
        cursors = CursorStore(open_engine(url), integrity_key=INTEGRITY_KEY, clock=SystemClock())
        assert cursors.take("siem", "a", start=0, lease=1_000)
        assert cursors.move("siem", "a", before=0, after=2, lease=1_000)
        cursors.close()
        made.note_enrolment_failure("00a")
        made.set_upload_parts("u_a", "{}")
        with made.view() as view:
            assert view.find(Principal, "user:a") is not None
        assert check_ledger(made) == 2
        made.close()
        plain = create_engine(parse_database_url(url))
        for statement in (*REFUSED, *REFUSED_BY_POSTGRESQL, "DROP TABLE ledger_entries"):
            with (
                plain.connect() as connection,
                pytest.raises(DBAPIError, match=r"permission denied|must be owner"),
            ):
                connection.execute(text(statement))
        plain.dispose()
    finally:
        postgres.run(f"DROP OWNED BY {role}", database)
        postgres.run(f"DROP ROLE {role}")
