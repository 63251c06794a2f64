"""How policies are laid out on the page: Cedar's own style."""

from __future__ import annotations

import cedarpy

from broker.errors import InvalidRequest


def format_policies(text: str) -> str:
    """The same policies, comments included, in Cedar's style; formatting twice changes nothing more.

    Raises:
        InvalidRequest: The text is not policies.
    """
    try:
        return str(cedarpy.format_policies(text))
    except ValueError as exc:
        raise InvalidRequest("the policies do not parse", why=str(exc)[:400]) from exc
