"""``ledger query`` and exports as Parquet: verified rows, asked in SQL that can do nothing else."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import time
from pathlib import Path

import duckdb
import pytest

from broker.client import querying
from broker.client.asking import Answer, Bounds, ask
from broker.client.ledger import LedgerClient
from broker.client.parts import FORMAT
from broker.errors import TooLarge, UsageError
from broker.ledger import columns
from tests.cli.served import Served, run
from tests.world import Person

COUNT = "SELECT count(*) AS n, max(index) AS last FROM entries"


@pytest.fixture(scope="module")
def aud(served: Served) -> Person:
    """An auditor of a log with a few hundred entries."""
    world = served.world
    for _ in range(60):
        world.login(world.admin)
    return world.add("user:aud", roles=("auditor",))


@pytest.fixture(scope="module")
def export(served: Served, aud: Person, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the answer to a question, as Parquet."""
    folder = tmp_path_factory.mktemp("export") / "q3"
    found = served.json(aud, "ledger", "export", "--out", str(folder), "--format", "parquet", "actor:admin")
    assert found["format"] == "parquet"
    assert found["rows"] == found["matching"] >= 60
    return folder


def asked(served: Served, who: Person, sql: str, *words: str) -> list[dict[str, object]]:
    found = served.json(who, "ledger", "query", sql, *words)
    assert found["more"] is False
    return found["rows"]  # type: ignore[no-any-return]


def cache_of(served: Served, who: Person) -> Path:
    return served.profile(who) / querying.CACHE


# -- over the broker's log ----------------------------------------------------------------------------------


def test_the_answer_is_over_every_entry_of_the_signed_log(served: Served, aud: Person) -> None:
    [row] = asked(served, aud, COUNT)
    assert row["n"] == row["last"] + 1 >= 60  # type: ignore[operator]
    [grouped] = asked(
        served,
        aud,
        "SELECT type, count(*) AS n FROM entries WHERE principal = 'user:admin' GROUP BY type HAVING n > 50",
    )
    assert grouped["type"] == "token"
    [first] = asked(served, aud, "SELECT * FROM entries WHERE index = 0")
    shown = served.json(aud, "ledger", "show", "0")
    assert json.loads(str(first["entry"])) == shown["entry"]
    assert first["time"] == shown["entry"]["time"]
    assert [column.name for column in columns.COLUMNS] == list(first)


def test_the_next_question_reads_what_is_new(
    served: Served, aud: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    [before] = asked(served, aud, COUNT)
    place = cache_of(served, aud)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.rglob("*.parquet")} == {0o600}
    read: list[tuple[int, int]] = []
    taken = LedgerClient.read_entries

    def watched(self: LedgerClient, start: int, stop: int) -> list[bytes]:
        read.append((start, stop))
        return taken(self, start, stop)

    monkeypatch.setattr(LedgerClient, "read_entries", watched)
    for _ in range(3):
        served.world.login(served.world.admin)
        size = served.world.size()
        [after] = asked(served, aud, COUNT)
        assert read.pop(0) == (before["n"], after["n"])
        assert after["n"] == after["last"] + 1 >= size  # type: ignore[operator]
        before = after
    assert not read
    # Of what is no longer asked, one generation stays.
    assert len(list(place.glob("range=*"))) == 2


def test_a_cache_that_others_may_write_to_is_not_used(served: Served, aud: Person) -> None:
    asked(served, aud, COUNT)
    place = cache_of(served, aud)
    place.chmod(0o777)
    try:
        refused = served.run(aud, "ledger", "query", COUNT)
        assert refused.exit_code == 2
        assert "only this user" in refused.stderr
    finally:
        place.chmod(0o700)


@pytest.mark.parametrize("damage", ["a byte", "no file", "state", "another log", "nonsense"])
def test_a_damaged_cache_is_read_again(served: Served, aud: Person, damage: str) -> None:
    [before] = asked(served, aud, COUNT)
    place = cache_of(served, aud)
    state = json.loads((place / "state.json").read_text())
    [part] = [place / name for name in state["files"]]
    if damage == "a byte":
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    elif damage == "no file":
        part.unlink()
    elif damage == "state":
        (place / "state.json").write_text(json.dumps({**state, "frontier": state["frontier"][:-4]}))
    elif damage == "another log":
        (place / "state.json").write_text(
            json.dumps({**state, "vkey": "other.example/log+" + state["vkey"][-60:]})
        )
    else:
        (place / "state.json").write_text("{")
    served.world.login(served.world.admin)
    [after] = asked(served, aud, COUNT)
    assert after["n"] == after["last"] + 1 > before["n"]  # type: ignore[operator]


def test_a_cache_that_says_more_than_was_signed_is_no_answer(served: Served, aud: Person) -> None:
    # Whoever can write there can change the state to fit. The signed root does not follow.
    asked(served, aud, COUNT)
    place = cache_of(served, aud)
    state = json.loads((place / "state.json").read_text())
    shorter = querying.Frontier().extend([bytes(32)] * 7)[0]
    state["frontier"] = querying.b64url(shorter.to_bytes())
    (place / "state.json").write_text(json.dumps(state, sort_keys=True, separators=(",", ":")))
    done = served.run(aud, "ledger", "query", COUNT)
    assert done.exit_code == 6
    assert "are not those that the log's key signed" in done.stderr
    shutil.rmtree(place)


def test_only_auditors_read_the_log(served: Served) -> None:
    ben = served.world.add("user:ben-no-auditor")
    done = served.run(ben, "ledger", "query", COUNT)
    assert done.exit_code == 3
    assert done.stdout == ""


# -- what it looks like -------------------------------------------------------------------------------------


def test_an_answer_has_every_form(served: Served, aud: Person, export: Path) -> None:
    sql = "SELECT index, type, policies, principal AS who FROM entries WHERE index < 3 ORDER BY index"
    words = ("ledger", "query", "--from", str(export), sql)
    text = served.run(aud, *words)
    lines = text.stdout.splitlines()
    assert lines[0].split() == ["index", "type", "policies", "who"]
    assert lines[1].split()[:2] == ["0", "genesis"]
    assert "as its key signed them" in text.stderr
    found = served.json(aud, *words)
    assert found["columns"] == ["index", "type", "policies", "who"]
    rows = [json.loads(line) for line in served.run(aud, *words, "-o", "jsonl").stdout.splitlines()]
    assert rows == found["rows"]
    assert served.run(aud, *words, "-o", "csv").stdout.splitlines()[:2] == [
        "index,type,policies,who",
        "0,genesis,,",
    ]
    many = served.run(
        aud, "ledger", "query", "--from", str(export), "FROM entries SELECT index", "--limit", "5"
    )
    assert len(many.stdout.splitlines()) == 6
    assert "there is more than these 5 rows" in many.stderr
    none = served.run(aud, "ledger", "query", "--from", str(export), "SELECT index FROM entries WHERE false")
    assert (none.stdout, none.exit_code) == ("", 0)
    assert "the answer has no rows" in none.stderr


def test_what_is_wrong_with_a_question_is_said(served: Served, aud: Person, export: Path) -> None:
    done = served.run(aud, "ledger", "query", "--from", str(export), "SELECT prinzipal FROM entries")
    assert done.exit_code == 2
    assert 'Referenced column "prinzipal" not found' in done.stderr
    for words in (("--timeout", "2h"), ("--vkey", "x")):
        without = () if "--vkey" in words else ("--from", str(export))
        assert served.run(aud, "ledger", "query", COUNT, *without, *words).exit_code == 2


# -- over an export, and the export itself ------------------------------------------------------------------


def test_an_export_answers_without_the_broker(served: Served, aud: Person, export: Path) -> None:
    vkey = served.world.house.log.vkey
    checked = run("ledger", "verify-export", str(export), "--vkey", vkey, "-o", "json")
    size = json.loads(checked.stdout)["size"]
    done = run("ledger", "query", "--from", str(export), "--vkey", vkey, COUNT, "-o", "json")
    assert json.loads(done.stdout)["rows"] == [{"n": size, "last": size - 1}]
    # The rows that matched, as any engine reads them.
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT count(*), count(DISTINCT principal), min(principal) FROM '{export}/rows/*/*.parquet'"
        ).fetchone()
    assert found == (json.loads(checked.stdout)["rows"], 1, "user:admin")


def parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_file_of_an_export_is_covered(served: Served, export: Path, tmp_path: Path) -> None:
    vkey = served.world.house.log.vkey
    for at, original in enumerate(parts(export)):
        if original.name == "export.tlog-proof":
            continue  # the receipt of the export, which comes after it
        folder = tmp_path / str(at)
        shutil.copytree(export, folder)
        path = folder / original.relative_to(export)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        done = run("ledger", "verify-export", str(folder), "--vkey", vkey)
        assert done.exit_code == 6, original
        path.unlink()
        assert run("ledger", "verify-export", str(folder), "--vkey", vkey).exit_code in (2, 6), original
        if "rows" not in path.parts and path.name != "certificate.json":
            assert run("ledger", "query", "--from", str(folder), "--vkey", vkey, COUNT).exit_code in (2, 6)


def test_rows_that_do_not_answer_the_query_are_found(served: Served, export: Path, tmp_path: Path) -> None:
    vkey = served.world.house.log.vkey
    [part] = export.glob("rows/*/*.parquet")
    rows = FORMAT.decode(part.read_bytes(), most=columns.WIDTH)
    for at, forged in enumerate((rows[:-1], [*rows[:-1], (*rows[-1][:3], "user:eve", *rows[-1][4:])])):
        folder = tmp_path / str(at)
        shutil.copytree(export, folder)
        (folder / part.relative_to(export)).write_bytes(FORMAT.encode(forged))
        done = run("ledger", "verify-export", str(folder), "--vkey", vkey)
        assert done.exit_code == 6
        assert "is not what the log gives" in done.stderr
    folder = tmp_path / "more"
    shutil.copytree(export, folder)
    more = folder / "rows" / columns.range_path(columns.WIDTH, columns.WIDTH + 1)
    more.parent.mkdir()
    more.write_bytes(part.read_bytes())
    assert run("ledger", "verify-export", str(folder), "--vkey", vkey).exit_code == 6


# -- what SQL may not do ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows_file(export: Path) -> Path:
    [found] = export.glob("rows/*/*.parquet")
    return found


HOSTILE = [
    "COPY entries TO '{folder}/out.parquet'",
    "COPY (SELECT 1) TO '{file}'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('http://127.0.0.1:1/x.parquet')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "ATTACH '{folder}/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA database_list",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "SET enable_external_access = true",
    "CALL pragma_version()",
    "EXPLAIN ANALYZE COPY entries TO '{folder}/out.parquet'",
    "SELECT * FROM query('COPY entries TO ''{folder}/out.parquet''')",
    "SELECT 1; COPY entries TO '{folder}/out.parquet'",
    "CREATE OR REPLACE VIEW entries AS SELECT 1",
    "CREATE TABLE x AS SELECT 1",
    "EXPORT DATABASE '{folder}/out'",
    "SELECT * FROM duckdb_secrets()",
    "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')",
    "SELECT * FROM enable_logging()",
    "SELECT getenv('HOME')",
    "PREPARE x AS SELECT 1",
    "SELECT ?",
    "",
    "-- nothing",
    "SELECT",
    "\x00",
]


@pytest.mark.parametrize("sql", HOSTILE, ids=range(len(HOSTILE)))
def test_a_question_reads_nothing_else_and_writes_nothing(rows_file: Path, tmp_path: Path, sql: str) -> None:
    before = rows_file.read_bytes()
    with pytest.raises(UsageError):
        asking_here(rows_file, sql.format(folder=tmp_path, file=rows_file))
    assert list(tmp_path.iterdir()) == []
    assert rows_file.read_bytes() == before


def asking_here(file: Path, sql: str) -> Answer:
    """In this process, which is faster; that a child does the same is the next tests' matter."""
    from broker.archive import asking

    return asking.ask([file], sql, bounds=Bounds(memory_mib=256, seconds=5.0))


BIG = [
    "SELECT count(*) FROM range(100000000000) a, range(100000000) b",
    "SELECT sum(sin(a.range * b.range)) FROM range(100000000) a, range(9000) b WHERE a.range % 7 < b.range",
    "SELECT unnest(range(1000000000))",
    "SELECT array_agg(repeat('x', 100000000)) FROM range(100)",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
    "SELECT repeat('x', 20000000) FROM range(9)",
]


@pytest.mark.parametrize("sql", BIG, ids=range(len(BIG)))
def test_a_question_has_bounds_of_time_and_memory(rows_file: Path, sql: str) -> None:
    began = time.monotonic()
    with pytest.raises((UsageError, TooLarge)):
        ask([rows_file], sql, bounds=Bounds(memory_mib=256, seconds=0.5))
    assert time.monotonic() - began < 20  # not the hours that it would take


def test_a_question_sees_nothing_of_the_caller(rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "of the shell")
    found = ask(
        [rows_file],
        "SELECT current_setting('allowed_paths') AS may, * FROM duckdb_settings()",
        bounds=Bounds(),
    )
    assert found.rows[0][0] == [str(rows_file.resolve())]
    assert "of the shell" not in str(found.rows)


def test_values_of_every_kind_are_json(rows_file: Path) -> None:
    found = ask(
        [rows_file],
        "SELECT 1 AS a, 2 AS a, 1.50::DECIMAL(9,2) AS money,"
        " sum(170141183460469231731687303715884105000::HUGEINT) AS huge, 1e400::DOUBLE AS inf,"
        " 'x'::BLOB AS bytes, DATE '2026-11-24' AS day, {'k': [1, NULL]} AS nested,"
        " TIMESTAMP '2026-11-24 10:00:00.5' AS naive, TIMESTAMPTZ '2026-11-24 10:00:00+02' AS zoned,"
        " TIME '10:00' AS clock, INTERVAL 1 DAY AS span, true AS yes",
        bounds=Bounds(),
    )
    values = dict(zip(found.columns, json.loads(json.dumps(found.rows[0])), strict=True))
    assert values.pop("span")
    assert values == {
        "a": 1,
        "a_2": 2,
        "money": "1.50",
        "huge": 170141183460469231731687303715884105000,
        "inf": "inf",
        "bytes": "eA",
        "day": "2026-11-24",
        "nested": {"k": [1, None]},
        "naive": "2026-11-24T10:00:00.500",
        "zoned": "2026-11-24T08:00:00.000Z",
        "clock": "10:00:00",
        "yes": True,
    }


def test_odd_names_of_folders_are_names(rows_file: Path, tmp_path: Path) -> None:
    odd = tmp_path / "o'dd *[a]? $x"
    odd.mkdir()
    shutil.copy(rows_file, odd / "part.parquet")
    os.mkdir(tmp_path / "o'dd xa $x")
    found = ask([odd / "part.parquet"], COUNT, bounds=Bounds())
    assert found.rows[0][0] > 0


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tile").mkdir()
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError):
            querying.query_folder(folder, "x", COUNT, bounds=Bounds())


AUDITING = Path(__file__).parents[2] / "docs" / "auditing.md"
EXAMPLES = [
    shlex.split(line)
    for line in AUDITING.read_text(encoding="utf-8").splitlines()
    if line.startswith("broker ledger query ")
]


@pytest.mark.parametrize("words", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_questions_of_the_documents_have_answers(rows_file: Path, words: list[str]) -> None:
    assert len(EXAMPLES) >= 6
    found = asking_here(rows_file, words[3])
    assert found.columns
