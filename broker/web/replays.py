"""Recorded decisions made again: a question of auditors, itself recorded."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker import limits
from broker.canonical import Json
from broker.services import replaying
from broker.web.calls import Call
from broker.web.models import Count, Shape


class ReplayBody(Shape):
    """Which decisions are made again, and by which bundle; ``after`` is the last index of the page before."""

    files: Annotated[dict[str, str], Field(min_length=1, max_length=limits.MAX_POLICY_FILES)] | None = None
    q: Annotated[str, Field(max_length=limits.MAX_QUERY)] = ""
    since: Annotated[str, Field(max_length=64)] | None = None
    until: Annotated[str, Field(max_length=64)] | None = None
    after: Count | None = None


def replay(call: Call) -> Json:
    """One page of recorded decisions, made again by the same bundles or by a candidate."""
    body: ReplayBody = call.body
    return replaying.replay(
        call.house,
        call.request,
        files=body.files,
        q=body.q,
        since=body.since,
        until=body.until,
        after=body.after,
    )
