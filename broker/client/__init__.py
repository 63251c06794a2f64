"""EDGE: the client. It asks, verifies what it is answered, and only then uses it.

``sdk`` has the one object that most callers need; ``settings`` the profile; ``session`` signed requests;
``trust`` what is believed of the log; ``versions`` the trust path of a manifest; ``grants`` grants and
leases, ``opening`` what may be in one; ``fetch``, ``reading``, ``publish``, ``verify``, ``enrol`` and
``ledger`` the things to do; ``library`` what filesystems are made of. Nothing is imported before it is
used: start-up time counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.client.fetch import Receipt
    from broker.client.progress import Progress
    from broker.client.publish import Published
    from broker.client.sdk import Client, verify_receipt

__all__ = ["Client", "Progress", "Published", "Receipt", "verify_receipt"]

_HOMES = {
    "Client": "broker.client.sdk",
    "Progress": "broker.client.progress",
    "Published": "broker.client.publish",
    "Receipt": "broker.client.fetch",
    "verify_receipt": "broker.client.sdk",
}


def __getattr__(name: str) -> Any:
    """Load a name of the SDK on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'broker.client' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
