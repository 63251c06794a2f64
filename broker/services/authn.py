"""Step 2: who is asking. Read-only: nothing is written until step 5."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Final

from broker import limits
from broker.canonical import Json, b64url, sha256_digest
from broker.drafts import Draft, ProofUse
from broker.envelope.manifest import SIGNATURE_TYPE
from broker.errors import (
    InvalidGrant,
    InvalidProof,
    InvalidSubjectToken,
    InvalidToken,
    NotAuthenticated,
    ScopeExceeded,
)
from broker.identity import nonce, proof, token
from broker.model import ACTIVE, NOT_STORED, Key, Principal, Token
from broker.ports import View
from broker.services import federation, holders
from broker.services.house import House

_MOST_OPENED: Final = 4096
"""Access tokens whose signature is not verified again."""


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
    """Who signed a request: a live principal, one of its live keys, and the token's limits.

    ``principal`` is as policy is to see it: with what a workload's own token adds to its row. ``key``
    is a row, or, for a delegated key, a value that no row stands behind: see
    :func:`broker.services.holders.find_holder`.
    """

    principal: Principal
    key: Key
    token: Token
    levels: list[list[Json]]
    proof: proof.VerifiedProof
    request: SignedRequest
    now: int
    epoch: int
    """``state_epoch`` of the snapshot that the caller was authenticated in."""
    identity: federation.Identity | None = None
    """What a workload's own token said, when the access token began with one."""

    @property
    def proof_use(self) -> ProofUse:
        """The row that makes a second use of this proof a replay (I08)."""
        return use_of(self.proof, self.now)

    def evidence(self, inputs: Json | None = None) -> Json:
        """The signed request, and what the decision was made from; never the token itself (I11)."""
        found = request_evidence(self.request)
        found["token"] = {
            "jti": self.token.id,
            "sub": self.token.principal,
            "exp": self.token.expires // 1000,
            "sha256": credential_digest(self.request.access_token or ""),
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


def form_evidence(request: SignedRequest, **credentials: Json) -> Json:
    """Evidence of a token request: what stands in ``credentials`` for the body, which holds them (I11)."""
    return {**request_evidence(replace(request, body=b"")), **credentials}


def credential_digest(text: str) -> str:
    """SHA-256 of a token or assertion in hex, which stands for it in evidence."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


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
    holder = _find_bearer(house, view, request.access_token)
    verified = verify_request(house, request, now=view.now)
    if verified.jkt != holder.token.jkt:
        raise InvalidProof("the proof was made by another key than the token's")
    return _caller(view, holder, verified, request)


def authenticate_subject(house: House, view: View, request: SignedRequest, text: str) -> Caller:
    """The holder of one of our tokens that is to be exchanged, under a proof by the token's own key.

    The caller's evidence names the token by digest and holds no body, since the form has the token in
    it (I11).

    Raises:
        InvalidProof and its kin: The proof does not hold.
        InvalidSubjectToken: The token, or something that it rests on, does not.
        InvalidGrant: The proof is by another key: a stolen token is exchanged by nobody (I07).
    """
    verified = verify_request(house, request, now=view.now, digests=False)
    try:
        holder = _find_bearer(house, view, text)
    except NotAuthenticated as exc:
        why = f"{exc.what}: {exc.why}" if exc.why else exc.what
        raise InvalidSubjectToken("the subject token does not hold", why=why, next=exc.next) from exc
    if verified.jkt != holder.token.jkt:
        raise InvalidGrant("a key-bound token is exchanged only under a proof by its own key")
    return _caller(view, holder, verified, replace(request, body=b"", access_token=text))


def _find_bearer(house: House, view: View, text: str) -> holders.Holder:
    claims = _open_token(house, text)
    token.check_access_claims(claims, issuer=house.issuer, audience=house.issuer, now=view.now)
    holder = holders.find_holder(view, claims.jti, view.now)
    if holder.token.principal != claims.sub or holder.token.jkt != claims.jkt:
        raise InvalidToken("the access token and its record differ")
    return holder


def _open_token(house: House, text: str) -> token.AccessClaims:
    """The signature of a token is verified once; its times, its row and its key are looked at each time."""
    keys = house.token_keys.accepted
    place = (
        hashlib.sha256(text.encode("utf-8", "replace")).digest(),
        *sorted((kid, jwk["x"]) for kid, jwk in keys.items()),
    )
    found = house.opened_tokens.get(place)
    if found is None:
        found = token.open_access_token(text, keys=keys)
        if len(house.opened_tokens) >= _MOST_OPENED:
            house.opened_tokens.clear()
        house.opened_tokens[place] = found
    return found


def _caller(
    view: View, holder: holders.Holder, verified: proof.VerifiedProof, request: SignedRequest
) -> Caller:
    row = holder.token
    return Caller(
        principal=federation.as_actor(holder.principal, holder.identity),
        key=holder.key or _delegated_key(row, verified),
        token=row,
        levels=json.loads(row.limits),
        proof=verified,
        request=request,
        now=view.now,
        epoch=view.epoch,
        identity=holder.identity,
    )


def _delegated_key(row: Token, verified: proof.VerifiedProof) -> Key:
    """A key that nobody enrolled: it signs requests under this token, and nothing else (I14)."""
    return Key(
        jkt=row.jkt,
        principal=row.principal,
        jwk=json.dumps(verified.jwk, sort_keys=True),
        uses=(proof.TYP,),
        status=ACTIVE,
        created=row.issued,
        entry=NOT_STORED,
    )


def check_may_publish(caller: Caller) -> None:
    """The caller's key is enrolled to sign manifests.

    Raises:
        ScopeExceeded: It is not: it was named at minting, or bound for a workload that only reads.
    """
    if SIGNATURE_TYPE not in caller.key.uses:
        raise ScopeExceeded(
            "this key may not publish",
            why="a publisher's key is enrolled, or bound to a workload with the role publisher",
            next="publish with a key of your own",
        )


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
