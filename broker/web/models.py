"""Bodies and queries as they arrive: strict types, no unknown member (HTTP 422).

A model says the shape; the grammar of names is checked when a view turns it into a use case's
request. What was submitted is never part of an error.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from broker import limits
from broker.canonical import MAX_SAFE_INTEGER, parse_json_object
from broker.errors import InvalidRequest
from broker.model import ROLES

_UUID: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_B64URL: Final = r"^[A-Za-z0-9_-]*$"
_MEMBER: Final = re.compile(r"[a-z][a-z_]{0,31}")
_MOST_SHOWN: Final = 3


def _parse_count(value: Any) -> Any:
    # A number in a query is text; only its one decimal spelling is taken.
    if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,15}", value):
        return int(value)
    return None


Count = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)]
QueryCount = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER), BeforeValidator(_parse_count)]
Page = Annotated[int, Field(ge=1, le=limits.MAX_PAGE), BeforeValidator(_parse_count)]
RequestId = Annotated[str, Field(pattern=_UUID, description="a fresh UUID; the same one again is a retry")]
Have = Annotated[
    str | None,
    Field(
        default=None, max_length=limits.MAX_NOTE, description="the last tree head that the caller verified"
    ),
]
Binary = Annotated[str, Field(pattern=_B64URL, description="base64url without padding")]
Name = Annotated[str, Field(min_length=1, max_length=limits.MAX_PATH)]
Claim = Annotated[str, Field(min_length=1, max_length=limits.MAX_CLAIM)]
Names = Annotated[list[Name], Field(max_length=limits.MAX_GROUPS)]
Globs = Annotated[list[Annotated[str, Field(max_length=limits.MAX_GLOB)]], Field(max_length=limits.MAX_GLOBS)]
Run = Annotated[list[Count], Field(min_length=3, max_length=3, description="[file, first, last]")]
Runs = Annotated[list[Run], Field(max_length=limits.MAX_FILES)]
Span = Annotated[
    list[Count],
    Field(min_length=4, max_length=4, description="[file, extent, first segment, last segment]"),
]
Spans = Annotated[list[Span], Field(min_length=1, max_length=limits.MAX_LEASE_EXTENTS)]
Role = Literal["engineer", "auditor", "admin", "publisher", "workload"]
Kind = Literal["checkpoint", "dataset"]


class Shape(BaseModel):
    """Base of every body and query."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Recorded(Shape):
    """Members of every request that is recorded."""

    request_id: RequestId
    have: Have


class Maybe(Shape):
    """The body of a DELETE: it may be left out, and so may all of it."""

    request_id: RequestId | None = None
    have: Have


# -- enrolment, reading -----------------------------------------------------------------------------------


class EnrolmentBody(Shape):
    """Which code, and the proof that its secret is known; the secret is never sent."""

    request_id: RequestId
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    mac: Binary


class RecipientBody(Shape):
    """The HPKE public key that the answer is sealed to."""

    kem: Literal["MLKEM768-X25519"]
    public_key: Binary


class GrantBody(Recorded):
    """What somebody wants to read."""

    artifact: Name
    version: Name | None = None
    include: Globs = []
    exclude: Globs = []
    purpose: Annotated[str, Field(max_length=limits.MAX_PURPOSE)] = ""
    recipient: RecipientBody
    extents: Runs | None = None
    spans: Spans | None = None
    ranges: bool = False

    @model_validator(mode="after")
    def check_one(self) -> GrantBody:
        """Extents and spans are not both given. Raises ValueError, as pydantic wants it, when they are."""
        if self.extents is not None and self.spans is not None:
            raise ValueError("extents or spans, not both")
        return self


class LeaseBody(Recorded):
    """The next slice of a grant."""

    recipient: RecipientBody
    extents: Runs | None = None
    spans: Spans | None = None
    ranges: bool = False

    @model_validator(mode="after")
    def check_one(self) -> LeaseBody:
        """Exactly one of extents and spans is given. Raises ValueError, as pydantic wants it, when not."""
        if (self.extents is None) == (self.spans is None):
            raise ValueError("exactly one of extents, spans")
        return self


class ReceivedBody(Shape):
    """What a reader received and verified."""

    files: Count
    bytes: Count
    extents: Count


class CompletionBody(Recorded):
    """The report at the end of a grant."""

    received: ReceivedBody


class DecisionBody(Recorded):
    """A question to policy."""

    artifact: Name
    version: Name | None = None
    path: Name | None = None
    action: Literal["describe", "read", "publish"]
    principal: Name | None = None


# -- publishing -------------------------------------------------------------------------------------------


class FileBody(Shape):
    """One file of a version about to be published; ``size`` is plaintext bytes."""

    path: Name
    size: Annotated[int, Field(ge=0, le=limits.MAX_FILE_SIZE)]


class UploadBody(Recorded):
    """What somebody wants to publish."""

    artifact: Name
    version: Name
    kind: Kind
    labels: Annotated[dict[str, str], Field(max_length=limits.MAX_LABELS)] = {}
    extent_size: Count
    files: Annotated[list[FileBody], Field(min_length=1, max_length=limits.MAX_FILES)]
    recipient: RecipientBody


class UrlsBody(Shape):
    """Parts (file, part from 1) and segment lists (file) to be uploaded next."""

    request_id: RequestId
    parts: Annotated[
        list[Annotated[list[Count], Field(min_length=2, max_length=2)]], Field(max_length=limits.MAX_PAGE)
    ] = []
    segments: Annotated[list[Count], Field(max_length=limits.MAX_PAGE)] = []


class CommitBody(Recorded):
    """The manifest and the publisher's signature of it."""

    manifest: Binary
    signature: Annotated[str, Field(max_length=limits.MAX_PROOF)]


# -- administration ---------------------------------------------------------------------------------------


class PrincipalBody(Recorded):
    """A new principal."""

    id: Name
    roles: Annotated[list[Role], Field(max_length=len(ROLES))]
    groups: Names = []


class PrincipalChangeBody(Recorded):
    """Members that are left out stay as they are."""

    roles: Annotated[list[Role] | None, Field(max_length=len(ROLES))] = None
    groups: Names | None = None
    disabled: bool | None = None


class CollectionBody(Recorded):
    """Groups of a collection; a member that is left out stays as it is."""

    readers: Names | None = None
    publishers: Names | None = None


class PolicyBody(Recorded):
    """A whole policy bundle: file name to text."""

    files: Annotated[dict[str, str], Field(min_length=1, max_length=limits.MAX_POLICY_FILES)]


class IssuerBody(Recorded):
    """An issuer of workload identities. Its keys: ``jwks``, or at ``jwks_uri``, or by OIDC discovery."""

    url: Claim
    kind: Literal["oidc", "kubernetes", "github", "spiffe"]
    audience: Claim | None = None
    jwks_uri: Annotated[str, Field(max_length=limits.MAX_CLAIM)] = ""
    jwks: dict[str, Any] | None = None
    ca: Annotated[str, Field(max_length=limits.MAX_CA)] = ""
    mapping: Annotated[dict[str, Any], Field(description="broker/issuer-map/v1")]


class ExportBody(Recorded):
    """What an auditor takes home."""

    format: Literal["tiles", "jsonl", "csv", "ocsf", "parquet", "kit"]
    size: Annotated[int, Field(ge=0, le=limits.MAX_TREE_SIZE)]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class ErasureBody(Recorded):
    """Whose evidence goes."""

    principal: Name
    before: Annotated[str, Field(max_length=32, description="RFC 3339; what is later stays")] | None = None
    reason: Annotated[str, Field(min_length=1, max_length=limits.MAX_PURPOSE)]


class RevocationBody(Recorded):
    """Exactly one thing to revoke."""

    grant: Name | None = None
    token: Name | None = None
    key: Name | None = None
    principal: Name | None = None

    @model_validator(mode="after")
    def check_one(self) -> RevocationBody:
        """One of the four is given. Raises ValueError, as pydantic wants it, when not."""
        if len(self.named()) != 1:
            raise ValueError("exactly one of grant, token, key, principal")
        return self

    def named(self) -> list[tuple[str, str]]:
        """(kind, id) of each thing that is named."""
        kinds = ("grant", "token", "key", "principal")
        return [(kind, getattr(self, kind)) for kind in kinds if getattr(self, kind) is not None]


# -- queries ------------------------------------------------------------------------------------------------


class ArtifactsQuery(Shape):
    """A page of the catalogue; ``after`` is the last artifact of the page before."""

    after: Name | None = None
    limit: Page = limits.DEFAULT_PAGE


class WhoCanQuery(Shape):
    """Who can reach a version; ``after`` is the last principal of the page before."""

    artifact: Name
    version: Name | None = None
    action: Literal["describe", "read"] = "read"
    purpose: Annotated[str, Field(max_length=limits.MAX_PURPOSE)] = ""
    after: Name | None = None
    limit: Page = limits.DEFAULT_PAGE


class WhatCanQuery(Shape):
    """What a principal can reach; ``after`` is the last artifact of the page before."""

    principal: Name
    purpose: Annotated[str, Field(max_length=limits.MAX_PURPOSE)] = ""
    after: Name | None = None
    limit: Page = limits.DEFAULT_PAGE


class EntriesQuery(Shape):
    """A page of the ledger; ``after`` is the last index of the page before."""

    q: str = ""
    since: Annotated[str, Field(max_length=64)] | None = None
    until: Annotated[str, Field(max_length=64)] | None = None
    after: QueryCount | None = None
    limit: Page = limits.DEFAULT_PAGE


class CountsQuery(Shape):
    """A question whose whole answer is counted."""

    q: str = ""
    since: Annotated[str, Field(max_length=64)] | None = None
    until: Annotated[str, Field(max_length=64)] | None = None
    by: Literal["decision", "type", "principal", "artifact", "hour", "day"]
    top: Page = limits.DEFAULT_PAGE


class LeavesQuery(Shape):
    """Rows [start, stop); ``index=1`` joins their search rows."""

    start: QueryCount
    stop: QueryCount
    index: Literal["0", "1"] = "0"


class HashesQuery(Shape):
    """Hashes [start, stop) of complete subtrees of height ``level``."""

    level: Annotated[int, Field(ge=0, le=63), BeforeValidator(_parse_count)]
    start: QueryCount
    stop: QueryCount


class ConsistencyQuery(Shape):
    """From one tree size to another; without ``to``, to the newest."""

    from_size: Annotated[QueryCount, Field(alias="from")]
    to: QueryCount | None = None


# -- parsing ------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Shape)


def parse_body(shape: type[S], body: bytes) -> S:
    """The body as that shape.

    Raises:
        MalformedRequest: Not a JSON object, a member twice, or nested too deep.
        InvalidRequest: A member is unknown, missing, or of another type or range.
    """
    return parse_members(shape, parse_json_object(body or b"{}"))


def parse_members(shape: type[S], members: dict[str, Any]) -> S:
    """Members that were parsed already, as that shape.

    Raises:
        InvalidRequest: A member is unknown, missing, or of another type or range.
    """
    try:
        return shape.model_validate(members)
    except ValidationError as exc:
        raise InvalidRequest("the request does not fit its shape", why=_describe(exc)) from None


def _describe(exc: ValidationError) -> str:
    found = [
        f"{_place(error['loc'])}: {error['msg']}"
        for error in exc.errors(include_input=False, include_url=False)
    ]
    more = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return "; ".join(found[:_MOST_SHOWN]) + more


def _place(loc: tuple[int | str, ...]) -> str:
    """Where it is wrong. A name that we do not know ourselves may be anything, and is not repeated."""
    shown = [str(part) if isinstance(part, int) or _MEMBER.fullmatch(part) else "?" for part in loc]
    return ".".join(shown) or "body"
