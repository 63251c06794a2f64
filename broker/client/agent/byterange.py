"""One range of a file's bytes, as HTTP asks for it.

**Source**: RFC 9110 sections 14.1.2 (the grammar), 14.2 (what is not understood is ignored), 13.1.5
(If-Range).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=([0-9]{0,16})-([0-9]{0,16})", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """The bytes from ``start`` up to ``stop`` (exclusive) of a file of ``size`` bytes.

    Attributes:
        partial: Whether this answers a ``Range`` (206), or is the whole file (200).
    """

    start: int
    stop: int
    size: int
    partial: bool

    @property
    def length(self) -> int:
        """Bytes of it."""
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """The value of ``Content-Range``."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def read_range(headers: Mapping[str, str], *, size: int, etag: str) -> ByteRange | None:
    """The range that a GET asks for; None when the file has none of its bytes (416).

    No range, several of them, another unit, or a text that is none of these: the whole file, as the
    standard has it. So is a range under an ``If-Range`` that does not name ``etag``.

    Args:
        headers: Of the request, names in lower case.
        size: Bytes of the file.
        etag: Its strong entity tag, with the quotes.
    """
    whole = ByteRange(start=0, stop=size, size=size, partial=False)
    found = _RANGE.fullmatch(headers.get("range", "").strip())
    if found is None or not (found[1] or found[2]) or headers.get("if-range", etag) != etag:
        return whole
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < int(found[1]):
            return whole
    return ByteRange(start=start, stop=stop, size=size, partial=True) if start < stop else None
