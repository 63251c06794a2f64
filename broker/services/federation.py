"""What a workload's own token said of it, as the row of its access token keeps it.

The row of the principal is the same for all its jobs; what the issuer said, and what the issuer's
mapping made of it, belongs to one token and to those that are derived from it. It counts only as long
as the issuer is registered as it was then (I15).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from broker.canonical import Json, canonical_bytes, format_time, sha256_digest
from broker.errors import InvalidToken
from broker.identity.mapping import RESERVED_ATTRIBUTE
from broker.model import ACTIVE, Issuer, Principal, Token
from broker.policy.request import Actor
from broker.ports import View


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a token's holder is beside its principal.

    Attributes:
        issuer: The issuer's name here.
        mapping: Digest of the mapping that was applied.
        trust: Digest of what made the issuer's token believable, see :func:`trust_digest`.
        rule: The rule of the mapping that matched.
        groups: Groups that the rule gives.
        roles: Roles that the rule gives.
        attributes: What policy sees as tags.
        subject_expires: End of the issuer's own token, milliseconds since 1970.
    """

    issuer: str
    mapping: str
    trust: str
    rule: str
    groups: tuple[str, ...]
    roles: tuple[str, ...]
    attributes: Mapping[str, str]
    subject_expires: int

    def as_text(self) -> str:
        """Canonical JSON, for the member ``identity`` of the token's row."""
        members = {**vars(self), "groups": list(self.groups), "roles": list(self.roles)}
        return canonical_bytes(members).decode("utf-8")

    def as_json(self) -> Json:
        """What its holder is told."""
        return {
            "issuer": self.issuer,
            "rule": self.rule,
            "mapping": self.mapping,
            "roles": list(self.roles),
            "groups": list(self.groups),
            "attributes": dict(self.attributes),
            "subject_expires_at": format_time(self.subject_expires),
        }


def parse_identity(text: str) -> Identity | None:
    """The identity of a token's row; None for a token that began with an enrolled key."""
    if not text:
        return None
    # The row's MAC covers the text: it is what as_text made of it.
    members = json.loads(text)
    return Identity(**{**members, "groups": tuple(members["groups"]), "roles": tuple(members["roles"])})


def mapping_digest(issuer: Issuer) -> str:
    """Digest of an issuer's mapping, which is kept as a record under it."""
    return sha256_digest(issuer.mapping.encode("utf-8"))


def trust_digest(issuer: Issuer) -> str:
    """Digest of all that decides whether a token is the issuer's: URL, kind, audience, keys, authorities."""
    names = ("url", "kind", "audience", "jwks_uri", "jwks", "ca")
    return sha256_digest(canonical_bytes({name: getattr(issuer, name) for name in names}))


def find_identity(view: View, row: Token) -> Identity | None:
    """The identity of a token, if its issuer still stands behind it.

    Raises:
        InvalidToken: The issuer was removed, or is another, or is mapped differently now.
    """
    found = parse_identity(row.identity)
    if found is None:
        return None
    issuer = view.find(Issuer, found.issuer)
    if (
        issuer is None
        or issuer.status != ACTIVE
        or mapping_digest(issuer) != found.mapping
        or trust_digest(issuer) != found.trust
    ):
        raise InvalidToken(
            "the issuer behind this access token was removed or changed",
            next="exchange the workload's token again",
        )
    return found


def as_actor(row: Principal, identity: Identity | None) -> Principal:
    """The principal as policy is to see it: its row's roles and groups, and those of its identity."""
    if identity is None:
        return row
    return Actor(
        id=row.id,
        roles=_union(row.roles, identity.roles),
        groups=_union(row.groups, identity.groups),
        disabled=row.disabled,
        created=row.created,
        entry=row.entry,
        attributes={**identity.attributes, RESERVED_ATTRIBUTE: identity.issuer},
    )


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*first, *second}))
