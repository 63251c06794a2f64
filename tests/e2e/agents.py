"""A real ``broker agent`` of a user, and outside tools that are led to it by variables alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.running import COMMAND_SECONDS, PROGRAM, Done, User

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
"""What a tool gets of this process's variables: nothing of the project's, nothing of the user's."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """An agent that serves.

    Attributes:
        urls: Name of an endpoint (``s3``, ``hf``) -> its URL.
        export: The variables that lead tools to it.
    """

    pid: int
    urls: Mapping[str, str]
    export: Mapping[str, str] = field(repr=False)

    def tool(
        self, home: Path, *command: object, expect: int | None = 0, input: str | None = None, **env: str
    ) -> Done:
        """Run a tool with its caches and settings below ``home``, and hold it to its exit status."""
        done = subprocess.run(
            [str(word) for word in command],
            env={**tool_environment(home), **self.export, **env},
            cwd=home,
            input=None if input is None else input.encode(),
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=COMMAND_SECONDS,
        )
        found = Done(code=done.returncode, data=done.stdout, err=done.stderr.decode("utf-8", "replace"))
        shown = " ".join(str(word) for word in command)[:300]
        assert expect is None or found.code == expect, (
            f"{shown}: exit {found.code}\n{found.out[-3000:]}{found.err[-6000:]}"
        )
        return found


def tool_environment(home: Path) -> dict[str, str]:
    """The variables of a tool that knows of nothing: its home is ``home``."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "HOME": str(home), "HF_HOME": str(home / "hf"), "NO_COLOR": "1", "HF_DEBUG": "0"}


@contextmanager
def agent(user: User, *options: str, **env: str) -> Iterator[Served]:
    """The agent of a user for the duration of a with-block; it must end by SIGTERM alone, with status 0."""
    with subprocess.Popen(
        [*PROGRAM, "agent", "-o", "jsonl", *options],
        env=user.env(**env),
        cwd=user.stack.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read().decode()
            said: dict[str, Any] = json.loads(line)
            yield Served(pid=said["pid"], urls=said["endpoints"], export=said["export"])
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, process.stderr.read().decode()
        finally:
            process.kill()
