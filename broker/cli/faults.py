"""What is kept of a bug: types and places of its traceback, under an id, in a file of one's own.

The text of a foreign exception may quote a URL with its signature or a token, so it is not kept (I11).
"""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.errors import BrokerError

_DEEPEST: Final = 60
_LONGEST_CHAIN: Final = 8


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A bug on record; ``path`` is None when no file could be written."""

    id: str
    text: str
    path: Path | None


def record_fault(exc: BaseException) -> Fault:
    """Write the places of a traceback to ``$XDG_STATE_HOME/broker/faults/ID.txt`` (mode 0600)."""
    from broker import __version__
    from broker.runtime import SystemEntropy

    id = SystemEntropy().random_bytes(6).hex()
    text = f"broker {__version__}, fault {id}\n{describe_fault(exc)}"
    folder = _folder()
    path = folder / f"{id}.txt"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return Fault(id=id, text=text, path=None)
    return Fault(id=id, text=text, path=path)


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path(os.environ.get("HOME") or "/") / ".local" / "state")
    return Path(state) / "broker" / "faults"


def describe_fault(exc: BaseException) -> str:
    """The chain of an exception, outermost first: type, our own words if it is ours, and its frames."""
    lines: list[str] = []
    at: BaseException | None = exc
    links = 0
    while at is not None and links < _LONGEST_CHAIN:
        said = f": {at.what}" if isinstance(at, BrokerError) else ""
        lines.append(f"{type(at).__module__}.{type(at).__qualname__}{said}")
        frames = traceback.extract_tb(at.__traceback__)[-_DEEPEST:]
        lines += [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
        links += 1
    return "\n".join(lines) + "\n"
