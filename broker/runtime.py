"""The clock and the entropy: the only door through which time and randomness come in."""

from __future__ import annotations

import secrets
import time
import uuid


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000


class SystemEntropy:
    """The operating system's generator."""

    def random_bytes(self, size: int) -> bytes:
        """``size`` unpredictable bytes."""
        return secrets.token_bytes(size)

    def uuid(self) -> str:
        """A random UUID in its usual text form."""
        return str(uuid.UUID(bytes=self.random_bytes(16), version=4))
