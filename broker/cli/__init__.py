"""The command line: ``broker ...``. Data on stdout, talk on stderr, the exit status says what became of it.

Importing this package imports nothing of the product, so that ``broker --version`` and completion are
quick; each command imports what it needs when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit status (:data:`broker.errors.EXIT_CODE`).

    Args:
        args: The words after ``broker``; None takes them from the process.
    """
    import sys

    from broker.cli.root import cli, run

    raise SystemExit(run(cli, sys.argv[1:] if args is None else list(args)))
