"""Access tokens: issued to an enrolled key, looked at, revoked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from broker import limits
from broker.canonical import Json, canonical_bytes, format_time, sha256_digest
from broker.drafts import Draft, NewEntry
from broker.errors import BrokerError, InvalidGrant, NotAuthenticated, NotFound
from broker.identity import scope, token
from broker.identity.effective import effective
from broker.model import ACTIVE, REVOKED, Key, Principal, Token
from broker.ports import View
from broker.services import authn, denials, holders
from broker.services.house import House
from broker.services.record import decide_and_append, new_entry

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A token as it goes to its holder; ``expires_in`` is in seconds."""

    access_token: str = field(repr=False)
    id: str
    principal: str
    expires_in: int
    details: list[Any]


def issue(house: House, request: authn.SignedRequest, *, assertion: str, details: list[Any]) -> Issued:
    """An access token for an enrolled key: RFC 7523 assertion under a DPoP proof by the same key.

    Raises:
        InvalidGrant: The assertion does not hold, or its key or principal is not live.
        InvalidProof, ReplayedProof: The proof does not hold, or was used before.
        InvalidRequest: The ``authorization_details`` are malformed or empty (they grant nothing).
    """
    levels = scope.derive_limits((), details)
    id = draw_id(house)
    kept: list[Token] = []

    def decide(view: View) -> Draft:
        now = view.now
        verified = authn.verify_request(house, request, now=now, digests=False)
        key, principal = _claimant(house, view, verified.jkt, assertion, now)
        # I06: a token is never valid longer than what it rests on; keys and principals have no end
        # of their own but revocation, which is checked at every use.
        row = Token(
            id=id,
            principal=principal.id,
            jkt=key.jkt,
            limits=levels_text(levels),
            chain=(),
            issued=now,
            expires=end_of(now, limits.ACCESS_TOKEN_TTL),
            status=ACTIVE,
        )
        kept[:] = [row]
        evidence = authn.form_evidence(request, assertion={"sha256": authn.credential_digest(assertion)})
        entry = token_entry(house, row, evidence=evidence)
        return Draft(proof=authn.use_of(verified, now), entries=(entry,), rows=(row,))

    decide_and_append(house, decide)
    return sign(house, kept[0])


def draw_id(house: House) -> str:
    """A fresh token id."""
    return token.token_id(house.entropy.random_bytes(16))


def levels_text(levels: Sequence[Sequence[Json]]) -> str:
    """Levels as a token's row keeps them: canonical JSON."""
    return canonical_bytes([list(level) for level in levels]).decode()


def end_of(now: int, seconds: int) -> int:
    """The end of a token that is issued now, in milliseconds: on a whole second, as its JWT says it.

    The row, which leases rest on, must not outlive the JWT (I06).
    """
    return (now // 1000 + seconds) * 1000


def token_entry(house: House, row: Token, *, evidence: Json, **members: Any) -> NewEntry:
    """The entry of a token that is issued: to whom, bound to which key, covering what, until when."""
    return new_entry(
        house,
        time=row.issued,
        type="token",
        evidence=evidence,
        principal=row.principal,
        jkt=row.jkt,
        token=row.id,
        scope=sha256_digest(row.limits.encode()),
        expires_at=format_time(row.expires),
        **members,
    )


def sign(house: House, row: Token) -> Issued:
    """The token of a row that is on record.

    Only now is there something to hold: the entry is durable and under a signed head (I01).
    """
    levels = json.loads(row.limits)
    claims = token.AccessClaims(
        iss=house.issuer,
        sub=row.principal,
        aud=house.issuer,
        client_id=row.jkt,
        iat=row.issued // 1000,
        exp=row.expires // 1000,
        jti=row.id,
        jkt=row.jkt,
        limits=tuple(tuple(level) for level in levels),
        chain=row.chain,
    )
    return Issued(
        access_token=token.sign_access_token(claims, key=house.token_keys.current, kid=house.token_keys.kid),
        id=row.id,
        principal=row.principal,
        expires_in=row.expires // 1000 - row.issued // 1000,
        details=levels[-1],
    )


def _claimant(house: House, view: View, jkt: str, assertion: str, now: int) -> tuple[Key, Principal]:
    try:
        key, principal = holders.find_live_key(view, jkt, token.ASSERTION_TYP)
        token.verify_assertion(
            assertion, jwk=json.loads(key.jwk), principal=principal.id, issuer=house.issuer, now=now
        )
    except NotAuthenticated as exc:
        why = f"{exc.what}: {exc.why}" if exc.why else exc.what
        raise InvalidGrant("the assertion is not acceptable", why=why, next=exc.next) from exc
    if principal.disabled:
        raise InvalidGrant("the principal is disabled", next="ask an administrator to enable it")
    return key, principal


def find_own(view: View, caller: authn.Caller, id: str) -> Token:
    """A token of the caller's own principal.

    Raises:
        NotFound: There is none of that id, or it is somebody else's.
    """
    row = view.find(Token, id)
    if row is None or row.principal != caller.principal.id:
        raise NotFound("there is no such token")
    return row


@denials.recorded("introspect")
def introspect(house: House, request: authn.SignedRequest, *, text: str) -> Json:
    """RFC 7662 for the caller's own tokens; anything else is ``{"active": false}``."""
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        found = _introspect(house, view, caller, text)
    authn.use_proof(house, caller)
    return found


def _introspect(house: House, view: View, caller: authn.Caller, text: str) -> Json:
    try:
        claims = token.verify_access_token(
            text, keys=house.token_keys.accepted, issuer=house.issuer, audience=house.issuer, now=view.now
        )
        find_own(view, caller, claims.jti)
        holder = holders.find_holder(view, claims.jti, view.now)
    except BrokerError:
        return {"active": False}
    row, levels, ids = holder.token, json.loads(holder.token.limits), (*holder.token.chain, holder.token.id)
    found, whole = effective(levels, ids)
    opened = {id: view.meter(id) for id in ids}
    return {
        "active": True,
        "token_type": "DPoP",
        "iss": claims.iss,
        "sub": claims.sub,
        "aud": claims.aud,
        "client_id": claims.client_id,
        "iat": claims.iat,
        "exp": claims.exp,
        "jti": claims.jti,
        "cnf": {"jkt": row.jkt},
        "limits": levels,
        "chain": list(row.chain),
        "effective": [each.as_json(opened) for each in found],
        "effective_complete": whole,
        "identity": holder.identity.as_json() if holder.identity else None,
    }


@denials.recorded("revoke-own")
def revoke_own(house: House, request: authn.SignedRequest, *, text: str) -> None:
    """RFC 7009: the caller's own token is dead from the next request on; an unknown one is fine too."""

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        try:
            claims = token.verify_access_token(
                text, keys=house.token_keys.accepted, issuer=house.issuer, audience=house.issuer, now=view.now
            )
            row = find_own(view, caller, claims.jti)
        except BrokerError as exc:
            raise _NothingToRevoke(caller) from exc
        entry = new_entry(
            house,
            time=view.now,
            type="revocation",
            evidence={"token": caller.token.id},
            target={"kind": "token", "id": row.id},
            **caller.members(),
        )
        return Draft(
            proof=caller.proof_use,
            entries=(entry,),
            rows=(replace(row, status=REVOKED),),
            expects=(row,),
            bumps_epoch=True,
        )

    try:
        decide_and_append(house, decide)
    except _NothingToRevoke as nothing:
        authn.use_proof(house, nothing.caller)


class _NothingToRevoke(Exception):
    def __init__(self, caller: authn.Caller) -> None:
        self.caller = caller
