"""One JSON line on stderr for each request and each fault.

A line never holds a query, a header, a body, or the text of an exception that is not ours: such a text
may quote any of them, or a database row (I11). Types and places of a traceback find the fault.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any, Final

import structlog

from broker.errors import BrokerError

_DEEPEST: Final = 60
_LONGEST_CHAIN: Final = 8


def configure_logging() -> None:
    """Send every line of this process to stderr as JSON."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger() -> Any:
    """The logger that writes those lines."""
    return structlog.get_logger("broker.web")


def describe_fault(exc: BaseException) -> list[dict[str, Any]]:
    """The chain of an exception, outermost first: type, our own words if it is ours, and its frames."""
    chain: list[dict[str, Any]] = []
    at: BaseException | None = exc
    while at is not None and len(chain) < _LONGEST_CHAIN:
        frames = traceback.extract_tb(at.__traceback__)[-_DEEPEST:]
        link: dict[str, Any] = {
            "type": f"{type(at).__module__}.{type(at).__qualname__}",
            "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        }
        if isinstance(at, BrokerError):
            link |= {"what": at.what, "why": at.why, "next": at.next}
        chain.append(link)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return chain
