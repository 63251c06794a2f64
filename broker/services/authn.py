"""Step 2: who is asking. Read-only: nothing is written until step 5."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from broker import limits
from broker.canonical import Json, b64url, sha256_digest
from broker.drafts import Draft, ProofUse
from broker.errors import InvalidProof, InvalidToken, NotAuthenticated
from broker.identity import nonce, proof, token
from broker.model import ACTIVE, Key, Principal, Token
from broker.ports import View
from broker.services.house import House


@dataclass(frozen=True, kw_only=True)
class SignedRequest:
    """One HTTP request as it came over the wire, and the headers that authenticate it.

    ``raw_path`` is still encoded; ``query`` and ``body`` are the exact bytes.
    """

    method: str
    raw_path: str
    query: bytes
    body: bytes
    proof: str | None = field(repr=False)
    access_token: str | None = field(default=None, repr=False)
    network: str = ""
    """Address of the peer, as far as the deployment lets it be known."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who signed a request: a live principal, one of its live keys, and the token's limits."""

    principal: Principal
    key: Key
    token: Token
    levels: list[list[Json]]
    proof: proof.VerifiedProof
    request: SignedRequest
    now: int
    epoch: int
    """``state_epoch`` of the snapshot that the caller was authenticated in."""

    @property
    def proof_use(self) -> ProofUse:
        """The row that makes a second use of this proof a replay (I08)."""
        return use_of(self.proof, self.now)

    def evidence(self, inputs: Json | None = None) -> Json:
        """The signed request, and what the decision was made from; never the token itself (I11)."""
        found = request_evidence(self.request)
        text = self.request.access_token or ""
        found["token"] = {
            "jti": self.token.id,
            "sub": self.token.principal,
            "exp": self.token.expires // 1000,
            "sha256": hashlib.sha256(text.encode("ascii", "replace")).hexdigest(),
        }
        if inputs is not None:
            found["inputs"] = inputs
        return found

    def members(self) -> dict[str, Any]:
        """The members of an entry that say who asked."""
        return {"principal": self.principal.id, "jkt": self.key.jkt, "token": self.token.id}


def request_evidence(request: SignedRequest) -> Json:
    """Method, path, query, body and proof: what a third party needs to see that the key asked.

    Of a body larger than ``limits.MAX_EVIDENCE_BODY`` the digest is kept, which is what the proof
    covers: a refused list of files must not fill the database (I17).
    """
    found = {
        "method": request.method,
        "path": request.raw_path,
        "query": request.query.decode("ascii", "replace"),
        "proof": request.proof or "",
        "network": request.network,
    }
    if len(request.body) > limits.MAX_EVIDENCE_BODY:
        return {**found, "body_digest": sha256_digest(request.body)}
    return {**found, "body": b64url(request.body)}


def use_of(verified: proof.VerifiedProof, now: int) -> ProofUse:
    """The replay row of a proof; it is kept until the proof can no longer be fresh, with margin."""
    return ProofUse(
        jkt=verified.jkt,
        jti_hash=verified.jti_hash,
        keep_until=max(now, verified.iat_ms) + limits.REPLAY_KEEP * 1000,
    )


def verify_request(
    house: House, request: SignedRequest, *, now: int, digests: bool = True
) -> proof.VerifiedProof:
    """The proof of a request holds. Whether it was used before is decided when it is recorded.

    Raises:
        InvalidProof: There is none, or it does not hold.
        ClockSkew, NonceRequired: See :func:`broker.identity.proof.verify_proof`.
    """
    if request.proof is None:
        raise InvalidProof(
            "the request carries no proof", why="every request is signed: header DPoP (RFC 9449)"
        )

    def check_nonce(value: str | None) -> None:
        nonce.verify_nonce(value, key=house.nonce_key, now=now)

    return proof.verify_proof(
        request.proof,
        method=request.method,
        public_urls=house.public_urls,
        raw_path=request.raw_path,
        query=request.query,
        body=request.body,
        access_token=request.access_token,
        now=now,
        require_digests=digests,
        nonce_check=check_nonce if house.nonces_required else None,
    )


def authenticate(house: House, view: View, request: SignedRequest) -> Caller:
    """Token, proof, key and principal are good, together and now.

    Raises:
        NotAuthenticated: No token.
        InvalidToken: The token, or something that it rests on, does not hold.
        InvalidProof: The proof does not.
    """
    if request.access_token is None:
        raise NotAuthenticated(
            "the request carries no access token",
            why="header Authorization: DPoP <token>",
            next="broker login",
        )
    now = view.now
    claims = token.verify_access_token(
        request.access_token,
        keys=house.token_keys.accepted,
        issuer=house.issuer,
        audience=house.issuer,
        now=now,
    )
    row = find_live_token(view, claims.jti, now)
    if row.principal != claims.sub or row.jkt != claims.jkt:
        raise InvalidToken("the access token and its record differ")
    verified = verify_request(house, request, now=now)
    if verified.jkt != row.jkt:
        raise InvalidProof("the proof was made by another key than the token's")
    key, principal = find_live_key(view, row.jkt, proof.TYP)
    if principal.id != row.principal:
        raise InvalidToken("the key of the access token belongs to another principal")
    levels = json.loads(row.limits)
    return Caller(
        principal=principal,
        key=key,
        token=row,
        levels=levels,
        proof=verified,
        request=request,
        now=now,
        epoch=view.epoch,
    )


def find_live_token(view: View, id: str, now: int) -> Token:
    """The row of a token that is live, as are all its ancestors.

    Raises:
        InvalidToken: A row is missing, revoked or expired.
    """
    row = view.find(Token, id)
    if row is None or row.status != ACTIVE or row.expires <= now:
        raise InvalidToken("the access token is expired, revoked or unknown", next="ask for a new one")
    for ancestor in row.chain:
        parent = view.find(Token, ancestor)
        if parent is None or parent.status != ACTIVE or parent.expires <= now:
            raise InvalidToken("a token that this access token was derived from is no longer live")
    return row


def find_live_key(view: View, jkt: str, use: str) -> tuple[Key, Principal]:
    """The row of an active key that may sign ``use``, and its principal.

    Raises:
        InvalidToken: There is no such key, it is revoked, may not sign this, or has no principal.
    """
    key = view.find(Key, jkt)
    if key is None or key.status != ACTIVE:
        raise InvalidToken("the key is not enrolled, or was revoked", next="broker login with a new code")
    if use not in key.uses:
        raise InvalidToken(f"the key may not sign {use}")
    principal = view.find(Principal, key.principal)
    if principal is None:
        raise InvalidToken("the principal of this key does not exist")
    # A disabled principal is let through on purpose: policy forbids it everything, and its attempts
    # are then on record. It gets no new token.
    return key, principal


def use_proof(house: House, caller: Caller) -> None:
    """Use up the proof of a read that makes no entry of its own.

    Raises:
        ReplayedProof: It was used before, on any replica.
        StaleDecision: Access changed since the caller was authenticated: the read has to be made again.
    """
    house.ledger.append(Draft(proof=caller.proof_use, epoch=caller.epoch))


def spend_proof(house: House, request: SignedRequest) -> None:
    """Use up the proof of a request that was refused without an entry, so that it works once (I08).

    Raises:
        NotAuthenticated and its kin: The caller is nobody that is known; nothing is written for it.
        ReplayedProof: It was used before.
    """
    with house.ledger.view() as view:
        caller = authenticate(house, view, request)
    house.ledger.append(Draft(proof=caller.proof_use))
