"""Who can reach what: questions of auditors to policy. Each is itself recorded."""

from __future__ import annotations

from broker import names
from broker.canonical import Json
from broker.services import reach
from broker.web import models
from broker.web.calls import Call


def who_can(call: Call) -> Json:
    """The principals whom policy would not refuse a version."""
    query: models.WhoCanQuery = call.query
    collection, name = names.parse_artifact(query.artifact)
    return reach.who_can(
        call.house,
        call.request,
        collection=collection,
        name=name,
        version=None if query.version is None else names.parse_version(query.version),
        action=query.action,
        purpose=query.purpose,
        after=query.after,
        limit=query.limit,
    )


def what_can(call: Call) -> Json:
    """The artifacts whose newest version policy would not refuse a principal."""
    query: models.WhatCanQuery = call.query
    return reach.what_can(
        call.house,
        call.request,
        principal=names.parse_principal(query.principal),
        purpose=query.purpose,
        after=query.after,
        limit=query.limit,
    )
