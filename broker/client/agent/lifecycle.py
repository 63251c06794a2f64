"""What keeps an agent's secrets in, and its command on its lead.

The agent holds the caller's key and decrypted bytes: it leaves no core dump, and no other process of the
same user may look into it or attach to it. Its command gets the user's own limits back, and ends when the
agent ends, however that ends: an agent that was killed is noticed by the kernel (``PR_SET_PDEATHSIG``), an
endpoint that failed by :func:`await_child`.

Signals are waited for, not handled: they are blocked from before a command's start to its end, so none is
lost between two steps, and it is told apart whether the terminal sent one (the command has it already) or a
process did (it is passed on).

**Source**: prctl(2) (PR_SET_PDEATHSIG, PR_SET_DUMPABLE), getrlimit(2), sigaction(2) (si_code).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from broker.errors import InternalError, UsageError

ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that end an agent, and that a command gets passed on."""
PASSED_ON: Final = ENDING | {signal.SIGUSR1, signal.SIGUSR2}
GRACE_SECONDS: Final = 10.0
"""How long a command may take to end after SIGTERM once its agent failed."""
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_SIGNALLED: Final = 128
_POLL_SECONDS: Final = 0.25
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_SI_KERNEL: Final = 0x80
# Loaded here, before any fork: between fork and exec the child may take no locks.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

CoreLimit = tuple[int, int]


def forbid_core_dumps() -> CoreLimit:
    """No core dump of this process, and nobody of the same user looks into it; what the limit was before.

    Raises:
        InternalError: The kernel refuses.
    """
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    if _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise InternalError("the kernel does not let this process forbid core dumps")
    return before


@contextmanager
def held_signals() -> Iterator[None]:
    """Within, the signals of :data:`PASSED_ON` and SIGCHLD wait to be asked for. Main thread only.

    What still waits at the end is dropped: it came too late for a command that has ended.
    """
    held = PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        while signal.sigtimedwait(held, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def await_end(is_running: Callable[[], bool]) -> bool:
    """Wait for a signal of :data:`ENDING`, within :func:`held_signals`.

    Returns:
        True after a signal, False when ``is_running`` ended first.
    """
    # What the caller had us ignore, as nohup does, arrives all the same while it is held.
    ending = {number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN}
    while is_running():
        if signal.sigtimedwait(ending, _POLL_SECONDS) is not None:
            return True
    return False


def start_child(
    command: Sequence[str], *, env: Mapping[str, str], core: CoreLimit
) -> subprocess.Popen[bytes]:
    """Start the command within :func:`held_signals`; it is killed when this process ends for any reason.

    Call it from the main thread, before there are others: the kernel watches the thread that forks, and a
    lock that another thread holds at the fork would stay locked in the child.

    Args:
        command: Program, looked up in the PATH of ``env``, and its arguments; no shell is involved.
        env: Its whole environment.
        core: The core limit that it gets.

    Raises:
        CommandNotStarted: There is no such program (127), or it cannot be executed (126).
    """
    parent = os.getpid()

    def before_exec() -> None:
        # SIGKILL, not SIGTERM: a command may outlive the latter, and reads nothing any more.
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            # The parent died before the line above; nobody would ever tell this child.
            os._exit(_SIGNALLED + signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CORE, core)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON | {signal.SIGCHLD})

    try:
        return subprocess.Popen(command, env=dict(env), preexec_fn=before_exec)  # noqa: S603 - the user's own
    except FileNotFoundError as exc:
        raise CommandNotStarted("the command is not found", status=NOT_FOUND) from exc
    except OSError as exc:
        raise CommandNotStarted(
            "the command cannot be executed", status=NOT_EXECUTABLE, why=exc.strerror
        ) from exc


class CommandNotStarted(UsageError):
    """The command could not be started; ``status`` is what a shell would end with (127 or 126)."""

    def __init__(self, what: str, *, status: int, why: str | None = None) -> None:
        super().__init__(what, why=why, next="check its name, its mode and PATH")
        self.status = status


def await_child(child: subprocess.Popen[bytes], is_running: Callable[[], bool]) -> int:
    """Wait for the command within :func:`held_signals`, and pass signals on; its exit status.

    A command that was ended by signal *n* has the status 128 + n, as in a shell. When ``is_running`` (the
    agent is well) ends first, the command gets SIGTERM, and SIGKILL after :data:`GRACE_SECONDS`.
    """
    deadline: float | None = None
    while (status := child.poll()) is None:
        if deadline is None and not is_running():
            child.terminate()
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            child.kill()
        found = signal.sigtimedwait(PASSED_ON | {signal.SIGCHLD}, _POLL_SECONDS)
        if found is not None and found.si_signo != signal.SIGCHLD and found.si_code != _SI_KERNEL:
            child.send_signal(found.si_signo)
    return status if status >= 0 else _SIGNALLED - status


def end_child(child: subprocess.Popen[bytes]) -> None:
    """End a command that nobody waits for any more, at once."""
    if child.poll() is None:
        child.kill()
        child.wait()
