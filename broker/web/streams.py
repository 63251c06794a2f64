"""Answers of many lines: sent as they are made, and cut off visibly when making them fails."""

from __future__ import annotations

from collections.abc import Iterator

from werkzeug.wrappers import Response

from broker.web.logs import describe_fault, get_logger

JSON_LINES = "application/jsonl"


def stream_lines(lines: Iterator[bytes]) -> Response:
    """An answer whose body is these lines.

    The first line is made before anything is answered, so that a refusal still has its status. A later
    failure breaks the connection off: an answer that just ended would look whole.
    """
    first = next(lines, b"")
    return Response(_continue(first, lines), content_type=JSON_LINES, direct_passthrough=True)


def _continue(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield first
        yield from rest
    except Exception as exc:
        get_logger().error("an answer broke off", fault=describe_fault(exc))
        raise
