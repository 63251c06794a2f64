"""What reaches a terminal or a file: formats, sizes, tables, and nothing that steers a terminal."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cli.output import (
    FORMATS,
    Column,
    Output,
    counted,
    csv_cell,
    fields,
    plain,
    safe,
    safe_json,
    safe_lines,
    size_text,
    table,
    time_text,
)

UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
HOSTILE = "\x1b[2J\x07\x9b31m\u202egnp.exe\u2028x\r\ny\x00\x7f"
COLUMNS = (
    Column(name="name", title="NAME", shrink=True),
    Column(name="n", title="N", right=True),
    Column(name="why", title="WHY", shrink=True),
)


def unsafe_in(text: str) -> set[str]:
    return {ch for ch in text if ch != "\n" and unicodedata.category(ch) in UNSAFE}


@given(st.text())
def test_safe_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = safe(text)
    assert not unsafe_in(shown)
    assert "\n" not in shown


def test_safe_keeps_what_people_write() -> None:
    assert safe("weights été 重み.bin") == "weights été 重み.bin"
    assert safe("a\x1b[31m") == "a\\x1b[31m"
    assert safe("a\u202eb") == "a\\u202eb"
    assert safe("\U000e0041") == "\\U000e0041"
    assert safe_lines("permit\t(\n\x1b)") == "permit\t(\n\\x1b)"


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c))
)
def test_json_is_safe_and_says_the_same(value: Any) -> None:
    for indent in (None, 2):
        text = safe_json(value, indent=indent)
        assert not unsafe_in(text)
        assert json.loads(text) == value


@pytest.mark.parametrize("format", FORMATS)
def test_no_format_lets_an_escape_through(format: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(format=format)
    row = {"name": HOSTILE, "n": 1, "why": [HOSTILE]}
    out.rows([row], COLUMNS, whole=lambda rows: {"rows": rows}, members=("name", "n", "why"), empty="")
    out.record(row, fields(row.items()))
    shown = capsys.readouterr()
    assert not unsafe_in(shown.out), format
    assert "gnp.exe" in shown.out


@given(
    st.lists(
        st.fixed_dictionaries(
            {"name": st.text(max_size=200), "n": st.integers(0, 10**9), "why": st.text(max_size=200)}
        ),
        max_size=5,
    )
)
def test_a_table_fits(rows: list[dict[str, Any]]) -> None:
    lines = table(rows, COLUMNS, width=100)
    assert len(lines) == len(rows) + 1
    assert all(width(line) <= 100 for line in lines)


def width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(ch) else 2 if unicodedata.east_asian_width(ch) in "WF" else 1
        for ch in text
    )


def test_a_table_is_aligned() -> None:
    rows = [{"name": "a", "n": 5, "why": None}, {"name": "重み", "n": 12345, "why": True}]
    assert table(rows, COLUMNS) == ["NAME      N  WHY", "a         5", "重み  12345  yes"]


def test_what_is_cut_says_so() -> None:
    [_, line] = table([{"name": "x" * 300, "n": 1, "why": ""}], COLUMNS, width=40)
    assert "…" in line
    assert len(line) <= 40


def test_columns_that_may_not_be_cut_are_whole() -> None:
    [_, line] = table([{"id": "x" * 300}], (Column(name="id", title="ID"),), width=40)
    assert line == "x" * 300


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1024 * 1024 - 1, "1.00 MiB"),
        (32 * 2**20, "32.0 MiB"),
        (1536 * 2**20, "1.50 GiB"),
        (5 * 2**40, "5.00 TiB"),
        (2**53, "8.00 PiB"),
        (2**70, "1048576 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


def test_small_things() -> None:
    assert time_text("2026-11-23T19:44:41.334Z") == "2026-11-23T19:44:41Z"
    assert time_text(None) == ""
    assert time_text("soon") == "soon"
    assert plain({"tier": "standard", "run": 4}) == "tier=standard, run=4"
    assert plain(["a", None, True]) == "a, , yes"
    assert counted(1, "file") == "1 file"
    assert counted(2, "file") == "2 files"
    assert fields([("a", 1), ("longer", None), ("bb", "x")]) == ["a   1", "bb  x"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)"])
def test_csv_text_is_no_formula(text: str) -> None:
    assert csv_cell(text) == "'" + text


def test_csv_cells() -> None:
    assert [csv_cell(v) for v in (None, True, -5, ["a", "b"], {"k": 1}, "plain")] == [
        "",
        "true",
        "-5",
        "a b",
        '{"k":1}',
        "plain",
    ]


def test_csv_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": 'a,"b"', "n": 1, "why": "x"}, {"name": "c", "n": None, "why": "y"}]
    Output(format="csv").rows(rows, COLUMNS, whole=dict, members=("name", "n", "why"), empty="")
    found = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert found == [["name", "n", "why"], ['a,"b"', "1", "x"], ["c", "", "y"]]


def test_rows_stream_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def rows() -> Any:
        for n in range(3):
            seen.append(capsys.readouterr().out)
            yield {"n": n}

    Output(format="jsonl").rows(rows(), COLUMNS, whole=dict, members=("n",), empty="")
    seen.append(capsys.readouterr().out)
    assert "".join(seen) == '{"n":0}\n{"n":1}\n{"n":2}\n'
    assert seen[1] == '{"n":0}\n', "the first row is written before the second is asked for"


def test_quiet_says_nothing_and_verbose_more(capsys: pytest.CaptureFixture[str]) -> None:
    for out in (Output(quiet=True, verbose=True), Output(), Output(verbose=True)):
        out.say("talk")
        out.detail("detail")
    assert capsys.readouterr().err == "talk\ntalk\ndetail\n"


def test_an_empty_table_says_so_beside_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows([], COLUMNS, whole=dict, members=("n",), empty="nothing there")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "nothing there\n")
