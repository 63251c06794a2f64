"""The log taken home by an auditor, and verified there by nobody's word: ours, and Go's own library."""

from __future__ import annotations

import csv
import http.client
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.client.export import verify_export
from broker.errors import IntegrityFailure
from broker.ledger import tiles
from broker.ledger.receipt import verify_receipt
from tests.e2e.running import Stack, User
from tests.outside_logs import go_says, go_verifier

__all__ = ["go_verifier"]

QUESTIONS = 40


@pytest.fixture(scope="module")
def aud(stack: Stack) -> User:
    """An auditor with questions on record; with them the log has a second tile of leaves."""
    auditor = stack.add("exporter", "--role", "auditor")
    with auditor.client() as client:
        size = client.ledger.search(limit=1)["size"]
        for number in range(max(QUESTIONS, 300 - size)):
            client.ledger.search(f'"question {number}"', limit=1)
    return auditor


@pytest.fixture(scope="module")
def vkey(stack: Stack) -> str:
    return str(stack.ready["log"]["vkey"])


@pytest.fixture(scope="module")
def whole(aud: User, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the log alone."""
    folder = tmp_path_factory.mktemp("export") / "log"
    found = aud.cli("ledger", "export", "--out", folder, "-o", "json").json()
    assert found["format"] == "tiles"
    assert found["size"] >= 300
    return folder


@pytest.fixture(scope="module")
def rows(aud: User, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the answer to a question."""
    folder = tmp_path_factory.mktemp("export") / "rows"
    aud.cli("ledger", "export", "--out", folder, "--format", "jsonl", "actor:exporter", "since:24h")
    return folder


def test_a_complete_answer_is_taken_home_and_verified_without_the_broker(
    stack: Stack, aud: User, rows: Path, vkey: str
) -> None:
    found = [json.loads(line) for line in (rows / "rows.jsonl").read_text().splitlines()]
    assert {row["principal"] for row in found} == {"user:exporter"}
    # The same answer as a search over the same stretch of the log.
    size = json.loads((rows / "certificate.json").read_text())["size"]
    with aud.client() as client:
        searched = [row for row in client.ledger.iter_search("actor:exporter") if row["index"] < size]
    assert [{k: v for k, v in row.items() if k != "entry"} for row in found] == searched
    nobody = User(stack=stack, name="nobody-at-all")
    checked = nobody.cli("ledger", "verify-export", rows, "--vkey", vkey, "-o", "json").json()
    assert checked["ok"] is True
    assert checked["matching"] == checked["rows"] == len(found) > QUESTIONS
    recorded = verify_receipt((rows / "export.tlog-proof").read_text(), vkey).entry
    assert (recorded["type"], recorded["principal"]) == ("export", "user:exporter")
    assert recorded["range"] == {"start": 0, "stop": size}


def test_a_sample_as_csv_is_the_one_that_its_seed_draws(aud: User, vkey: str, tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    words = ("--format", "csv", "--sample", "25", "--seed", "2026Q3", "type:audit-query")
    aud.cli("ledger", "export", "--out", folder, *words)
    with open(folder / "rows.csv", newline="") as file:
        drawn = list(csv.DictReader(file))
    assert len(drawn) == 25
    assert [int(row["index"]) for row in drawn] == sorted(int(row["index"]) for row in drawn)
    assert verify_export(folder, vkey).certificate is not None
    # Another seed would have drawn others: the certificate cannot be bent to the rows at hand.
    text = (folder / "certificate.json").read_text()
    (folder / "certificate.json").write_text(text.replace("2026Q3", "2026Q4"))
    with pytest.raises(IntegrityFailure):
        verify_export(folder, vkey)


def test_events_for_a_siem_are_whole_and_verified(aud: User, vkey: str, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    aud.cli("ledger", "export", "--out", folder, "--format", "ocsf", "actor:exporter")
    path = folder / "rows.ocsf.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    origin = (folder / "checkpoint").read_text().partition("\n")[0]
    assert {event["actor"]["user"]["uid"] for event in events} == {"user:exporter"}
    assert [event["metadata"]["uid"] for event in events] == [
        f"{origin}/{event['metadata']['sequence']}" for event in events
    ]
    made = verify_export(folder, vkey).certificate
    assert made is not None
    assert made.matching == len(events) >= QUESTIONS
    # An event that was made harmless, or left out.
    lines = path.read_text().splitlines(keepends=True)
    for changed in ([lines[0].replace("Success", "Failure"), *lines[1:]], lines[1:]):
        path.write_text("".join(changed))
        with pytest.raises(IntegrityFailure, match=r"rows\.ocsf\.jsonl"):
            verify_export(folder, vkey)


def test_an_export_needs_a_folder_of_its_own_and_the_auditor_role(
    aud: User, ana: User, whole: Path, tmp_path: Path
) -> None:
    aud.cli("ledger", "export", "--out", whole, expect=2)
    aud.cli("ledger", "export", "--out", tmp_path / "x", "type:grant", expect=2)
    aud.cli("ledger", "export", "--out", tmp_path / "y", "--sample", "5", expect=2)
    ana.cli("ledger", "export", "--out", tmp_path / "z", expect=3)
    assert not list((tmp_path / "z").rglob("checkpoint"))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tlog-proof")


def test_a_changed_byte_anywhere_is_found(rows: Path, vkey: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(rows, copy)
    verify_export(copy, vkey)
    assert len(files_of(copy)) >= 8
    for path in files_of(copy):
        good = path.read_bytes()
        for at in {0, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(IntegrityFailure):
                verify_export(copy, vkey)
        for other in (good[:-1], good + b"\n", b""):
            path.write_bytes(other)
            with pytest.raises(IntegrityFailure):
                verify_export(copy, vkey)
        path.write_bytes(good)
    verify_export(copy, vkey)


def test_a_row_that_is_left_out_is_found_even_under_a_new_certificate(
    rows: Path, vkey: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(rows, copy)
    lines = (copy / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "rows.jsonl").write_bytes(b"".join(lines[:10] + lines[11:]))
    with pytest.raises(IntegrityFailure, match=r"rows\.jsonl"):
        verify_export(copy, vkey)
    (copy / "certificate.json").unlink()
    with pytest.raises(IntegrityFailure):
        verify_export(copy, vkey)


def get(url: str, path: str) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("Cache-Control", "")
    finally:
        connection.close()


def test_the_served_tiles_are_the_exported_ones(stack: Stack, whole: Path, aud: User) -> None:
    size = int((whole / "checkpoint").read_text().split("\n")[1])
    seen = 0
    for tile in tiles.tiles_for(0, size):
        path = tiles.tile_path(tile)
        status, data, cache = get(stack.url, f"/ledger/{path}")
        if tile.level == tiles.ENTRIES:
            # What was recorded is for auditors; its hashes are for everybody.
            assert status == 401
            continue
        assert (status, data) == (200, (whole / path).read_bytes())
        assert cache == "public, max-age=31536000, immutable"
        seen += 1
    assert seen >= 3
    for absent in ("tile/0/x001/000", "tile/0/000.p/256", "tile/6/000", "tile/0/0", "tile/x/000"):
        assert get(stack.url, f"/ledger/{absent}")[0] == 404


def test_go_verifies_the_exported_log_as_it_is(
    go_verifier: Path, whole: Path, vkey: str, tmp_path: Path
) -> None:
    size = (whole / "checkpoint").read_text().split("\n")[1]
    said = go_says(go_verifier, vkey, whole)
    assert (said.returncode, said.stdout) == (0, f"ok {size} records {size}\n"), said.stderr
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    bundle = copy / "tile" / "entries" / "000"
    data = bytearray(bundle.read_bytes())
    data[500] ^= 1
    bundle.write_bytes(data)
    assert go_says(go_verifier, vkey, copy).returncode == 1


def test_go_verifies_the_served_log_as_it_is(go_verifier: Path, stack: Stack, whole: Path, vkey: str) -> None:
    said = go_says(go_verifier, vkey, f"{stack.url}/ledger")
    assert said.returncode == 0, said.stderr
    size = int(said.stdout.removeprefix("ok ").split()[0])
    assert size >= int((whole / "checkpoint").read_text().split("\n")[1])
