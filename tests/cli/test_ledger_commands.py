"""``ledger``: search, show, prove and verify, against a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from broker.web.app import create_app
from tests.cli.served import Served, run, serving
from tests.web_server import free_port
from tests.world import URL, Person, World

MEMBERS = [
    "index",
    "time",
    "type",
    "principal",
    "action",
    "artifact",
    "version",
    "decision",
    "policies",
    "bytes",
    "grant",
    "purpose",
]
FORMULA = "=HYPERLINK(1)"


@pytest.fixture(scope="module")
def aud(served: Served) -> Person:
    world = served.world
    publisher = world.add("pub", roles=("engineer", "publisher"), groups=["acme"])
    world.publish(publisher, "acme/demo@v1", {"only": b"one"})
    ana = world.add("ana", groups=["acme"])
    for purpose in ("evaluation", FORMULA):
        world.ask(ana, "acme/demo@v1", purpose=purpose)
    return world.add("aud", roles=("auditor",))


def test_search_has_every_member_of_every_row(served: Served, aud: Person) -> None:
    found = served.json(aud, "ledger", "search")
    assert list(found) == ["entries", "next_after", "size"]
    assert all(list(row) == MEMBERS for row in found["entries"])
    assert [row["index"] for row in found["entries"]] == list(range(len(found["entries"])))
    [row] = served.json(aud, "ledger", "search", "actor:ana", "type:grant", "purpose:evaluation")["entries"]
    assert (row["artifact"], row["version"], row["decision"]) == ("acme/demo", "v1", "allow")


def test_the_table_fits_100_columns(served: Served, aud: Person) -> None:
    done = served.run(aud, "ledger", "search", "--limit", "1000")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["INDEX", "TIME", "TYPE", "WHO"]
    assert max(map(len, lines)) <= 100


def test_pages_and_their_end(served: Served, aud: Person) -> None:
    first = served.json(aud, "ledger", "search", "--limit", "3")
    assert [row["index"] for row in first["entries"]] == [0, 1, 2]
    assert first["next_after"] == 2
    second = served.json(aud, "ledger", "search", "--limit", "2", "--after", "2")
    assert [row["index"] for row in second["entries"]] == [3, 4]
    done = served.run(aud, "ledger", "search", "--limit", "2")
    assert "next: --after 1" in done.stderr
    assert served.run(aud, "ledger", "search", "nothing-like-it").stderr == "no entry matches\n"


def test_json_lines_stream_every_page(served: Served, aud: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    from broker import limits

    monkeypatch.setattr(limits, "MAX_PAGE", 3)
    rows = [
        json.loads(line) for line in served.run(aud, "ledger", "search", "-o", "jsonl").stdout.splitlines()
    ]
    with served.world.ledger.view() as view:
        size = view.tail().size
    assert len(rows) >= size - 2
    assert [row["index"] for row in rows] == list(range(len(rows)))
    some = served.run(aud, "ledger", "search", "-o", "jsonl", "--limit", "7").stdout.splitlines()
    assert len(some) == 7


@contextmanager
def _listening(world: World, port: int) -> Iterator[None]:
    house = world.with_settings(public_urls=(URL, f"http://127.0.0.1:{port}"))
    server = make_server("127.0.0.1", port, create_app(house), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def test_following_survives_a_restart_and_ends_with_130(served: Served, aud: Person, tmp_path: Path) -> None:
    world, port = served.world, free_port()
    ana = world.add("follow-ana", groups=["acme"])
    world.ask(ana, "acme/demo@v1", purpose="before")
    profile = Served(world=world, url=f"http://127.0.0.1:{port}", folder=tmp_path).profile(aud)
    command = [sys.executable, "-m", "broker", "ledger", "search", "actor:follow-ana", "type:grant"]
    env = {**os.environ, "BROKER_PROFILE_DIR": str(profile)}
    with ExitStack() as stack:
        with _listening(world, port):
            process = stack.enter_context(
                subprocess.Popen(
                    [*command, "--follow", "-o", "jsonl"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=env,
                )
            )
            limit = threading.Timer(60, process.kill)
            limit.start()
            stack.callback(limit.cancel)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["purpose"] == "before"
            world.ask(ana, "acme/demo@v1", purpose="meanwhile")
            assert json.loads(process.stdout.readline())["purpose"] == "meanwhile"
        world.ask(ana, "acme/demo@v1", purpose="away")
        assert "waiting for the server" in process.stderr.readline()
        with _listening(world, port):
            assert json.loads(process.stdout.readline())["purpose"] == "away"
            process.send_signal(signal.SIGINT)
            rest, told = process.communicate()
    assert (process.returncode, rest) == (130, ""), told


def test_following_has_no_end(served: Served, aud: Person) -> None:
    for words in (("--limit", "3"), ("--until", "1h"), ("-o", "csv"), ("-o", "json")):
        assert served.run(aud, "ledger", "search", "--follow", *words).exit_code == 2


def test_count_is_of_the_whole_answer(served: Served, aud: Person) -> None:
    words = ("ledger", "count", "actor:ana", "--by", "type")
    found = served.json(aud, *words)
    rows = served.json(aud, "ledger", "search", "actor:ana", "--limit", "1000")["entries"]
    expected = Counter(row["type"] for row in rows)
    assert {group["value"]: group["entries"] for group in found["groups"]} == expected
    assert (found["by"], found["total"]) == ("type", len(rows))
    assert found["rest"] == {"groups": 0, "entries": 0}
    largest = served.json(aud, *words, "--top", "1")
    assert largest["groups"] == found["groups"][:1]
    assert largest["rest"]["entries"] == len(rows) - largest["groups"][0]["entries"]
    [day] = served.json(aud, "ledger", "count", "actor:ana", "--by", "day")["groups"]
    assert (day["value"][10:], day["entries"]) == ("T00:00:00.000Z", len(rows))
    done = served.run(aud, *words)
    assert done.stdout.splitlines()[0].split() == ["TYPE", "ENTRIES"]
    assert f"{len(rows)} of " in done.stderr
    assert served.run(aud, "ledger", "count", "--by", "purpose").exit_code == 2


def test_a_count_is_recorded(served: Served, aud: Person) -> None:
    served.json(aud, "ledger", "count", "actor:ana", "--by", "artifact")
    asked = served.json(aud, "ledger", "search", "type:audit-query", "--limit", "1000")["entries"]
    shown = [served.json(aud, "ledger", "show", str(row["index"]))["entry"]["query"] for row in asked[-2:]]
    assert "search actor:ana count by artifact" in shown


def test_csv(served: Served, aud: Person) -> None:
    text = served.run(aud, "ledger", "search", "actor:ana", "-o", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == MEMBERS
    assert {"evaluation", "'" + FORMULA} <= {row["purpose"] for row in rows}


@pytest.mark.parametrize("query", ["foo:bar", "actor:", '"open', "decision:maybe", "since:yesterday"])
def test_a_query_that_is_none_is_2(served: Served, aud: Person, query: str) -> None:
    done = served.run(aud, "ledger", "search", query)
    assert done.exit_code == 2
    assert done.stdout == ""


def test_reading_is_for_auditors(served: Served, aud: Person) -> None:
    eve = served.world.add("eve")
    for words in (("search",), ("count",), ("show", "0"), ("prove", "0"), ("verify",)):
        assert served.run(eve, "ledger", *words).exit_code == 3
    assert served.run(eve, "ledger", "checkpoint").exit_code == 0


def test_show(served: Served, aud: Person) -> None:
    [row, *_] = served.json(aud, "ledger", "search", "type:grant")["entries"]
    found = served.json(aud, "ledger", "show", str(row["index"]))
    assert found["entry"]["type"] == "grant"
    assert found["record"]["artifact"] == "acme/demo"
    text = served.run(aud, "ledger", "show", str(row["index"])).stdout
    assert f"index             {row['index']}\n" in text
    assert "\nrecord\n" in text
    assert served.run(aud, "ledger", "show", "99999").exit_code == 5
    assert served.run(aud, "ledger", "show", "-1").exit_code == 2


def test_a_receipt_is_taken_home_and_verified_offline(served: Served, aud: Person, tmp_path: Path) -> None:
    target = tmp_path / "five.tlog-proof"
    done = served.run(aud, "ledger", "prove", "5", "--out", str(target))
    assert (done.exit_code, done.stdout) == (0, f"{target}\n")
    assert served.run(aud, "ledger", "prove", "5", "--out", str(target)).exit_code == 2, "never over a file"
    printed = served.run(aud, "ledger", "prove", "5").stdout
    assert printed.startswith("c2sp.org/tlog-proof@v1\nextra ")

    vkey = served.world.house.log.vkey
    offline = ("ledger", "verify-receipt", str(target), "--vkey", vkey)
    found = json.loads(run(*offline, "--json").stdout)
    assert (found["ok"], found["index"]) == (True, 5)
    assert run(*offline).stdout.startswith("ok: entry 5 of test.example/log, in a signed tree of ")
    assert json.loads(run(*offline[:2], "-", *offline[3:], "--json", input=printed).stdout)["index"] == 5
    assert served.run(aud, "ledger", "verify-receipt", str(target)).exit_code == 0, "the profile pins the key"

    target.write_text(target.read_text().replace("index 5", "index 4"))
    done = run(*offline)
    assert (done.exit_code, done.stdout) == (6, "")
    target.write_bytes(b"\xff")
    assert run(*offline).exit_code == 2
    assert run("ledger", "verify-receipt", str(tmp_path / "nothing"), "--vkey", vkey).exit_code == 2


def test_checkpoint(served: Served, aud: Person) -> None:
    found = served.json(aud, "ledger", "checkpoint")
    assert found["origin"] == "test.example/log"
    assert found["note"].startswith(f"test.example/log\n{found['size']}\n")
    text = served.run(aud, "ledger", "checkpoint").stdout.splitlines()
    assert text[0] == "test.example/log"
    assert int(text[1]) >= found["size"]


@pytest.mark.parametrize("full", [(), ("--full",)])
def test_a_ledger_that_holds(served: Served, aud: Person, full: tuple[str, ...]) -> None:
    found = served.json(aud, "ledger", "verify", *full)
    assert found["ok"] is True
    assert set(found) == {"ok", "size", "root"}
    done = served.run(aud, "ledger", "verify", *full)
    assert done.stdout.startswith("ok: ")


def test_a_changed_row_is_named_and_ends_with_6(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        aud = served.world.add("aud", roles=("auditor",))
        assert served.json(aud, "ledger", "verify")["ok"] is True
        with sqlite3.connect(served.world.path) as db:
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                db.execute(f'DROP TRIGGER "{name}"')
            [(entry,)] = db.execute("SELECT entry FROM ledger_entries WHERE idx = 3").fetchall()
            changed = bytes(entry).replace(b"user:admin", b"user:ghost")
            db.execute("UPDATE ledger_entries SET entry = ? WHERE idx = 3", (changed,))
        done = served.run(aud, "ledger", "verify", "-o", "json")
        assert done.exit_code == 6
        found = json.loads(done.stdout)
        assert found["ok"] is False
        assert found["first_bad_index"] == 3
        assert done.stderr.startswith("error: the ledger is not what was signed: first at entry 3")
