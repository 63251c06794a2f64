"""An export as events: the whole answer, and a changed byte in any of its files is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from broker.canonical import canonical_bytes
from broker.client import export
from broker.errors import BrokerError, IntegrityFailure, UsageError
from broker.ledger import merkle, ocsf
from broker.ledger.certificate import Sample
from broker.ledger.note import TreeHead, sign_head
from broker.model import Query
from tests.unit.ledger.samples import KEY, ORIGIN, OTHER_VERIFIER, VERIFIER

VECTORS = Path(__file__).parents[3] / "docs" / "formats" / "vectors" / "entry.json"
ENTRIES = [each["text"].encode() for each in json.loads(VECTORS.read_text())["entries"]]
ROWS = "rows.ocsf.jsonl"
ALL = Query()
READS = Query(principal="user:ana")


def made(folder: Path, *, query: Query = ALL, sample: Sample | None = None) -> Path:
    head = TreeHead(origin=ORIGIN, size=len(ENTRIES), root=merkle.root_of(map(merkle.leaf_hash, ENTRIES)))
    export.write_log(folder, iter([ENTRIES]), sign_head(head, VERIFIER, KEY.sign), head)
    export.write_rows(folder, VERIFIER.vkey, query=query, format="ocsf", sample=sample)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("export") / "events")


def test_the_rows_are_the_events_of_all_that_match(whole: Path, tmp_path: Path) -> None:
    events = [ocsf.event(index, json.loads(data), origin=ORIGIN) for index, data in enumerate(ENTRIES)]
    assert (whole / ROWS).read_bytes() == b"".join(canonical_bytes(each) + b"\n" for each in events)
    some = made(tmp_path / "some", query=READS)
    wanted = [each for each in events if each["actor"].get("user", {}).get("uid") == "user:ana"]
    assert [json.loads(line) for line in (some / ROWS).read_text().splitlines()] == wanted
    found = export.verify_export(some, VERIFIER.vkey).certificate
    assert found is not None
    assert (found.format, found.matching, found.rows) == ("ocsf", len(wanted), len(wanted))


def test_a_sample_of_events_is_drawn_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "sample", sample=Sample(size=5, seed="2026Q3"))
    assert len((folder / ROWS).read_text().splitlines()) == 5
    found = export.verify_export(folder, VERIFIER.vkey).certificate
    assert found is not None
    assert (found.matching, found.rows) == (len(ENTRIES), 5)


def test_another_log_s_key_opens_nothing(whole: Path) -> None:
    with pytest.raises(IntegrityFailure):
        export.verify_export(whole, OTHER_VERIFIER.vkey)


def test_a_changed_byte_in_any_file_is_found(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    export.verify_export(copy, VERIFIER.vkey)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert {path.name for path in files} >= {"checkpoint", "certificate.json", ROWS}
    for path in files:
        good = path.read_bytes()
        flips = [(at, bit) for at in (0, len(good) // 2, len(good) - 1) for bit in (1, 0x80)]
        others = [good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :] for at, bit in flips]
        for other in (*others, good[:-1], good + b"\n", b""):
            path.write_bytes(other)
            with pytest.raises(IntegrityFailure):
                export.verify_export(copy, VERIFIER.vkey)
        path.unlink()
        # Without its checkpoint or certificate a folder is not an export that came to its end.
        with pytest.raises(UsageError if path.name == "checkpoint" else IntegrityFailure):
            export.verify_export(copy, VERIFIER.vkey)
        path.write_bytes(good)
    export.verify_export(copy, VERIFIER.vkey)


@pytest.mark.parametrize("change", ["left out", "twice", "order", "more", "made harmless", "another log"])
def test_events_that_the_log_does_not_give_are_refused(whole: Path, tmp_path: Path, change: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    lines = (copy / ROWS).read_bytes().splitlines(keepends=True)
    [denied] = [line for line in lines if json.loads(line)["metadata"]["event_code"] == "denial"]
    rows = {
        "left out": [line for line in lines if line != denied],
        "twice": [*lines, lines[-1]],
        "order": [*lines[1:], lines[0]],
        "more": [*lines, b"{}\n"],
        "made harmless": [line.replace(b"Failure", b"Success") if line == denied else line for line in lines],
        "another log": [line.replace(ORIGIN.encode(), b"other.example/log") for line in lines],
    }[change]
    assert rows != lines
    (copy / ROWS).write_bytes(b"".join(rows))
    with pytest.raises(BrokerError, match=r"rows\.ocsf\.jsonl") as caught:
        export.verify_export(copy, VERIFIER.vkey)
    assert isinstance(caught.value, IntegrityFailure)
