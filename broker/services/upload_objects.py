"""What the store holds of an upload, against what it is to hold."""

from __future__ import annotations

import json
from collections.abc import Mapping

from broker.envelope import extents
from broker.model import Upload
from broker.services.house import House
from broker.services.releasing import object_name, segments_name


def expected_objects(row: Upload) -> dict[str, tuple[str, int]]:
    """Name of each object that a whole upload has: (path of its file, size in bytes, at least 1)."""
    found = {}
    for file, (path, size) in enumerate(json.loads(row.files)):
        found[object_name(row.version_id, file)] = (path, extents.object_size(size, row.extent_size))
        if extents.has_segments_object(size, row.extent_size):
            length = extents.segments_object_size(size, row.extent_size)
            found[segments_name(row.version_id, file)] = (path, length)
    return {name: (path, size) for name, (path, size) in found.items() if size}


def whole_objects(house: House, row: Upload) -> frozenset[str]:
    """Names of the objects that are there in their full size.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    held, expected = _held(house, row), expected_objects(row)
    return frozenset(name for name, (_, size) in expected.items() if held.get(name) == size)


def clear_torn(house: House, row: Upload) -> None:
    """Delete what a connection that broke left behind in another size, so that it can be sent again.

    A store may keep what it got when a client dies (SeaweedFS keeps an empty object). URLs only create, so
    it would stand in the way for ever. For an open upload only: nobody was told to read of it yet.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    held, expected = _held(house, row), expected_objects(row)
    for name, size in held.items():
        if name in expected and expected[name][1] != size:
            house.store.delete(name)


def _held(house: House, row: Upload) -> Mapping[str, int]:
    return dict(house.store.list(f"v1/{row.version_id.hex()}/"))
