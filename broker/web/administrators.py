"""Routes of administrators: principals, collections, policies, revocations."""

from __future__ import annotations

from broker import names
from broker.canonical import Json
from broker.services import collections, people, policies, revoking
from broker.web import models
from broker.web.calls import Call


def list_principals(call: Call) -> Json:
    """Every principal."""
    return people.list_principals(call.house, call.request)


def show_principal(call: Call) -> Json:
    """One principal."""
    return people.show_principal(call.house, call.request, _principal(call))


def add_principal(call: Call) -> Json:
    """A new principal and its one-time code, which is shown only now."""
    body: models.PrincipalBody = call.body
    return people.add_principal(
        call.house,
        call.request,
        request_id=body.request_id,
        id=names.parse_principal(body.id),
        roles=body.roles,
        groups=[names.parse_group(group) for group in body.groups],
        have=body.have,
    )


def set_principal(call: Call) -> Json:
    """Other roles, groups or state."""
    body: models.PrincipalChangeBody = call.body
    groups = None if body.groups is None else [names.parse_group(group) for group in body.groups]
    return people.set_principal(
        call.house,
        call.request,
        request_id=body.request_id,
        id=_principal(call),
        roles=body.roles,
        groups=groups,
        disabled=body.disabled,
        have=body.have,
    )


def new_code(call: Call) -> Json:
    """A fresh one-time code, which is shown only now."""
    body: models.Recorded = call.body
    return people.new_code(
        call.house, call.request, request_id=body.request_id, id=_principal(call), have=body.have
    )


def _principal(call: Call) -> str:
    return names.parse_principal(call.values["id"])


def list_collections(call: Call) -> Json:
    """Every collection."""
    return collections.list_collections(call.house, call.request)


def set_collection(call: Call) -> Json:
    """The groups that may read and publish."""
    body: models.CollectionBody = call.body
    return collections.set_collection(
        call.house,
        call.request,
        request_id=body.request_id,
        name=names.parse_part(call.values["name"], "collection"),
        readers=None if body.readers is None else [names.parse_group(group) for group in body.readers],
        publishers=None
        if body.publishers is None
        else [names.parse_group(group) for group in body.publishers],
        have=body.have,
    )


def show_policies(call: Call) -> Json:
    """The active policy bundle."""
    return policies.show(call.house, call.request)


def apply_policies(call: Call) -> Json:
    """Another bundle decides from now on."""
    body: models.PolicyBody = call.body
    return policies.apply(
        call.house, call.request, request_id=body.request_id, files=body.files, have=body.have
    )


def revoke(call: Call) -> Json:
    """End a grant, token, key or principal."""
    body: models.RevocationBody = call.body
    [(kind, id)] = body.named()
    return revoking.revoke(
        call.house, call.request, request_id=body.request_id, kind=kind, id=id, have=body.have
    )
