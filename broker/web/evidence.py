"""The evidence behind entries: routes for auditors, and its erasure by an administrator."""

from __future__ import annotations

from broker import names
from broker.canonical import Json, parse_time
from broker.services import erasing, evidence
from broker.web import models
from broker.web.calls import Call
from broker.web.requests import parse_index


def show_evidence(call: Call) -> Json:
    """What an entry commits to, or which entry erased it."""
    return evidence.show_evidence(call.house, call.request, parse_index(call.values["index"]))


def show_bundle(call: Call) -> Json:
    """A policy bundle by its digest."""
    return evidence.show_bundle(call.house, call.request, call.values["digest"])


def erase(call: Call) -> Json:
    """Erase a principal's evidence; the entries stay."""
    body: models.ErasureBody = call.body
    return erasing.erase(
        call.house,
        call.request,
        request_id=body.request_id,
        principal=names.parse_principal(body.principal),
        before=None if body.before is None else parse_time(body.before),
        reason=body.reason,
        have=body.have,
    )
