"""Access tokens: issued to an enrolled key, looked at, revoked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from broker import limits
from broker.canonical import Json, canonical_bytes, format_time, sha256_digest
from broker.drafts import Draft
from broker.errors import BrokerError, InvalidGrant, NotAuthenticated, NotFound
from broker.identity import proof, scope, token
from broker.model import ACTIVE, REVOKED, Key, Principal, Token
from broker.ports import View
from broker.services import authn, denials
from broker.services.house import House
from broker.services.record import decide_and_append, new_entry

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A token as it goes to its holder; ``expires_in`` is in seconds."""

    access_token: str
    id: str
    expires_in: int
    details: list[Any]


def issue(house: House, request: authn.SignedRequest, *, assertion: str, details: list[Any]) -> Issued:
    """An access token for an enrolled key: RFC 7523 assertion under a DPoP proof by the same key.

    Raises:
        InvalidGrant: The assertion does not hold, or its key or principal is not live.
        InvalidProof, ReplayedProof: The proof does not hold, or was used before.
        InvalidRequest: The ``authorization_details`` are malformed or empty (they grant nothing).
    """
    scope.parse_details(details)
    wanted = details
    id = token.token_id(house.entropy.random_bytes(16))
    kept: dict[str, Any] = {}

    def decide(view: View) -> Draft:
        now = view.now
        verified = authn.verify_request(house, request, now=now, digests=False)
        key, principal = _claimant(house, view, verified.jkt, assertion, now)
        # I06: a token is never valid longer than what it rests on; keys and principals have no end
        # of their own but revocation, which is checked at every use.
        # A JWT says its end in whole seconds, and the row, which leases rest on, must not outlive it.
        expires = (now // 1000 + limits.ACCESS_TOKEN_TTL) * 1000
        row = Token(
            id=id,
            principal=principal.id,
            jkt=key.jkt,
            limits=canonical_bytes([wanted]).decode(),
            chain=(),
            issued=now,
            expires=expires,
            status=ACTIVE,
        )
        kept["row"] = row
        evidence = authn.request_evidence(request)
        # The body holds the assertion, a credential: evidence of /oauth/* keeps its digest only (I11).
        evidence["body"] = ""
        evidence["assertion"] = {"sha256": hashlib.sha256(assertion.encode("utf-8", "replace")).hexdigest()}
        entry = new_entry(
            house,
            time=now,
            type="token",
            evidence=evidence,
            principal=principal.id,
            jkt=key.jkt,
            token=id,
            scope=sha256_digest(row.limits.encode()),
            expires_at=format_time(expires),
        )
        return Draft(proof=authn.use_of(verified, now), entries=(entry,), rows=(row,))

    decide_and_append(house, decide)
    row: Token = kept["row"]
    # Only now is there something to hold: the entry is durable and under a signed head (I01).
    claims = token.AccessClaims(
        iss=house.issuer,
        sub=row.principal,
        aud=house.issuer,
        client_id=row.jkt,
        iat=row.issued // 1000,
        exp=row.expires // 1000,
        jti=row.id,
        jkt=row.jkt,
        limits=tuple(tuple(level) for level in json.loads(row.limits)),
        chain=row.chain,
    )
    signed = token.sign_access_token(claims, key=house.token_keys.current, kid=house.token_keys.kid)
    return Issued(
        access_token=signed, id=row.id, expires_in=row.expires // 1000 - row.issued // 1000, details=wanted
    )


def _claimant(house: House, view: View, jkt: str, assertion: str, now: int) -> tuple[Key, Principal]:
    try:
        key, principal = authn.find_live_key(view, jkt, token.ASSERTION_TYP)
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
        row = authn.find_live_token(view, claims.jti, view.now)
        find_own(view, caller, row.id)
        authn.find_live_key(view, row.jkt, proof.TYP)
    except BrokerError:
        return {"active": False}
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
        "limits": json.loads(row.limits),
        "chain": list(row.chain),
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
