"""Hostile bytes are read in a child process with capped memory, time and output.

The parent's side is :func:`run_capped`. The child is this module again: it caps itself before it
reads a byte of its input, then lets the named module's ``check`` answer.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from broker import limits
from broker.errors import InvalidRequest, Unavailable

_ROOT: Final = str(Path(__file__).resolve().parent.parent)


def run_capped(
    module: str,
    data: bytes,
    *,
    seconds: float,
    memory: int,
    output: int = limits.MAX_CAPPED_OUTPUT,
    files: int = 64,
    threads: int = 1,
) -> bytes:
    """What ``module.check(data)`` returns, computed in a child process that cannot do harm.

    The child has an empty environment, no standard error, a session of its own, no core file, at most
    ``memory`` bytes of address space and ``output`` bytes of answer, and is killed after ``seconds``.
    Nothing of it is left when this returns.

    Args:
        module: A module of this package with a function ``check(bytes) -> bytes``; never from outside.
        data: What it is to look at, from anybody.
        seconds: Wall clock time, of which the child may compute all.
        memory: Bytes, 128 MiB or more (the interpreter itself needs some 60).
        output: Bytes of the longest answer, and of any file that it could write.
        files: How many it may have open at once.
        threads: How many may compute all that time.

    Raises:
        InvalidRequest: The child died, ran out of time or memory, or answered too much.
        Unavailable: No child could be started.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as sink:
        source.write(data)
        source.seek(0)
        caps = [str(cap) for cap in (math.ceil(seconds * threads), memory, output, files)]
        command = [sys.executable, "-P", "-s", "-B", "-m", __name__, module, *caps]
        try:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
                command,
                stdin=source,
                stdout=sink,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": _ROOT},
                cwd="/",
                start_new_session=True,
            )
        except OSError as exc:
            raise Unavailable("no process can be started to check the text") from exc
        _await(child, seconds)
        sink.seek(0)
        return sink.read(output)


def _await(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        status = child.wait(timeout=seconds)
    except subprocess.TimeoutExpired as exc:
        raise _refusal("checking it took too long") from exc
    finally:
        # Also when the wait was interrupted: no child outlives its parent's interest in it.
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if status != 0:
        raise _refusal("checking it ran out of memory or time, or crashed the parser")


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest("the text cannot be parsed", why=why)


def _cap(computing: int, memory: int, output: int, files: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (computing, computing))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _main(module: str, *caps: str) -> None:
    _cap(*map(int, caps))
    answer: bytes = importlib.import_module(module).check(sys.stdin.buffer.read())
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
