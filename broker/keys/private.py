"""Files with secrets: small, regular, and readable by their owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from broker.errors import ConfigurationError

MAX_FILE: Final = 16 * 1024
"""Bytes of the largest file with a secret that is read."""


def read_private(path: Path, what: str) -> bytes:
    """The bytes of a file that only its owner can read or write; at most :data:`MAX_FILE`.

    Args:
        path: The file; a link to one is fine.
        what: How messages call it: "key file".

    Raises:
        ConfigurationError: Missing, unreadable, too large, not a file, or open to its group or to others.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(MAX_FILE + 1)
    except OSError as exc:
        raise ConfigurationError(f"the {what} {path} cannot be read", why=exc.strerror) from exc
    if found.st_mode & 0o077 or not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(
            f"the {what} {path} can be read or written by others", next=f"chmod 600 {path}"
        )
    if len(data) > MAX_FILE:
        raise ConfigurationError(f"{path} is not a {what}", why=f"it has more than {MAX_FILE} bytes")
    return data
