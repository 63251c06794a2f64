"""``broker demo`` as somebody runs it who has just installed the product."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.running import children_of, environment, is_running, until

PROGRAM = (sys.executable, "-P", "-m", "broker", "demo")


def begin(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *options],
        env=environment(TMPDIR=str(tmp_path), HOME=str(tmp_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(180)
def test_the_story_holds_and_leaves_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    child = begin(tmp_path)
    pids: set[int] = set()
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        lines.append(line)
        pids |= children_of(child.pid)
    assert child.wait() == 0, "".join(lines)
    text = "".join(lines)
    assert "✗" not in text
    for claim in (
        "ckpt/ is byte for byte llama-mini/",
        "eve finds nothing there (exit 5",
        "critical needs more than one person (exit 3",
        "the whole log verifies (exit 0",
        "the proof holds offline (exit 0",
        "the auditor finds out (exit 6",
        "and it names the entry",
        "The story held",
    ):
        assert claim in text
    assert list(tmp_path.glob("broker-demo-*")) == []
    assert pids
    assert not [pid for pid in pids if is_running(pid)]
    assert time.monotonic() - started < 120


def test_interrupted_it_cleans_up(tmp_path: Path) -> None:
    child = begin(tmp_path)
    until(lambda: list(tmp_path.glob("broker-demo-*/stack/ready.json")), what="the demo's stack")
    pids = children_of(child.pid)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130, out
    assert list(tmp_path.glob("broker-demo-*")) == []
    until(lambda: not [pid for pid in pids if is_running(pid)], what="the end of its processes", seconds=20)
