"""How a file's object is cut into the parts of a multipart upload: both sides compute the same plan.

A part is a whole number of extents, at least 5 MiB (but for the last; the smallest that S3 takes), and
there are at most 10,000 of them. A file of one part is stored by a single create-only PUT instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker import limits
from broker.envelope import extents

MIN_PART: Final = 8 * limits.MIB
MAX_PARTS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """``parts`` parts of ``extents_per_part`` extents each (the last may have fewer)."""

    extents_per_part: int
    parts: int


def part_plan(size: int, extent_size: int) -> PartPlan:
    """The plan for a file of ``size`` plaintext bytes; an empty file has no parts."""
    count = extents.extent_count(size, extent_size)
    per_part = max(-(-MIN_PART // extent_size), -(-count // MAX_PARTS), 1)
    return PartPlan(extents_per_part=per_part, parts=-(-count // per_part))


def part_extents(size: int, extent_size: int, part: int) -> range:
    """Indices of the extents in part ``part`` (from 1)."""
    plan = part_plan(size, extent_size)
    first = (part - 1) * plan.extents_per_part
    return range(first, min(first + plan.extents_per_part, extents.extent_count(size, extent_size)))


def part_size(size: int, extent_size: int, part: int) -> int:
    """Bytes of ciphertext in part ``part`` (from 1)."""
    return sum(
        extents.ciphertext_size(extents.extent_plaintext_size(size, extent_size, index))
        for index in part_extents(size, extent_size, part)
    )
