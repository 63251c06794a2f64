"""Bars for somebody at a terminal, lines for a log, nothing for who wants quiet."""

from __future__ import annotations

import io
import sys

import pytest

from broker.cli import bars
from broker.cli.bars import Meter
from broker.cli.output import Output
from broker.client.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def move(meter: Meter, *steps: tuple[str, int, int, int]) -> None:
    assert meter.on_progress is not None
    for path, done, size, total_done in steps:
        meter.on_progress(Progress(path=path, done=done, size=size, total_done=total_done, total=2000))


def test_a_terminal_gets_a_bar_for_each_file_and_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Meter(Output(), "fetched") as meter:
        move(meter, ("a.bin", 500, 1000, 500), ("b\x1b[2J.bin", 1, 1000, 501), ("a.bin", 1000, 1000, 1001))
    drawn = screen.getvalue()
    assert "fetched" in drawn
    assert "a.bin" in drawn
    assert "b\\x1b[2J.bin" in drawn
    assert "\x1b[2J" not in drawn


def test_more_files_than_places_share_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Meter(Output(), "fetched") as meter:
        move(meter, *((f"file-{n}", 1, 100, n + 1) for n in range(20)))
        move(meter, ("file-0", 100, 100, 200), ("late", 1, 100, 201))
    drawn = screen.getvalue()
    assert "file-7" in drawn
    assert "file-8" not in drawn
    assert "late" in drawn, "the place of a file that is done is free again"


def test_work_that_has_to_be_done_again_moves_the_bar_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Meter(Output(), "fetched") as meter:
        move(meter, ("a", 500, 1000, 500), ("a", 100, 1000, 100))
        assert meter._bars is not None
        assert meter._bars._total.n == 100
        assert meter._bars._files["a"][0].n == 100


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bars, "_LINE_SECONDS", 0.0)
    with Meter(Output(), "fetched") as meter:
        move(meter, ("a", 500, 1000, 500), ("a", 1000, 1000, 2000))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1, "the end is told by the summary"
    assert told[0].startswith("fetched 25% of 1.95 KiB")


def test_short_transfers_say_nothing_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(Output(), "fetched") as meter:
        move(meter, ("a", 500, 1000, 500))
    assert capsys.readouterr().err == ""


def test_quiet_has_no_progress_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Meter(Output(quiet=True), "fetched") as meter:
        assert meter.on_progress is None


def test_the_summary_has_amount_time_and_rate() -> None:
    meter = Meter(Output(), "fetched")
    assert " in 0." in meter.summary(5 * 2**20)
    assert meter.summary(5 * 2**20).endswith("/s")
    assert meter.summary(0).startswith("nothing had to be moved")
