"""Whether this process may still serve: once the log was seen to go back or to fork, it may not (I10)."""

from __future__ import annotations

from broker.errors import RollbackDetected


class Guard:
    """Remembers the first proof of a rollback or fork for as long as the process lives.

    Safe between threads: the one member is set once and never taken back. What was proven stays true
    until somebody restores the log, so only a restart, which checks the log again, ends it.
    """

    def __init__(self) -> None:
        self._found: RollbackDetected | None = None

    @property
    def is_shut(self) -> bool:
        """Whether a rollback or fork was found."""
        return self._found is not None

    def shut(self, found: RollbackDetected) -> None:
        """Refuse everything from now on, for that reason; the first reason stays."""
        if self._found is None:
            self._found = found

    def check(self) -> None:
        """Nothing was found so far.

        Raises:
            RollbackDetected: The log went back or was forked; ``why`` says how that was seen.
        """
        found = self._found
        if found is not None:
            raise RollbackDetected(found.what, why=found.why, next=found.next)
