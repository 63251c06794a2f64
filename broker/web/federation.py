"""Routes of administrators: the issuers of workload identities."""

from __future__ import annotations

from broker.canonical import Json
from broker.identity.issuers import parse_issuer_name
from broker.services import issuers
from broker.web import models
from broker.web.calls import Call


def list_issuers(call: Call) -> Json:
    """Every issuer of workload identities."""
    return issuers.list_issuers(call.house, call.request)


def put_issuer(call: Call) -> Json:
    """An issuer and its mapping."""
    body: models.IssuerBody = call.body
    wanted = issuers.IssuerRequest(
        name=_name(call),
        url=body.url,
        kind=body.kind,
        audience=body.audience,
        jwks_uri=body.jwks_uri,
        jwks=body.jwks,
        ca=body.ca,
        mapping=body.mapping,
    )
    return issuers.put_issuer(
        call.house, call.request, request_id=body.request_id, wanted=wanted, have=body.have
    )


def remove_issuer(call: Call) -> Json:
    """The issuer counts no more."""
    body: models.Maybe = call.body
    return issuers.remove_issuer(
        call.house,
        call.request,
        request_id=body.request_id or call.house.entropy.uuid(),
        name=_name(call),
        have=body.have,
    )


def show_keys(call: Call) -> Json:
    """An issuer's keys as the broker knows them."""
    return issuers.show_keys(call.house, call.request, _name(call))


def _name(call: Call) -> str:
    return parse_issuer_name(call.values["name"])
