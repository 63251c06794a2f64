"""The file of JSON lines: whole lines only, durable, whatever was torn before."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from broker import limits
from broker.errors import ConfigurationError, Unavailable
from broker.forwarding.jsonl import LineFile
from broker.outbox import Forwarded


def entry(index: int) -> Forwarded:
    return Forwarded(
        index=index, time=0, type="grant", severity=6, leaf_hash=bytes(32), body=b'{"index":%d}' % index
    )


def test_lines_are_added(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = LineFile(path)
    file.deliver([entry(0), entry(1)])
    file.deliver([entry(2)])
    assert path.read_bytes() == b'{"index":0}\n{"index":1}\n{"index":2}\n'
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    assert (file.unsure, file.doubtful(), file.close()) == (0, None, True)


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize("torn", [b'{"ind', b"{", b"\0\0\0\0", b""], ids=["part", "brace", "zeros", "none"])
def test_a_torn_last_line_is_taken_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "out.jsonl"
    for whole in (b"", b'{"index":0}\n'):
        path.write_bytes(whole + torn)
        LineFile(path).deliver([entry(1)])
        assert path.read_bytes() == whole + b'{"index":1}\n'


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for other in (b"notes of mine", b"a\nb\nno end", bytes(limits.MAX_FORWARD_BATCH + 1)):
        path.write_bytes(other)
        with pytest.raises(ConfigurationError, match="something else"):
            LineFile(path).deliver([entry(1)])
        assert path.read_bytes() == other


def test_a_file_that_was_renamed_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = LineFile(path)
    file.deliver([entry(0)])
    path.rename(tmp_path / "out.jsonl.1")
    file.deliver([entry(1)])
    assert path.read_bytes() == b'{"index":1}\n'
    assert (tmp_path / "out.jsonl.1").read_bytes() == b'{"index":0}\n'


def test_what_is_no_plain_file_is_not_written_to(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(target)
    os.mkfifo(fifo)
    with pytest.raises(Unavailable):
        LineFile(link).deliver([entry(0)])
    with pytest.raises(ConfigurationError, match="no plain file"):
        LineFile(fifo).deliver([entry(0)])
    with pytest.raises(Unavailable):
        LineFile(tmp_path / "missing" / "out").deliver([entry(0)])
    assert target.read_bytes() == b""


def test_no_room_leaves_no_part_of_a_batch(tmp_path: Path) -> None:
    """On a device that takes a part and then has no room: a file with a size limit."""
    path = tmp_path / "out.jsonl"
    code = (
        "import resource, sys, pathlib, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from broker.forwarding.jsonl import LineFile\n"
        "from broker.outbox import Forwarded\n"
        "from broker.errors import Unavailable\n"
        "made = lambda n: Forwarded(index=n, time=0, type='x', severity=6, leaf_hash=bytes(32),"
        " body=b'{\"index\":%d}' % n)\n"
        "file = LineFile(pathlib.Path(sys.argv[1]))\n"
        "file.deliver([made(0)])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))\n"
        "try:\n"
        "    file.deliver([made(1), made(2), made(3)])\n"
        "except Unavailable as exc:\n"
        "    print(exc.why)\n"
    )
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert "large" in done.stdout, done.stderr
    assert path.read_bytes() == b'{"index":0}\n'


def test_two_that_write_at_once_mix_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    def deliver(at: int) -> None:
        while True:
            try:
                return LineFile(path).deliver([entry(at)] * 50)
            except Unavailable:
                continue  # another one writes: a forwarder comes again too

    threads = [threading.Thread(target=deliver, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 200
    assert set(lines) == {b'{"index":%d}' % at for at in range(4)}


def test_whoever_holds_the_file_does_not_hold_up_the_forwarder(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = LineFile(path)
    file.deliver([entry(0)])
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(Unavailable):
            file.deliver([entry(1)])
    file.deliver([entry(1)])
    assert path.read_bytes() == b'{"index":0}\n{"index":1}\n'


def test_lines_for_a_file_that_is_taken_away_meanwhile_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    file = LineFile(path)
    file.deliver([entry(0)])
    real = fcntl.flock

    def lock(fd: int, how: int) -> None:
        path.unlink()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    with pytest.raises(Unavailable):
        file.deliver([entry(1)])
    monkeypatch.undo()
    file.deliver([entry(1)])
    assert path.read_bytes() == b'{"index":1}\n'
