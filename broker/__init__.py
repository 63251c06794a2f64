"""Zero-trust model-artifact access broker: every read is asked for, decided, recorded, then served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.client import Client, verify_receipt
    from broker.errors import BrokerError

__all__ = ["BrokerError", "Client", "__version__", "verify_receipt"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the SDK on first use, so that ``import broker`` alone stays cheap."""
    if name in ("Client", "verify_receipt"):
        from broker import client

        return getattr(client, name)
    if name == "BrokerError":
        from broker.errors import BrokerError

        return BrokerError
    raise AttributeError(f"module 'broker' has no attribute {name!r}")
