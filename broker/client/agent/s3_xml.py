"""The XML documents of the S3 API.

**Source**: Amazon S3 API Reference: *ListBuckets*, *ListObjectsV2*, *ListObjects*, *GetBucketLocation*,
*Error Responses*; XML 1.0 section 2.2 (characters).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from xml.sax.saxutils import escape

XML_TYPE: Final = "application/xml"
_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_PROLOGUE: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NO_XML_RE: Final = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Element = tuple[str, "str | Iterable[Element]"]
"""A name, and its text or what is in it."""


def document(name: str, content: str | Iterable[Element]) -> bytes:
    """A document of the S3 namespace."""
    return "".join([_PROLOGUE, f'<{name} xmlns="{_NAMESPACE}">', _render(content), f"</{name}>"]).encode()


def error_document(code: str, message: str) -> bytes:
    """An error, which alone has no namespace."""
    content = _render((("Code", code), ("Message", message)))
    return f"{_PROLOGUE}<Error>{content}</Error>".encode()


def _render(content: str | Iterable[Element]) -> str:
    if isinstance(content, str):
        return _text(content)
    return "".join(f"<{name}>{_render(inner)}</{name}>" for name, inner in content)


def _text(text: str) -> str:
    # What XML cannot hold stands as a mark: one such name must not make a whole document unreadable.
    return escape(_NO_XML_RE.sub("\ufffd", text))
