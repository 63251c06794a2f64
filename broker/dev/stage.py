"""What a demonstration needs around its story: users with profiles, commands as they would type them.

Each command runs as a process of its own, exactly as at a shell prompt. It is shown with what it said and
with a mark that tells whether it ended as the story says it must.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import broker
from broker.dev.child import start_child, stop_child
from broker.errors import BrokerError, ConfigurationError, Unavailable

PROGRAM: Final = (sys.executable, "-m", "broker")
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 15.0
"""What ``broker dev`` promises: it is gone this long after SIGTERM."""
COMMAND_SECONDS: Final = 300.0
LOG: Final = "stack.log"
STACK: Final = "stack"
"""Name of the embedded stack's directory in the working folder."""
_HOME_OF_PRODUCT: Final = str(Path(broker.__file__).resolve().parent.parent)
_POLL_SECONDS: Final = 0.05
_INDENT: Final = "    "
_LONGEST_LINE: Final = 108
_MOST_LINES: Final = 8


class StoryFailed(BrokerError):
    """A step did not end as it must."""

    code = "internal"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command that has ended.

    Attributes:
        code: Its exit status.
        out: What it wrote to stdout.
        err: What it wrote to stderr; empty when that went straight to the terminal.
        seconds: How long it took.
    """

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> Any:
        """Its stdout as JSON.

        Raises:
            StoryFailed: It is not.
        """
        try:
            return json.loads(self.out)
        except ValueError as exc:
            raise StoryFailed("a command did not write JSON") from exc


class Stage:
    """A folder to work in, users with profiles, and a place to tell the story.

    Args:
        folder: Working folder of every command; profiles and logs live in it too.
        out: Where the story is told.
    """

    def __init__(self, folder: Path, out: TextIO) -> None:
        self.folder = folder
        self.home = folder / STACK
        self.profiles = self.home / "profiles"
        self.held = 0
        self._out = out
        self._stack: subprocess.Popen[bytes] | None = None

    # -- telling --------------------------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        """One line of the story."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def act(self, title: str) -> None:
        """The headline of what comes next."""
        self.say()
        self.say(f"== {title}")

    def hold(self, claim: str, *, holds: bool) -> None:
        """A claim of the story, with its mark.

        Raises:
            StoryFailed: It does not hold.
        """
        self.say(f"{_INDENT}{'✓' if holds else '✗'} {claim}")
        if not holds:
            raise StoryFailed(claim)
        self.held += 1

    # -- commands -----------------------------------------------------------------------------------------

    def run(
        self,
        user: str,
        *words: str,
        expect: int = 0,
        claim: str | None = None,
        shown: str | None = None,
        lines: int = _MOST_LINES,
        live: bool = False,
        aside: bool = False,
    ) -> Done:
        """Run ``broker WORDS`` as a user, show it, and hold it to its exit status.

        Args:
            user: Whose profile it uses.
            words: What comes after ``broker``.
            expect: The exit status that it must have.
            claim: What its exit status shows; without it a status of 0 is taken for granted.
            shown: The command as it is shown, when it differs (a secret in it).
            lines: How many lines of its output are shown at most.
            live: Let it draw its bars, when somebody looks.
            aside: Do not show it: the story only needs its answer.

        Raises:
            StoryFailed: It ended with another status.
        """
        if not aside:
            self.say(f"{user}$ broker {shown or shlex.join(words)}")
        done = self._call(user, words, live=live and sys.stderr.isatty())
        if not aside or done.code != expect:
            self._show(done, lines)
        if claim is not None or done.code != expect:
            self.hold(
                f"{claim or 'it works'} (exit {done.code}, {done.seconds:.1f} s)", holds=done.code == expect
            )
        return done

    def _call(self, user: str, words: tuple[str, ...], *, live: bool) -> Done:
        started = time.monotonic()
        done = subprocess.run(  # noqa: S603 - our own program and arguments, no shell
            [*PROGRAM, *words],
            cwd=self.folder,
            env=self.environment(user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if live else subprocess.PIPE,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        seconds = time.monotonic() - started
        return Done(code=done.returncode, out=done.stdout, err=done.stderr or "", seconds=seconds)

    def environment(self, user: str) -> dict[str, str]:
        """The environment of a user's commands: their profile, and no other setting of the product."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        # Its children find the same product, also when it runs from a checkout that is not installed.
        return {**kept, "BROKER_PROFILE_DIR": str(self.profiles / user), "PYTHONPATH": _HOME_OF_PRODUCT}

    def _show(self, done: Done, most: int) -> None:
        said = [line.rstrip() for line in (done.out + done.err).splitlines() if line.strip()]
        for line in said[:most]:
            self.say(_fit(line))
        if len(said) > most > 1:
            self.say(f"{_INDENT}… {len(said) - most} more lines")

    # -- the stack ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def stack(self, *options: str) -> Iterator[dict[str, Any]]:
        """``broker dev`` for the duration of a with-block; yields what ``ready.json`` says.

        Raises:
            Unavailable: It does not get ready.
        """
        words = ["dev", "--home", STACK, *options]
        self.say(f"you$ broker {shlex.join(words)} &")
        self._stack = start_child(
            [*PROGRAM, *words], env=self.environment("admin"), log=self.folder / LOG, cwd=self.folder
        )
        try:
            yield self._await_ready(self.home / "ready.json")
        finally:
            self.stop()

    def _await_ready(self, path: Path) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._stack is not None and self._stack.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                found: dict[str, Any] = json.loads(path.read_bytes())
                return found
            time.sleep(_POLL_SECONDS)
        raise Unavailable("the embedded stack does not get ready", why=self.last_words())

    def last_words(self) -> str:
        """The end of the stack's log."""
        try:
            return (self.folder / LOG).read_text("utf-8", "replace")[-2000:].strip()
        except FileNotFoundError:
            return "it said nothing"

    def stop(self) -> int | None:
        """Stop the stack as SIGTERM does; its exit status, negative when it had to be killed."""
        child, self._stack = self._stack, None
        if child is None:
            return None
        stop_child(child, timeout=STOP_SECONDS)
        return child.returncode


def _fit(line: str) -> str:
    text = _INDENT + line
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 1] + "…"


def check_installed() -> None:
    """The libraries that the demonstration makes its samples with are there.

    Raises:
        ConfigurationError: One is not.
    """
    try:
        import numpy as np  # noqa: F401
        import safetensors  # noqa: F401
    except ImportError as exc:
        raise ConfigurationError(
            "the demonstration needs numpy and safetensors",
            next="pip install 'model-access-broker[embedded]'",
        ) from exc
