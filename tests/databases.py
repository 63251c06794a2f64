"""Ledgers on real databases, drafts to append to them, and the oracle that checks what they hold."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from broker.db import LedgerStore, open_engine, upgrade
from broker.db.engine import parse_database_url
from broker.drafts import Appended, Draft, NewEntry, ProofUse, RequestKey
from broker.ledger import merkle
from broker.model import (
    ActiveBundle,
    Artifact,
    BundleRow,
    Collection,
    Enrolment,
    Grant,
    Group,
    IndexRow,
    Issuer,
    Key,
    Lease,
    ManifestRow,
    Principal,
    SubjectUse,
    Token,
    Upload,
    Version,
)
from broker.runtime import SystemClock
from tests.postgres import migrated_template, new_database, text_of

INTEGRITY_KEY = b"a key that only tests have: 32 bytes"
HOUR = 3_600_000


class Tree:
    """The real Merkle rules, in the form that the store takes them."""

    def leaf_hash(self, data: bytes) -> bytes:
        return merkle.leaf_hash(data)

    def empty(self) -> bytes:
        return merkle.Frontier().to_bytes()

    def size_root(self, frontier: bytes) -> tuple[int, bytes]:
        found = merkle.Frontier.from_bytes(frontier)
        return found.size, found.root()

    def extend(
        self, frontier: bytes, leaf_hashes: Sequence[bytes]
    ) -> tuple[bytes, bytes, list[tuple[int, int, bytes]]]:
        found, completed = merkle.Frontier.from_bytes(frontier).extend(leaf_hashes)
        return found.to_bytes(), found.root(), completed


class FixedClock:
    """A clock that stands at ``ms`` until somebody moves it."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def now(self) -> int:
        return self.ms


def open_store(url: str, *, clock: Any = None, key: bytes = INTEGRITY_KEY) -> LedgerStore:
    """A store on a database that has the schema already."""
    return LedgerStore(open_engine(url), tree=Tree(), integrity_key=key, clock=clock or SystemClock())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database with the newest schema: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'broker.db'}"
        upgrade(url)
        yield url
    else:
        with new_database(template=migrated_template()) as made:
            yield text_of(made)


@pytest.fixture
def store(database_url: str) -> Iterator[LedgerStore]:
    """An empty ledger on each database in turn."""
    made = open_store(database_url)
    made.initialize()
    yield made
    made.close()


@pytest.fixture
def intruder(database_url: str) -> Iterator[Engine]:
    """Somebody with full rights in the database, but without the broker's keys."""
    engine = create_engine(parse_database_url(database_url))

    # Triggers that stand in the way of an administrator are not what the broker relies on.
    def begin(connection: Any) -> None:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")

    event.listen(engine, "begin", begin)
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
            for (name,) in names.all():
                connection.execute(text(f"DROP TRIGGER {name}"))
    yield engine
    engine.dispose()


# -- drafts ----------------------------------------------------------------------------------------


def entry(name: str = "entry", **index: Any) -> NewEntry:
    """An entry with a salt of its own, so that no two are the same bytes."""
    data = json.dumps({"name": name, "salt": secrets.token_hex(16)}).encode()
    return NewEntry(data=data, index=IndexRow(**{"time": 1_000, "type": "grant", **index}))


def proof(jkt: str = "jkt-1", *, keep: int = HOUR) -> ProofUse:
    """A proof that was not used before."""
    return ProofUse(jkt=jkt, jti_hash=secrets.token_bytes(32), keep_until=SystemClock().now() + keep)


def request(body: bytes = b"body", request_id: str | None = None, jkt: str = "jkt-1") -> RequestKey:
    """A request's key; a new id unless one is given."""
    digest = hashlib.sha256(body).digest()
    return RequestKey(jkt=jkt, request_id=request_id or secrets.token_hex(8), body_digest=digest)


def draft(**members: Any) -> Draft:
    """A draft with one entry unless ``entries`` says otherwise."""
    return Draft(**{"entries": (entry(),), **members})


def append_together(store: LedgerStore, drafts: Sequence[Draft]) -> list[Any]:
    """The outcomes of drafts that one group commit takes."""
    return list(store._commit(drafts))


def kinds(outcomes: Sequence[Any]) -> list[str]:
    """Class names of outcomes."""
    return [type(outcome).__name__ for outcome in outcomes]


# -- one row of each class -------------------------------------------------------------------------


def sample_rows(mark: str = "a") -> list[Any]:
    """One row of every class; another ``mark`` gives other keys and values of the same form."""
    raw = mark.encode()
    return [
        Principal(id=f"user:{mark}", roles=("engineer",), groups=("nlp", mark), disabled=False, created=1),
        Group(name=f"group-{mark}", parents=("all", mark)),
        Key(
            jkt=f"jkt-{mark}",
            principal=f"user:{mark}",
            jwk="{}",
            uses=("dpop+jwt",),
            status="active",
            created=2,
        ),
        Enrolment(id=f"00{mark}", principal=f"user:{mark}", secret_hash=raw * 32, expires=3, status="active"),
        Token(
            id=f"t_{mark}",
            principal=f"user:{mark}",
            jkt=f"jkt-{mark}",
            limits="[]",
            chain=("t_0",),
            issued=1,
            expires=2,
            status="active",
            identity=f'{{"issuer":"{mark}"}}',
        ),
        Issuer(
            name=f"issuer-{mark}",
            url=f"https://{mark}.example",
            kind="oidc",
            audience="us",
            jwks_uri=f"https://{mark}.example/keys",
            jwks='{"keys":[]}',
            ca=mark,
            mapping="{}",
            status="active",
            created=1,
        ),
        SubjectUse(
            digest=f"sha256:{mark}",
            jkt=f"jkt-{mark}",
            issuer=f"issuer-{mark}",
            principal=f"workload:issuer-{mark}/job",
            # Not over: what is over is swept with the next row of this table.
            expires=SystemClock().now() + HOUR,
        ),
        Collection(name=f"col-{mark}", readers=("nlp",), publishers=(mark,)),
        Artifact(collection=f"col-{mark}", name="m", kind="checkpoint"),
        sample_version(f"col-{mark}", "m", f"v-{mark}"),
        ManifestRow(digest=f"sha256:{mark}", body=b"{}" + raw, signature="a..b"),
        Upload(
            id=f"u_{mark}",
            collection=f"col-{mark}",
            name="m",
            version="v",
            version_id=raw * 16,
            kind="checkpoint",
            labels="{}",
            extent_size=1,
            files="[]",
            principal=f"user:{mark}",
            jkt="j",
            wrapped_key=raw,
            status="active",
            created=1,
            expires=2,
        ),
        Grant(
            id=f"g_{mark}",
            principal=f"user:{mark}",
            jkt="j",
            token="t_1",
            collection="c",
            name="m",
            version="v",
            version_id=raw * 16,
            manifest="sha256:0",
            selection="sha256:1",
            files=1,
            bytes=2,
            purpose=f"für {mark}",
            created=1,
            expires=2,
            status="active",
        ),
        Lease(grant=f"g_{mark}", number=0, recipient="sha256:2", extents="[[0,0,1]]", expires=9),
        BundleRow(digest=f"sha256:b{mark}", body=raw),
        ActiveBundle(slot=f"active-{mark}", digest=f"sha256:b{mark}"),
    ]


def sample_version(collection: str, name: str, version: str, **members: Any) -> Version:
    """A committed version."""
    values = {
        "version_id": b"i" * 16,
        "kind": "checkpoint",
        "labels": '{"tier":"standard"}',
        "manifest": f"sha256:{version}",
        "files": 1,
        "bytes": 2,
        "publisher": "user:p",
        "publisher_jkt": "j",
        "binding": 0,
        "wrapped_key": b"w",
        "committed": 10,
    }
    return Version(collection=collection, name=name, version=version, **{**values, **members})


# -- the oracle ------------------------------------------------------------------------------------


def check_ledger(store: LedgerStore) -> int:
    """Everything stored fits together, computed again from the entries; returns their number."""
    with store.view() as view:
        rows = list(view.entries(0, 1 << 40))
        leaves = [merkle.leaf_hash(data) for _, data, _ in rows]
        tail = view.tail()
        assert [index for index, _, _ in rows] == list(range(len(rows)))
        assert [stored for _, _, stored in rows] == leaves
        assert (tail.size, tail.root) == (len(rows), merkle.root_of(leaves))
        assert [index for index, _ in view.index_rows(0, 1 << 40)] == list(range(len(rows)))
        complete = len(rows) // 256
        expected = [merkle.root_of(leaves[256 * at : 256 * (at + 1)]) for at in range(complete)]
        assert view.hashes(8, 0, complete) == expected
        assert len({data for _, data, _ in rows}) == len(rows)
    return tail.size


def appended(outcome: Any) -> Appended:
    """The outcome, which must be an append."""
    assert isinstance(outcome, Appended), outcome
    return outcome


# -- other processes ---------------------------------------------------------------------------------


class Writer:
    """A process of ``tests.ledger_writer``."""

    def __init__(self, url: str, threads: int, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ledger_writer", url, str(threads), str(count)],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout

    def wait(self) -> None:
        """Wait until it is ready to write."""
        assert self._output.readline() == "ready\n"

    def go(self) -> None:
        """Let it write."""
        self._input.write("go\n")
        self._input.flush()

    def read(self) -> tuple[int, str]:
        """(index, request id) of the next append that it was told of."""
        index, request_id = self._output.readline().split()
        return int(index), request_id

    def rest(self) -> list[tuple[int, str]]:
        """What it was told of until it ended; waits for the end."""
        lines = [line.split() for line in self._output.read().splitlines()]
        self.process.wait(60)
        self._input.close()
        self._output.close()
        return [(int(index), request_id) for index, request_id in lines]

    def kill(self) -> None:
        """SIGKILL: no clean-up of any kind."""
        self.process.kill()


def start_writer(url: str, *, threads: int, count: int) -> Writer:
    """A process that appends ``count`` drafts from each of ``threads`` threads, when told to go."""
    return Writer(url, threads, count)
