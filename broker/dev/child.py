"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
# Loaded here, before any fork: between fork and exec the child may take no locks.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def start_child(
    command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own; it gets SIGTERM when this process ends, even by SIGKILL.

    Call it from the main thread: the kernel watches the thread that forks, not the process.

    Args:
        command: Program and arguments; no shell is involved.
        env: Its whole environment.
        log: File that its output is appended to, mode 0600.
        cwd: Its working directory; this process's own unless given.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            # The parent died before the line above; nobody would ever tell this child.
            os._exit(1)

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - our own program and arguments
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,
        )
    finally:
        os.close(output)


def stop_child(child: subprocess.Popen[bytes], *, timeout: float) -> None:
    """SIGTERM, and after ``timeout`` seconds SIGKILL for its whole group; returns when it has ended."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            kill_child(child)


def kill_child(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the whole group of a child; returns when the child has ended."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
