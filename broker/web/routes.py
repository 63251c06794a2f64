"""The table of routes. It is the whole of what is served: see :func:`broker.web.app.create_app` (I02).

Each route says who may ask: anybody, a key alone, a caller about its own things, or a caller whose
token covers a scope and whom policy allows an action. The use cases enforce it; a test asks every
route without credentials, another compares this table with the documentation.
"""

from __future__ import annotations

from typing import Final

from broker import limits
from broker.identity.scope import ADMINISTRATION, ARTIFACT, LEDGER
from broker.web import administrators, auditors, models, oauth, openapi, public, publishers, readers
from broker.web.calls import Needs, Own, Proof, Public, Route

_PUBLIC: Final = Public()
_DESCRIBE: Final = Needs(action="describe", scope=(ARTIFACT, "describe"))
_READ: Final = Needs(action="read", scope=(ARTIFACT, "read"))
_PUBLISH: Final = Needs(action="publish", scope=(ARTIFACT, "publish"))
_SEARCH: Final = Needs(action="audit", scope=(LEDGER, "search"))
_READ_LEDGER: Final = Needs(action="audit", scope=(LEDGER, "read"))
_PROVE: Final = Needs(action="audit", scope=(LEDGER, "prove"))
_PRINCIPALS: Final = Needs(action="administer", scope=(ADMINISTRATION, "principals"))
_POLICIES: Final = Needs(action="administer", scope=(ADMINISTRATION, "policies"))
_REVOCATIONS: Final = Needs(action="administer", scope=(ADMINISTRATION, "revocations"))
_REVOKE_OWN: Final = Needs(action="revoke-own", scope=(ARTIFACT, "read"))

_ARTIFACT: Final = "/v1/artifacts/<collection>/<name>"
_VERSION: Final = f"{_ARTIFACT}/versions/<version>"

PUBLIC_ROUTES: Final = (
    Route(
        name="live",
        method="GET",
        rule="/livez",
        access=_PUBLIC,
        handler=public.live,
        summary="the process answers",
    ),
    Route(
        name="ready",
        method="GET",
        rule="/readyz",
        access=_PUBLIC,
        handler=public.ready,
        summary="database, ledger and store answer; else 503",
    ),
    Route(
        name="metrics",
        method="GET",
        rule="/metrics",
        access=_PUBLIC,
        handler=public.show_metrics,
        summary="Prometheus counters; to callers on the same machine, unless opened by a setting",
        local_only=True,
    ),
    Route(
        name="openapi",
        method="GET",
        rule="/openapi.json",
        access=_PUBLIC,
        handler=openapi.show,
        summary="this table and the shapes of its bodies",
    ),
    Route(
        name="authorization_server",
        method="GET",
        rule="/.well-known/oauth-authorization-server",
        access=_PUBLIC,
        handler=public.authorization_server,
        summary="RFC 8414; with the log's name and key",
    ),
    Route(
        name="protected_resource",
        method="GET",
        rule=public.PROTECTED_RESOURCE,
        access=_PUBLIC,
        handler=public.protected_resource,
        summary="RFC 9728",
    ),
    Route(
        name="jwks",
        method="GET",
        rule="/oauth/jwks",
        access=_PUBLIC,
        handler=public.jwks,
        summary="public keys of access tokens",
    ),
    Route(
        name="checkpoint",
        method="GET",
        rule="/ledger/checkpoint",
        access=_PUBLIC,
        handler=public.checkpoint,
        summary="the newest signed tree head, a C2SP note",
    ),
)

OAUTH_ROUTES: Final = (
    Route(
        name="token",
        method="POST",
        rule="/oauth/token",
        access=Proof(by="an assertion by the same key"),
        handler=oauth.issue_token,
        summary="an access token for an enrolled key (jwt-bearer)",
        form=True,
    ),
    Route(
        name="introspect",
        method="POST",
        rule="/oauth/introspect",
        access=Own(of="tokens"),
        handler=oauth.introspect_token,
        summary="what one of the caller's own tokens is worth",
        form=True,
    ),
    Route(
        name="revoke_token",
        method="POST",
        rule="/oauth/revoke",
        access=Own(of="tokens"),
        handler=oauth.revoke_token,
        summary="end one of the caller's own tokens",
        form=True,
    ),
)

READER_ROUTES: Final = (
    Route(
        name="enrol",
        method="POST",
        rule="/v1/enrolments",
        access=Proof(by="a one-time code"),
        handler=readers.enrol,
        summary="bind the signing key to the principal of a one-time code",
        body=models.EnrolmentBody,
    ),
    Route(
        name="whoami",
        method="GET",
        rule="/v1/whoami",
        access=Own(of="principal, keys and token"),
        handler=readers.whoami,
        summary="the caller, its keys, its token",
    ),
    Route(
        name="list_artifacts",
        method="GET",
        rule="/v1/artifacts",
        access=_DESCRIBE,
        handler=readers.list_artifacts,
        summary="visible artifacts",
        query=models.ArtifactsQuery,
    ),
    Route(
        name="list_collection",
        method="GET",
        rule="/v1/artifacts/<collection>",
        access=_DESCRIBE,
        handler=readers.list_collection,
        summary="visible artifacts of one collection",
        query=models.ArtifactsQuery,
    ),
    Route(
        name="show_artifact",
        method="GET",
        rule=_ARTIFACT,
        access=_DESCRIBE,
        handler=readers.show_artifact,
        summary="one artifact and its versions",
    ),
    Route(
        name="show_version",
        method="GET",
        rule=_VERSION,
        access=_DESCRIBE,
        handler=readers.show_version,
        summary="one version, by name or digest; `-` is the newest",
    ),
    Route(
        name="show_manifest",
        method="GET",
        rule=f"{_VERSION}/manifest",
        access=_DESCRIBE,
        handler=readers.show_manifest,
        summary="its manifest, signature, and the receipts of the trust path",
    ),
    Route(
        name="ask",
        method="POST",
        rule="/v1/grants",
        access=_READ,
        handler=readers.ask,
        summary="a grant and its first lease",
        body=models.GrantBody,
    ),
    Route(
        name="show_grant",
        method="GET",
        rule="/v1/grants/<id>",
        access=Own(of="grants"),
        handler=readers.show_grant,
        summary="one of the caller's grants",
    ),
    Route(
        name="revoke_grant",
        method="DELETE",
        rule="/v1/grants/<id>",
        access=_REVOKE_OWN,
        handler=readers.revoke_grant,
        summary="the caller ends one of its grants",
        body=models.Maybe,
    ),
    Route(
        name="lease",
        method="POST",
        rule="/v1/grants/<id>/leases",
        access=_READ,
        handler=readers.lease,
        summary="the next lease, decided anew",
        body=models.LeaseBody,
    ),
    Route(
        name="complete",
        method="POST",
        rule="/v1/grants/<id>/completion",
        access=Own(of="grants"),
        handler=readers.complete,
        summary="what was received and verified",
        body=models.CompletionBody,
    ),
    Route(
        name="dry_run",
        method="POST",
        rule="/v1/decisions",
        access=_DESCRIBE,
        handler=readers.dry_run,
        summary="would this be allowed, and by which policies",
        body=models.DecisionBody,
    ),
)

PUBLISHER_ROUTES: Final = (
    Route(
        name="begin_upload",
        method="POST",
        rule="/v1/uploads",
        access=_PUBLISH,
        handler=publishers.begin,
        summary="begin an upload, or take an open one up again",
        body=models.UploadBody,
        most=limits.MAX_UPLOAD_BODY,
    ),
    Route(
        name="show_upload",
        method="GET",
        rule="/v1/uploads/<id>",
        access=Own(of="uploads"),
        handler=publishers.show,
        summary="what the store holds of it",
    ),
    Route(
        name="abandon_upload",
        method="DELETE",
        rule="/v1/uploads/<id>",
        access=Own(of="uploads"),
        handler=publishers.abandon,
        summary="give it up",
        body=models.Maybe,
    ),
    Route(
        name="upload_urls",
        method="POST",
        rule="/v1/uploads/<id>/urls",
        access=_PUBLISH,
        handler=publishers.urls,
        summary="create-only upload URLs",
        body=models.UrlsBody,
    ),
    Route(
        name="commit_upload",
        method="POST",
        rule="/v1/uploads/<id>/commit",
        access=_PUBLISH,
        handler=publishers.commit,
        summary="make the version visible",
        body=models.CommitBody,
        most=limits.MAX_UPLOAD_BODY,
    ),
)

ADMINISTRATOR_ROUTES: Final = (
    Route(
        name="list_principals",
        method="GET",
        rule="/v1/principals",
        access=_PRINCIPALS,
        handler=administrators.list_principals,
        summary="every principal",
    ),
    Route(
        name="add_principal",
        method="POST",
        rule="/v1/principals",
        access=_PRINCIPALS,
        handler=administrators.add_principal,
        summary="a new principal and its one-time code",
        body=models.PrincipalBody,
    ),
    Route(
        name="show_principal",
        method="GET",
        rule="/v1/principals/<path:id>",
        access=_PRINCIPALS,
        handler=administrators.show_principal,
        summary="one principal",
    ),
    Route(
        name="set_principal",
        method="PATCH",
        rule="/v1/principals/<path:id>",
        access=_PRINCIPALS,
        handler=administrators.set_principal,
        summary="other roles, groups or state",
        body=models.PrincipalChangeBody,
    ),
    Route(
        name="new_code",
        method="POST",
        rule="/v1/principals/<path:id>/codes",
        access=_PRINCIPALS,
        handler=administrators.new_code,
        summary="a fresh one-time code",
        body=models.Recorded,
    ),
    Route(
        name="list_collections",
        method="GET",
        rule="/v1/collections",
        access=_PRINCIPALS,
        handler=administrators.list_collections,
        summary="every collection and its groups",
    ),
    Route(
        name="set_collection",
        method="PUT",
        rule="/v1/collections/<name>",
        access=_PRINCIPALS,
        handler=administrators.set_collection,
        summary="the groups that may read and publish",
        body=models.CollectionBody,
    ),
    Route(
        name="show_policies",
        method="GET",
        rule="/v1/policies",
        access=_POLICIES,
        handler=administrators.show_policies,
        summary="the active bundle",
    ),
    Route(
        name="apply_policies",
        method="PUT",
        rule="/v1/policies",
        access=_POLICIES,
        handler=administrators.apply_policies,
        summary="another bundle decides from now on",
        body=models.PolicyBody,
    ),
    Route(
        name="revoke",
        method="POST",
        rule="/v1/revocations",
        access=_REVOCATIONS,
        handler=administrators.revoke,
        summary="end a grant, token, key or principal",
        body=models.RevocationBody,
    ),
)

AUDITOR_ROUTES: Final = (
    Route(
        name="search_entries",
        method="GET",
        rule="/v1/ledger/entries",
        access=_SEARCH,
        handler=auditors.search,
        summary="one page of matching entries, ascending",
        query=models.EntriesQuery,
    ),
    Route(
        name="show_entry",
        method="GET",
        rule="/v1/ledger/entries/<index>",
        access=_READ_LEDGER,
        handler=auditors.show_entry,
        summary="one entry, its record and its receipt",
    ),
    Route(
        name="leaves",
        method="GET",
        rule="/v1/ledger/leaves",
        access=_READ_LEDGER,
        handler=auditors.leaves,
        summary="stored rows as JSON lines, for verification",
        query=models.LeavesQuery,
    ),
    Route(
        name="hashes",
        method="GET",
        rule="/v1/ledger/hashes",
        access=_READ_LEDGER,
        handler=auditors.hashes,
        summary="stored interior hashes",
        query=models.HashesQuery,
    ),
    Route(
        name="heads",
        method="GET",
        rule="/v1/ledger/heads",
        access=_READ_LEDGER,
        handler=auditors.heads,
        summary="the signed tree heads that were kept",
    ),
    Route(
        name="prove_inclusion",
        method="GET",
        rule="/v1/ledger/proof/inclusion/<index>",
        access=_PROVE,
        handler=auditors.inclusion,
        summary="a receipt of one entry",
    ),
    Route(
        name="prove_consistency",
        method="GET",
        rule="/v1/ledger/proof/consistency",
        access=_PROVE,
        handler=auditors.consistency,
        summary="proof that one tree extends another",
        query=models.ConsistencyQuery,
    ),
)

ROUTES: Final[tuple[Route, ...]] = (
    *PUBLIC_ROUTES,
    *OAUTH_ROUTES,
    *READER_ROUTES,
    *PUBLISHER_ROUTES,
    *ADMINISTRATOR_ROUTES,
    *AUDITOR_ROUTES,
)
