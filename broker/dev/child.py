"""A child process that does not outlive its parent."""

from __future__ import annotations

import ctypes
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
# Loaded here, before any fork: the child between fork and exec may not take locks.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends, even by SIGKILL.

    For ``preexec_fn``; survives the exec. Start children from the main thread: the kernel watches the
    thread, not the process.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
