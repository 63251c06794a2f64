"""A command on the lead of its agent: statuses, signals, limits, and its end with the agent's end.

Each case is a process of its own that does what the agent does, so that it can be killed.
"""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.client.agent import lifecycle

ROOT = Path(__file__).resolve().parents[4]

AGENT = """
import os, sys
from broker.client.agent import lifecycle
alive, grace, early, *command = sys.argv[1:]
lifecycle.GRACE_SECONDS = float(grace)
core = lifecycle.forbid_core_dumps()
with lifecycle.held_signals():
    if early:
        os.kill(os.getpid(), int(early))
    try:
        child = lifecycle.start_child(command, env=os.environ, core=core)
    except lifecycle.CommandNotStarted as exc:
        print(exc.what, exc.next, file=sys.stderr)
        raise SystemExit(exc.status)
    raise SystemExit(lifecycle.await_child(child, lambda: os.path.exists(alive)))
"""
COUNTER = """
import os, signal, sys
wanted = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("ready", os.getpid(), flush=True)
for _ in range(int(sys.argv[1])):
    print(signal.sigwait(wanted).name, flush=True)
"""
STUBBORN = """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def words(*command: str, alive: str = "/", grace: float = 30, early: str = "") -> list[str]:
    return [sys.executable, "-P", "-c", AGENT, alive, str(grace), early, *command]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(*command, **options),  # type: ignore[arg-type]
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def started(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        words(*command, **options),  # type: ignore[arg-type]
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str]) -> int:
    """The pid that the command said when it was ready."""
    assert process.stdout is not None
    word, pid = process.stdout.readline().split()
    assert word == "ready"
    return int(pid)


def await_gone(pid: int) -> None:
    """Wait for the end of a process that is nobody's child here."""
    try:
        found = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        readable, _, _ = select.select([found], [], [], 30)
        assert readable, f"process {pid} is still there"
    finally:
        os.close(found)


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_exit_status_is_passed_on(status: int) -> None:
    assert run("sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV], ids=lambda n: n.name)
def test_a_command_that_a_signal_ended_has_128_more(number: signal.Signals) -> None:
    assert run("sh", "-c", f"kill -{int(number)} $$").returncode == 128 + number


def test_there_is_no_such_command() -> None:
    done = run("no-such-command-anywhere")
    assert (done.returncode, "not found" in done.stderr) == (127, True)


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    plain.chmod(0o644)
    assert run(str(plain)).returncode == 126
    plain.chmod(0o755)
    plain.write_bytes(b"\x7fELF and no more")
    assert run(str(plain)).returncode == 126
    assert run(str(tmp_path)).returncode == 126


def test_signals_are_passed_on() -> None:
    sent = [signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGUSR2, signal.SIGQUIT, signal.SIGTERM]
    with started(sys.executable, "-c", COUNTER, str(len(sent))) as process:
        ready(process)
        assert process.stdout is not None
        for number in sent:
            process.send_signal(number)
            assert process.stdout.readline().strip() == number.name
        assert process.wait(30) == 0


def test_a_signal_before_the_command_starts_is_not_lost() -> None:
    done = run("sleep", "60", early=str(int(signal.SIGTERM)))
    assert done.returncode == 128 + signal.SIGTERM


def test_a_signal_that_came_too_late_changes_nothing() -> None:
    code = (
        "import os, signal\n"
        "from broker.client.agent import lifecycle\n"
        "with lifecycle.held_signals():\n"
        "    for number in lifecycle.PASSED_ON:\n"
        "        os.kill(os.getpid(), number)\n"
        "print('well', signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "well set()\n", done.stderr


def test_a_command_begins_with_no_signal_blocked() -> None:
    done = run("cat", "/proc/self/status")
    blocked = next(line for line in done.stdout.splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) == 0


def test_a_key_at_the_terminal_reaches_a_command_once() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(sys.executable, words(sys.executable, "-c", COUNTER, "2"), environment())
    with os.fdopen(terminal, "r+b", buffering=0) as file:
        said = b""
        while b"ready" not in said:
            said += file.read(1024)
        file.write(b"\x03")
        while b"SIGINT" not in said:
            said += file.read(1024)
        # Had the agent passed it on as well, a second SIGINT would stand before this one.
        os.kill(pid, signal.SIGUSR1)
        while b"SIGUSR1" not in said:
            said += file.read(1024)
        # The terminal stays open until the end: closing it is a signal, too.
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert said.count(b"SIGINT") == 1


def test_a_command_ends_when_its_agent_is_killed() -> None:
    with started(sys.executable, "-c", STUBBORN) as process:
        child = ready(process)
        process.kill()
        await_gone(child)


def test_a_command_whose_agent_died_before_it_began_never_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as if the parent were another by now
    core = resource.getrlimit(resource.RLIMIT_CORE)
    child = lifecycle.start_child(["touch", str(tmp_path / "begun")], env=os.environ, core=core)
    assert child.wait(30) == 128 + signal.SIGKILL
    assert not (tmp_path / "begun").exists()


def test_a_command_is_asked_to_end_when_an_endpoint_fails(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    alive.touch()
    with started(sys.executable, "-c", COUNTER, "1", alive=str(alive)) as process:
        ready(process)
        alive.unlink()
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "SIGTERM"
        assert process.wait(30) == 0


def test_a_command_that_does_not_end_then_is_killed(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    alive.touch()
    with started(sys.executable, "-c", STUBBORN, alive=str(alive), grace=0.1) as process:
        ready(process)
        alive.unlink()
        assert process.wait(30) == 128 + signal.SIGKILL


def test_no_core_of_the_agent_and_the_users_own_limit_for_the_command() -> None:
    code = (
        "import ctypes, resource, subprocess, sys\n"
        "from broker.client.agent import lifecycle\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.getrlimit(resource.RLIMIT_CORE)[1]))\n"
        "core = lifecycle.forbid_core_dumps()\n"
        "libc = ctypes.CDLL(None)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0], libc.prctl(3, 0, 0, 0, 0), flush=True)\n"
        "look = 'import ctypes, resource; '\\\n"
        "    'print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))'\n"
        "lifecycle.start_child([sys.executable, '-c', look], env={}, core=core).wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["0 0", "4096 1"], done.stderr
