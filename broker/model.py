"""The nouns: frozen rows and values that every layer speaks of.

A class whose docstring says *row* is stored under its key in a table of its own; ``entry`` is the
index of the ledger entry that last changed it (-1 before it is stored). Members marked ``loose``
are bookkeeping that the row's MAC does not cover. All times are milliseconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

NOT_STORED: Final = -1
Wrapped: TypeAlias = bytes
"""A 32-byte key under the key-encryption key."""

ROLES: Final = ("engineer", "auditor", "admin", "publisher", "workload")
KINDS: Final = ("checkpoint", "dataset")
ACTIVE: Final = "active"
REVOKED: Final = "revoked"
ISSUER_KINDS: Final = ("oidc", "kubernetes", "github", "spiffe")


def loose(default: Any) -> Any:
    """A member that the row's MAC leaves out."""
    return field(default=default, metadata={"loose": True})


# -- who ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Row: a user or workload. Key: ``id``."""

    id: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    disabled: bool
    created: int
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Group:
    """Row: a group and the groups that it is a member of. Key: ``name``."""

    name: str
    parents: tuple[str, ...] = ()
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Key:
    """Row: a public key bound to one principal. Key: ``jkt`` (RFC 7638 thumbprint, base64url).

    ``entry`` is the enrolment that bound it. ``uses`` are the JOSE ``typ`` values it may sign (I14).
    """

    jkt: str
    principal: str
    jwk: str
    uses: tuple[str, ...]
    status: str
    created: int
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """Row: a one-time code. Key: ``id`` (16 hex digits). The secret itself is never stored."""

    id: str
    principal: str
    secret_hash: bytes = field(repr=False)
    expires: int
    status: str
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Token:
    """Row: an issued access token. Key: ``id`` (``t_...``). A token without its row is worth nothing.

    ``identity`` is canonical JSON of what a workload's own token said when it was exchanged for this
    one or for an ancestor (``services.federation.Identity``); "" when the token began with an enrolled
    key. ``delegated`` says that ``jkt`` was nobody's key when the token was minted for it.
    """

    id: str
    principal: str
    jkt: str
    limits: str
    chain: tuple[str, ...]
    issued: int
    expires: int
    status: str
    identity: str = ""
    delegated: bool = False
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """Row: an outside issuer of workload identities, and what its tokens become here. Key: ``name``.

    ``url`` is the exact ``iss`` (``spiffe://`` and the trust domain for SPIFFE), ``audience`` our own
    name in its tokens. Its keys are the static set ``jwks``, or the one at ``jwks_uri``, or what OIDC
    discovery finds. ``ca`` is a PEM bundle for its https; ``mapping`` canonical JSON. All are text,
    "" where there is none.
    """

    name: str
    url: str
    kind: str
    audience: str
    jwks_uri: str = ""
    jwks: str = ""
    ca: str = ""
    mapping: str
    status: str
    created: int
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class SubjectUse:
    """Row: a workload's token, pinned to the key that exchanged it first. Key: ``digest``.

    ``digest`` is that of what its issuer signed, ``expires`` its own end: after that the pin says
    nothing any more.
    """

    digest: str
    jkt: str
    issuer: str
    principal: str
    expires: int
    entry: int = NOT_STORED


# -- what -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Row: a collection and the groups that may read and publish. Key: ``name``."""

    name: str
    readers: tuple[str, ...]
    publishers: tuple[str, ...]
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Row: ``collection/name`` and its kind, fixed by the first publish. Key: (collection, name)."""

    collection: str
    name: str
    kind: str
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Version:
    """Row: a committed version. Key: (collection, name, version).

    ``labels`` is the canonical JSON object; ``wrapped_key`` the version key under the key-encryption
    key; ``binding`` the index of the entry that bound the publisher's key.
    """

    collection: str
    name: str
    version: str
    version_id: bytes
    kind: str
    labels: str
    manifest: str
    files: int
    bytes: int
    publisher: str
    publisher_jkt: str
    binding: int
    wrapped_key: Wrapped = field(repr=False)
    committed: int
    entry: int = NOT_STORED

    @property
    def artifact(self) -> str:
        """``collection/name``."""
        return f"{self.collection}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """Row: manifest bytes and the publisher's detached JWS. Key: ``digest``. It proves itself."""

    digest: str
    body: bytes
    signature: str
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Row: a version in the making. Key: ``id`` (``u_...``). ``files`` is canonical JSON [[path, size]]."""

    id: str
    collection: str
    name: str
    version: str
    version_id: bytes
    kind: str
    labels: str
    extent_size: int
    files: str
    principal: str
    jkt: str
    wrapped_key: bytes = field(repr=False)
    status: str
    created: int
    expires: int
    parts: str = loose("{}")
    """Canonical JSON {object name: multipart upload id}, filled when the store opened them."""
    entry: int = NOT_STORED

    @property
    def artifact(self) -> str:
        """``collection/name``."""
        return f"{self.collection}/{self.name}"


# -- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Row: an allowed decision for given files of one version. Key: ``id`` (``g_...``).

    ``selection`` is the digest of the record that lists the files; ``token`` the token it began with.
    """

    id: str
    principal: str
    jkt: str
    token: str
    collection: str
    name: str
    version: str
    version_id: bytes
    manifest: str
    selection: str
    files: int
    bytes: int
    purpose: str
    created: int
    expires: int
    status: str
    entry: int = NOT_STORED

    @property
    def artifact(self) -> str:
        """``collection/name``."""
        return f"{self.collection}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Row: a released slice of a grant. Key: (grant, number). ``extents`` is JSON [[file, first, last]]."""

    grant: str
    number: int
    recipient: str
    extents: str
    expires: int
    entry: int = NOT_STORED


# -- policy -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BundleRow:
    """Row: a policy bundle, kept for ever. Key: ``digest``. It proves itself."""

    digest: str
    body: bytes
    entry: int = NOT_STORED


@dataclass(frozen=True, kw_only=True)
class ActiveBundle:
    """Row: which bundle decides. Key: ``slot``, always ``active``."""

    slot: str = "active"
    digest: str
    entry: int = NOT_STORED


Row = (
    Principal
    | Group
    | Key
    | Enrolment
    | Token
    | Issuer
    | SubjectUse
    | Collection
    | Artifact
    | Version
    | ManifestRow
    | Upload
    | Grant
    | Lease
    | BundleRow
    | ActiveBundle
)

ROW_KEYS: Final[dict[type[Any], tuple[str, ...]]] = {
    Principal: ("id",),
    Group: ("name",),
    Key: ("jkt",),
    Enrolment: ("id",),
    Token: ("id",),
    Issuer: ("name",),
    SubjectUse: ("digest",),
    Collection: ("name",),
    Artifact: ("collection", "name"),
    Version: ("collection", "name", "version"),
    ManifestRow: ("digest",),
    Upload: ("id",),
    Grant: ("id",),
    Lease: ("grant", "number"),
    BundleRow: ("digest",),
    ActiveBundle: ("slot",),
}
"""Row class -> names of its key members."""


def row_key(row: Row) -> tuple[Any, ...]:
    """The key of a row, in the order of ``ROW_KEYS``."""
    return tuple(getattr(row, name) for name in ROW_KEYS[type(row)])


# -- ledger --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """Search columns of an entry: all derived from its bytes, so ``verify --full`` can re-derive them."""

    time: int
    type: str
    principal: str | None = None
    jkt: str | None = None
    action: str | None = None
    artifact: str | None = None
    version: str | None = None
    decision: str | None = None
    policies: tuple[str, ...] = ()
    bytes: int | None = None
    grant: str | None = None
    purpose: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The ledger's tail: number of entries, root (32 bytes) and the epoch of who may do what."""

    size: int
    root: bytes
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Query:
    """A parsed ledger query: every member that is set must match; ``text`` terms match anywhere."""

    principal: str | None = None
    artifact: str | None = None
    version: str | None = None
    decision: str | None = None
    type: str | None = None
    action: str | None = None
    grant: str | None = None
    jkt: str | None = None
    purpose: str | None = None
    since: int | None = None
    until: int | None = None
    text: tuple[str, ...] = ()
