"""Routes of auditors. Every one of these reads is itself recorded."""

from __future__ import annotations

from werkzeug.wrappers import Response

from broker.canonical import Json
from broker.services import auditing, counting, exports
from broker.web import models
from broker.web.calls import Call
from broker.web.requests import parse_index
from broker.web.streams import stream_lines


def search(call: Call) -> Json:
    """One page of matching entries."""
    query: models.EntriesQuery = call.query
    return auditing.search(
        call.house,
        call.request,
        q=query.q,
        since=query.since,
        until=query.until,
        after=query.after,
        limit=query.limit,
    )


def count(call: Call) -> Json:
    """All matching entries, counted in groups."""
    query: models.CountsQuery = call.query
    return counting.count(
        call.house,
        call.request,
        q=query.q,
        since=query.since,
        until=query.until,
        by=query.by,
        top=query.top,
    )


def show_entry(call: Call) -> Json:
    """One entry, its record and its receipt."""
    return auditing.show_entry(call.house, call.request, parse_index(call.values["index"]))


def leaves(call: Call) -> Response:
    """Stored rows as JSON lines, for verification."""
    query: models.LeavesQuery = call.query
    lines = auditing.leaves(call.house, call.request, query.start, query.stop, with_index=query.index == "1")
    return stream_lines(lines)


def hashes(call: Call) -> Json:
    """Stored interior hashes, for verification."""
    query: models.HashesQuery = call.query
    return auditing.hashes(call.house, call.request, query.level, query.start, query.stop)


def export(call: Call) -> Json:
    """An export, put on record."""
    body: models.ExportBody = call.body
    return exports.record_export(
        call.house,
        call.request,
        request_id=body.request_id,
        format=body.format,
        size=body.size,
        digest=body.digest,
        have=body.have,
    )


def heads(call: Call) -> Json:
    """The signed tree heads that were kept."""
    return auditing.heads(call.house, call.request)


def inclusion(call: Call) -> Json:
    """A receipt of one entry."""
    return auditing.inclusion(call.house, call.request, parse_index(call.values["index"]))


def consistency(call: Call) -> Json:
    """Proof that one tree extends another."""
    query: models.ConsistencyQuery = call.query
    return auditing.consistency(call.house, call.request, query.from_size, query.to)
