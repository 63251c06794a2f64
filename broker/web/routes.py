"""The table of routes. It is the whole of what is served: see :func:`broker.web.app.create_app` (I02).

Each route says who may ask: anybody, a key alone, a caller about its own things, or a caller whose
token covers a scope and whom policy allows an action. The use cases enforce it; a test asks every
route without credentials, another compares this table with ``docs/http.md``.
"""

from __future__ import annotations

from typing import Any, Final, cast

from broker import limits
from broker.identity.scope import ADMINISTRATION, ARTIFACT, LEDGER
from broker.web import (
    administrators,
    auditors,
    evidence,
    federation,
    models,
    oauth,
    openapi,
    public,
    publishers,
    reach,
    readers,
    replays,
    tiles,
)
from broker.web.calls import Access, Handler, Method, Needs, Own, Proof, Public, PublicHandler, Route

_PUBLIC: Final = Public()
_TOKEN: Final = Proof(by="an assertion by the same key, or the token to exchange")
_GRANTS: Final = Own(of="grants")
_UPLOADS: Final = Own(of="uploads")
_TOKENS: Final = Own(of="tokens")
_DESCRIBE: Final = Needs(action="describe", scope=(ARTIFACT, "describe"))
_READ: Final = Needs(action="read", scope=(ARTIFACT, "read"))
_PUBLISH: Final = Needs(action="publish", scope=(ARTIFACT, "publish"))
_SEARCH: Final = Needs(action="audit", scope=(LEDGER, "search"))
_LEDGER: Final = Needs(action="audit", scope=(LEDGER, "read"))
_PROVE: Final = Needs(action="audit", scope=(LEDGER, "prove"))
_PRINCIPALS: Final = Needs(action="administer", scope=(ADMINISTRATION, "principals"))
_POLICIES: Final = Needs(action="administer", scope=(ADMINISTRATION, "policies"))
_REVOCATIONS: Final = Needs(action="administer", scope=(ADMINISTRATION, "revocations"))

_ARTIFACT: Final = "/v1/artifacts/<collection>/<name>"
_VERSION: Final = f"{_ARTIFACT}/versions/<version>"
_LISTS: Final = limits.MAX_UPLOAD_BODY


def _route(target: str, access: Access, handler: Handler | PublicHandler, **more: Any) -> Route:
    """``target`` is ``METHOD /rule``; the name is the handler's module and function."""
    method, _, rule = target.partition(" ")
    name = f"{handler.__module__.rpartition('.')[2]}.{handler.__name__}"
    return Route(name=name, method=cast(Method, method), rule=rule, access=access, handler=handler, **more)


ROUTES: Final[tuple[Route, ...]] = (
    # -- anybody
    _route("GET /livez", _PUBLIC, public.live),
    _route("GET /readyz", _PUBLIC, public.ready),
    _route("GET /metrics", _PUBLIC, public.show_metrics, local_only=True),
    _route("GET /openapi.json", _PUBLIC, openapi.show),
    _route("GET /.well-known/oauth-authorization-server", _PUBLIC, public.authorization_server),
    _route(f"GET {public.PROTECTED_RESOURCE}", _PUBLIC, public.protected_resource),
    _route("GET /oauth/jwks", _PUBLIC, public.jwks),
    _route("GET /ledger/checkpoint", _PUBLIC, public.checkpoint),
    _route("GET /ledger/cosigned", _PUBLIC, public.cosigned_head),
    _route("GET /ledger/keys", _PUBLIC, public.log_keys),
    _route("GET /ledger/tile/<level>/<path:place>", _PUBLIC, tiles.hash_tile),
    # -- tokens
    _route("POST /oauth/token", _TOKEN, oauth.issue_token, form=True),
    _route("POST /oauth/introspect", _TOKENS, oauth.introspect_token, form=True),
    _route("POST /oauth/revoke", _TOKENS, oauth.revoke_token, form=True),
    # -- who am I
    _route("POST /v1/enrolments", Proof(by="a one-time code"), readers.enrol, body=models.EnrolmentBody),
    _route("GET /v1/whoami", Own(of="principal, keys and token"), readers.whoami),
    # -- the catalogue
    _route("GET /v1/artifacts", _DESCRIBE, readers.list_artifacts, query=models.ArtifactsQuery),
    _route("GET /v1/artifacts/<collection>", _DESCRIBE, readers.list_collection, query=models.ArtifactsQuery),
    _route(f"GET {_ARTIFACT}", _DESCRIBE, readers.show_artifact),
    _route(f"GET {_VERSION}", _DESCRIBE, readers.show_version),
    _route(f"GET {_VERSION}/manifest", _DESCRIBE, readers.show_manifest),
    # -- reading
    _route("POST /v1/grants", _READ, readers.ask, body=models.GrantBody),
    _route("GET /v1/grants/<id>", _GRANTS, readers.show_grant),
    _route("DELETE /v1/grants/<id>", _GRANTS, readers.revoke_grant, body=models.Maybe),
    _route("POST /v1/grants/<id>/leases", _READ, readers.lease, body=models.LeaseBody),
    _route("POST /v1/grants/<id>/completion", _GRANTS, readers.complete, body=models.CompletionBody),
    _route("POST /v1/decisions", _DESCRIBE, readers.dry_run, body=models.DecisionBody),
    # -- publishing
    _route("POST /v1/uploads", _PUBLISH, publishers.begin, body=models.UploadBody, most=_LISTS),
    _route("GET /v1/uploads/<id>", _UPLOADS, publishers.show),
    _route("DELETE /v1/uploads/<id>", _UPLOADS, publishers.abandon, body=models.Maybe),
    _route("POST /v1/uploads/<id>/urls", _PUBLISH, publishers.urls, body=models.UrlsBody),
    _route("POST /v1/uploads/<id>/commit", _PUBLISH, publishers.commit, body=models.CommitBody, most=_LISTS),
    # -- administration
    _route("GET /v1/principals", _PRINCIPALS, administrators.list_principals),
    _route("POST /v1/principals", _PRINCIPALS, administrators.add_principal, body=models.PrincipalBody),
    _route("GET /v1/principals/<path:id>", _PRINCIPALS, administrators.show_principal),
    _route(
        "PATCH /v1/principals/<path:id>",
        _PRINCIPALS,
        administrators.set_principal,
        body=models.PrincipalChangeBody,
    ),
    _route("POST /v1/principals/<path:id>/codes", _PRINCIPALS, administrators.new_code, body=models.Recorded),
    _route("GET /v1/collections", _PRINCIPALS, administrators.list_collections),
    _route(
        "PUT /v1/collections/<name>", _PRINCIPALS, administrators.set_collection, body=models.CollectionBody
    ),
    _route("GET /v1/issuers", _PRINCIPALS, federation.list_issuers),
    _route("PUT /v1/issuers/<name>", _PRINCIPALS, federation.put_issuer, body=models.IssuerBody),
    _route("DELETE /v1/issuers/<name>", _PRINCIPALS, federation.remove_issuer, body=models.Maybe),
    _route("GET /v1/issuers/<name>/keys", _PRINCIPALS, federation.show_keys),
    _route("GET /v1/policies", _POLICIES, administrators.show_policies),
    _route("PUT /v1/policies", _POLICIES, administrators.apply_policies, body=models.PolicyBody),
    _route("POST /v1/revocations", _REVOCATIONS, administrators.revoke, body=models.RevocationBody),
    _route("POST /v1/ledger/erasures", _PRINCIPALS, evidence.erase, body=models.ErasureBody),
    # -- auditing
    _route("POST /v1/policies/replay", _SEARCH, replays.replay, body=replays.ReplayBody),
    _route("GET /v1/policies/who-can", _SEARCH, reach.who_can, query=models.WhoCanQuery),
    _route("GET /v1/policies/what-can", _SEARCH, reach.what_can, query=models.WhatCanQuery),
    _route("GET /v1/ledger/entries", _SEARCH, auditors.search, query=models.EntriesQuery),
    _route("GET /v1/ledger/counts", _SEARCH, auditors.count, query=models.CountsQuery),
    _route("GET /v1/ledger/entries/<index>", _LEDGER, auditors.show_entry),
    _route("GET /v1/ledger/evidence/<index>", _LEDGER, evidence.show_evidence),
    _route("GET /v1/ledger/bundles/<digest>", _LEDGER, evidence.show_bundle),
    _route("GET /v1/ledger/leaves", _LEDGER, auditors.leaves, query=models.LeavesQuery),
    _route("GET /v1/ledger/hashes", _LEDGER, auditors.hashes, query=models.HashesQuery),
    _route("GET /v1/ledger/heads", _LEDGER, auditors.heads),
    _route("POST /v1/ledger/exports", _LEDGER, auditors.export, body=models.ExportBody),
    _route("GET /ledger/tile/entries/<path:place>", _LEDGER, tiles.entry_bundle),
    _route("GET /v1/ledger/proof/inclusion/<index>", _PROVE, auditors.inclusion),
    _route(
        "GET /v1/ledger/proof/consistency",
        Own(of="proof that the log grew"),
        auditors.consistency,
        query=models.ConsistencyQuery,
    ),
)
