"""What every use case is given: the ports, the broker's own keys, and the settings that rules need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from broker import jose, limits
from broker.canonical import b64url
from broker.identity.token import AccessClaims
from broker.ledger import note
from broker.ledger.nodes import NodeCache
from broker.policy.bundle import Bundle
from broker.policy.engine import PolicyEngine
from broker.ports import (
    ArchiveFormat,
    Clock,
    Entropy,
    IssuerKeys,
    KeyCustody,
    Ledger,
    LogSite,
    ObjectStore,
    Presigner,
    TreeHeadStore,
)
from broker.services.denial_meter import DenialMeter
from broker.services.guard import Guard

if TYPE_CHECKING:
    from broker.services.cosigned import Cosigned


@dataclass(frozen=True, kw_only=True)
class LogIdentity:
    """The log's name and verifier key as clients pin them, and the one function that signs heads."""

    origin: str
    vkey: str
    sign: Callable[[bytes], bytes] = field(repr=False)
    """Ed25519 signature (64 bytes) over the bytes of a note's text."""
    also: tuple[LogIdentity, ...] = ()
    """The same log under its other keys, which sign every head too: the next one, or the one before."""

    @property
    def every(self) -> tuple[LogIdentity, ...]:
        """Itself and the others."""
        return (self, *self.also)


@dataclass(frozen=True, kw_only=True)
class TokenKeys:
    """The key that signs access tokens now, and every key whose tokens are still accepted."""

    current: jose.PrivateKey = field(repr=False)
    kid: str
    accepted: Mapping[str, dict[str, Any]]


class KeepHead(Protocol):
    """Keeps the newest signed head outside the database."""

    def __call__(self, *, force: bool = False) -> None:
        """Keep it if one is due, or, with ``force``, in any case."""


@dataclass(frozen=True, kw_only=True)
class PublishedLog:
    """Where the log is published as static files, and how.

    ``entries`` says whether the entries go there too, ``archive`` how an archive of them is written, where
    there is to be one; ``every`` is seconds between two checkpoints.
    """

    site: LogSite = field(repr=False)
    entries: bool
    every: float
    archive: ArchiveFormat | None = None


@dataclass(frozen=True, kw_only=True)
class House:
    """The broker's parts, joined once by wiring."""

    ledger: Ledger
    clock: Clock
    entropy: Entropy
    store: ObjectStore
    presigner: Presigner
    custody: KeyCustody
    issuer_keys: IssuerKeys
    log: LogIdentity
    token_keys: TokenKeys
    nonce_key: bytes = field(repr=False)
    check_policy: Callable[[Mapping[str, bytes]], Bundle]
    """Parses policy text of unknown origin in a capped child process (I13)."""
    issuer: str
    public_urls: tuple[str, ...]
    store_hosts: tuple[str, ...]
    heads: TreeHeadStore | None = None
    log_site: PublishedLog | None = None
    witnessed: Cosigned | None = None
    """The witnesses of the log and what they cosigned; None when there are none."""
    lease_window: int = limits.DEFAULT_LEASE_WINDOW
    evidence_retention: int = 0
    """Days that evidence is kept for at least before it may be erased."""
    nonces_required: bool = False
    protected_changes: bool = False
    """Whether changes that will need several people may be made by one (dev, unsafe_single_admin)."""
    keep_head: KeepHead = lambda *, force=False: None  # noqa: ARG005 - the house before it is wired
    """Keeps the newest signed head outside; called between record and release: what it raises stops it."""
    guard: Guard = field(default_factory=Guard, repr=False)
    """Whether this process may still serve: shut for good by a rollback or fork that was seen (I10)."""
    denial_meter: DenialMeter = field(default_factory=DenialMeter, repr=False)
    """Counts the denials of each principal in this process."""
    engines: dict[str, PolicyEngine] = field(default_factory=dict, repr=False)
    """Parsed bundles by digest: immutable, so they never go stale (I15)."""

    opened_tokens: dict[tuple[object, ...], AccessClaims] = field(default_factory=dict, repr=False)
    """What tokens say whose signature holds, by digest and keys. Whether they hold now is never kept."""

    nodes: NodeCache = field(default_factory=NodeCache, repr=False)
    """Nodes of the log's tree, for proofs that are verified before they leave."""

    def new_id(self, prefix: str) -> str:
        """``prefix`` + 16 random bytes, as every id of ours is made."""
        return prefix + b64url(self.entropy.random_bytes(16))

    def verifiers(self) -> tuple[note.Verifier, ...]:
        """The keys that sign heads now, for those that come back."""
        return tuple(note.parse_vkey(each.vkey) for each in self.log.every)
