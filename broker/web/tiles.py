"""The log as static pieces. Source: C2SP tlog-tiles."""

from __future__ import annotations

from typing import Final

from werkzeug.wrappers import Response

from broker.services import tiles
from broker.web.calls import Call, PublicCall

OCTETS: Final = "application/octet-stream"
_FOR_EVER: Final = "max-age=31536000, immutable"


def hash_tile(call: PublicCall) -> Response:
    """A tile of the tree's hashes."""
    data = tiles.hash_tile(call.house, call.values["level"], call.values["place"])
    return _immutable(data, "public")


def entry_bundle(call: Call) -> Response:
    """The entries under one tile of leaves, in one bundle."""
    return _immutable(tiles.entry_bundle(call.house, call.request, call.values["place"]), "private")


def _immutable(data: bytes, who: str) -> Response:
    answer = Response(data, content_type=OCTETS)
    answer.headers["Cache-Control"] = f"{who}, {_FOR_EVER}"
    return answer
