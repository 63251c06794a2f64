"""The broker's errors as the operating system's: what callers of a filesystem know to expect.

Each carries the stable ``code`` of the :class:`~broker.errors.BrokerError` that it was raised from.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from broker.errors import (
    ApprovalNeeded,
    BrokerError,
    Denied,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    OverBudget,
    RateLimited,
    Unavailable,
    UsageError,
)


class BrokerFileError(OSError):
    """What the broker's filesystem raises; ``code`` is the stable code of the broker's error."""

    code: str = ""


class BrokerFileNotFound(BrokerFileError, FileNotFoundError):
    """It does not exist, is not visible, or has no name that anything could have."""


class BrokerFileRefused(BrokerFileError, PermissionError):
    """Refused: by policy, for want of an approval, by a budget, or because the caller is not known."""


class BrokerFileUnreachable(BrokerFileError, ConnectionError):
    """The broker or the store does not answer, or asks to come back later."""


_REFUSALS: Final = (Denied, ApprovalNeeded, OverBudget, NotAuthenticated)


def os_error(exc: BrokerError, path: str) -> BrokerFileError:
    """The ``OSError`` that stands for a broker's error; the caller raises it ``from`` that one."""
    kind, number = BrokerFileError, errno.EIO
    if isinstance(exc, NotFound):
        kind, number = BrokerFileNotFound, errno.ENOENT
    elif isinstance(exc, _REFUSALS):
        kind, number = BrokerFileRefused, errno.EACCES
    elif isinstance(exc, Unavailable | RateLimited):
        kind = BrokerFileUnreachable
    elif isinstance(exc, InvalidRequest):
        number = errno.EINVAL
    found = kind(number, "; ".join(part for part in (exc.what, exc.why, exc.next) if part), path)
    found.code = exc.code
    return found


@contextlib.contextmanager
def as_os_errors(path: str) -> Iterator[None]:
    """Raise a block's broker errors as those of the operating system, about ``path``."""
    try:
        yield
    except BrokerError as exc:
        raise os_error(exc, path) from exc


def read_only_error(path: object) -> BrokerFileError:
    """The answer to every attempt to write."""
    found = BrokerFileError(
        errno.EROFS,
        "broker:// is read-only: a version never changes; publish a new one with broker put",
        str(path),
    )
    found.code = UsageError.code
    return found
