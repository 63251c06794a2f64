"""How far a transfer is: bars for somebody at a terminal, a short line now and then for a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from broker.cli.output import WIDTH, Output, is_terminal, safe, size_text

if TYPE_CHECKING:
    from broker.client.progress import OnProgress, Progress

_MOST_BARS: Final = 8
"""Files that have a bar of their own at one time; the rest shows in the total."""
_LINE_SECONDS: Final = 5.0
_NAME_COLUMNS: Final = 32


class Meter:
    """Times a transfer and shows it. Its :attr:`on_progress` is called by one thread at a time."""

    def __init__(self, out: Output, verb: str) -> None:
        self._out = out
        self._verb = verb
        self._began = time.monotonic()
        self._told = self._began
        self._bars: _Bars | None = None
        self._draw = is_terminal(sys.stderr) and not out.quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.close()

    @property
    def on_progress(self) -> OnProgress | None:
        """Whom a transfer tells; nobody when quiet."""
        if self._out.quiet:
            return None
        return self._show_bars if self._draw else self._tell_line

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def summary(self, moved: int) -> str:
        """``1.50 GiB in 3.2 s, 480 MiB/s``."""
        if not moved:
            return f"nothing had to be moved, {self.seconds:.1f} s"
        seconds = max(self.seconds, 0.001)
        return f"{size_text(moved)} in {seconds:.1f} s, {size_text(int(moved / seconds))}/s"

    def _show_bars(self, step: Progress) -> None:
        if self._bars is None:
            self._bars = _Bars(self._verb, step.total)
        self._bars.move(step)

    def _tell_line(self, step: Progress) -> None:
        now = time.monotonic()
        if now - self._told < _LINE_SECONDS or step.total_done >= step.total:
            return
        self._told = now
        share = 100 * step.total_done // max(step.total, 1)
        self._out.say(f"{self._verb} {share}% of {size_text(step.total)} ({self.summary(step.total_done)})")


class _Bars:
    """A total at the top, and below it the files that are under way."""

    def __init__(self, verb: str, total: int) -> None:
        self._total = _bar(verb, total, position=0)
        self._files: dict[str, tuple[Any, int]] = {}
        self._places = list(range(1, _MOST_BARS + 1))

    def move(self, step: Progress) -> None:
        """Draw one step; tqdm itself sees to it that the screen is not drawn too often."""
        self._total.update(step.total_done - self._total.n)
        if step.done >= step.size:
            self._end(step.path)
            return
        if step.path not in self._files:
            if not self._places:
                return
            place = heappop(self._places)
            self._files[step.path] = (_bar(safe(step.path), step.size, position=place), place)
        bar, _ = self._files[step.path]
        bar.update(step.done - bar.n)

    def _end(self, path: str) -> None:
        if path in self._files:
            bar, place = self._files.pop(path)
            heappush(self._places, place)
            bar.close()

    def close(self) -> None:
        """Take the bars away; the summary that follows says what they said."""
        for path in list(self._files):
            self._end(path)
        self._total.close()


@contextmanager
def counting(out: Output, what: str, *, unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar for things that are counted; nothing where nobody looks.

    Yields:
        Whom to tell (done, total); None when nobody is to be told.
    """
    if out.quiet or not is_terminal(sys.stderr):
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=f" {unit}", leave=False, file=sys.stderr, dynamic_ncols=_knows_width()) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move


def _bar(name: str, total: int, *, position: int) -> Any:
    from tqdm import tqdm

    known = _knows_width()
    shown = name if len(name) <= _NAME_COLUMNS else f"…{name[1 - _NAME_COLUMNS :]}"
    return tqdm(
        desc=f"{shown:<{_NAME_COLUMNS}}",
        total=total,
        position=position,
        leave=False,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        ncols=None if known else WIDTH,
        nrows=None if known else 2 * _MOST_BARS,
        dynamic_ncols=known,
        file=sys.stderr,
    )


def _knows_width() -> bool:
    # A terminal that nobody gave a size has 0 columns, and would get no bar at all.
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False
