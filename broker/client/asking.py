"""SQL over verified rows: the question goes to a process of its own, with caps that the kernel keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker import sandbox
from broker.archive import asking
from broker.archive.asking import Answer, Bounds
from broker.errors import InvalidRequest, TooLarge

__all__ = ["Answer", "Bounds", "ask"]

_GRACE_SECONDS: Final = 2.0
"""Between DuckDB's interrupt and the end of its process."""
_ROOM: Final = 2 << 30
"""Bytes of address space beside what DuckDB may use: libraries, stacks of threads, the answer."""


def ask(files: Sequence[Path], sql: str, *, bounds: Bounds) -> Answer:
    """Answer one SELECT over the view ``entries``, all rows of ``files``.

    Args:
        files: Parquet files that were verified, in a place where nobody else writes.
        sql: The question.
        bounds: How much it may take.

    Raises:
        UsageError: It is not one SELECT, is wrong, or took too long.
        TooLarge: It needs more memory than it may have, or its answer is too long.
        ConfigurationError: The extra ``archive`` is not installed.
    """
    try:
        data = sandbox.run_capped(
            asking.__name__,
            asking.request([path.resolve() for path in files], sql, bounds=bounds),
            seconds=bounds.seconds + _GRACE_SECONDS,
            memory=(bounds.memory_mib << 20) + _ROOM,
            output=asking.MAX_ANSWER,
            files=len(files) * bounds.threads + 64,
            threads=bounds.threads + 1,
        )
    except InvalidRequest as exc:
        raise TooLarge(
            f"the question took more than {bounds.seconds:g} s or {bounds.memory_mib} MiB, and was ended",
            next="ask for less, for example WHERE principal = ..., or give --timeout",
        ) from exc
    return asking.answer(data)
