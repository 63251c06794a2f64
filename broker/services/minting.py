"""A broker token in, a narrower one out (RFC 8693): for the same key, or for one that the holder names.

A launcher hands each rank of a job a token for its shards. The rank's key is *delegated*: it is named
here, in an entry that says who named it, and nobody enrolled it. It holds this token and what is derived
from it, and nothing else.

**Source**: RFC 8693 sections 2.1 and 2.2; RFC 9396 section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from broker import limits
from broker.canonical import Json, parse_b64url
from broker.drafts import Absent, Draft
from broker.errors import BrokerError, Denied, InvalidRequest
from broker.identity import proof, scope
from broker.model import ACTIVE, Key, Token
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, deciding, denials, tokens
from broker.services.house import House
from broker.services.record import decide_and_append


@dataclass(frozen=True, kw_only=True)
class MintRequest:
    """The token that is wanted; ``holder`` None is the key that asks, ``ttl`` is in seconds."""

    details: list[Any]
    holder: str | None = None
    ttl: int = limits.ACCESS_TOKEN_TTL

    def check(self) -> None:
        """Everything that needs no look at the parent.

        Raises:
            InvalidRequest: The details grant nothing (I03), or the time to live is out of range.
            MalformedRequest: The holder is not a thumbprint.
        """
        scope.parse_details(self.details)
        if self.holder is not None:
            parse_b64url(self.holder, size=32)
        if not 1 <= self.ttl <= limits.ACCESS_TOKEN_TTL:
            raise InvalidRequest(f"expires_in is a number of seconds from 1 to {limits.ACCESS_TOKEN_TTL}")


def mint(
    house: House, request: authn.SignedRequest, *, subject_token: str, wanted: MintRequest
) -> tokens.Issued:
    """A token that covers what its parent and ``wanted`` both cover, and ends with its parent (I06, I07).

    Raises:
        InvalidSubjectToken: The parent does not hold. Unauthenticated: no entry.
        InvalidGrant: The proof is by another key than the parent's.
        Denied: Policy says no, or the key that is named is not to have it. Recorded.
        InvalidRequest: The details grant nothing (I03), or the chain would be too long.
    """
    wanted.check()
    id = tokens.draw_id(house)
    refusal: list[BrokerError] = []
    kept: list[Token] = []

    def decide(view: View) -> Draft:
        refusal.clear()
        kept.clear()
        caller = authn.authenticate_subject(house, view, request, subject_token)
        row = _child(caller, wanted, id)
        answer = None
        try:
            expects = _check_holder(view, caller, row.jkt)
            row = replace(row, delegated=_is_delegated(caller, row.jkt, expects))
            answer = _ask_policy(house, view, caller, wanted, row)
            if not answer.allowed:
                raise answer.refusal("minting this token")
        except denials.REFUSALS as error:
            refusal.append(error)
            return denials.denial_draft(house, caller, error=error, action="mint", answer=answer)
        kept.append(row)
        entry = tokens.token_entry(
            house,
            row,
            evidence=caller.evidence(answer.inputs),
            action="mint",
            decision=answer.decision.as_json(),
            parent=caller.token.id,
            minter=caller.members(),
            **_provenance(caller),
        )
        return Draft(proof=caller.proof_use, entries=(entry,), rows=(row,), expects=expects)

    decide_and_append(house, decide)
    if refusal:
        raise refusal[0]
    return tokens.sign(house, kept[0])


def _child(caller: authn.Caller, wanted: MintRequest, id: str) -> Token:
    parent = caller.token
    return Token(
        id=id,
        principal=parent.principal,
        jkt=wanted.holder or parent.jkt,
        limits=tokens.levels_text(scope.derive_limits(caller.levels, wanted.details)),
        chain=(*parent.chain, parent.id),
        issued=caller.now,
        expires=min(tokens.end_of(caller.now, wanted.ttl), parent.expires),
        status=ACTIVE,
        identity=parent.identity,
    )


def _check_holder(view: View, caller: authn.Caller, jkt: str) -> tuple[Key | Absent, ...]:
    """The key may hold the token: it is the principal's own, or nobody's.

    Returns:
        What the decision rests on.

    Raises:
        Denied: It is enrolled to another principal, or was revoked.
    """
    if jkt == caller.token.jkt:
        return ()
    key = view.find(Key, jkt)
    if key is None:
        return (Absent(row=Key, key=(jkt,)),)
    if key.status != ACTIVE or key.principal != caller.principal.id or proof.TYP not in key.uses:
        raise Denied(
            "this key may not hold the token",
            why="it is enrolled to another principal, or was revoked",
            next="name a key that the rank made for itself",
        )
    return (key,)


def _is_delegated(caller: authn.Caller, jkt: str, expects: tuple[Key | Absent, ...]) -> bool:
    # I19: said in the token's own row, so that a key whose row vanished is not taken for a delegated one.
    if jkt == caller.token.jkt:
        return caller.token.delegated
    return any(isinstance(each, Absent) for each in expects)


def _ask_policy(
    house: House, view: View, caller: authn.Caller, wanted: MintRequest, row: Token
) -> deciding.Answer:
    target = policy.TokenTarget(id=caller.token.id, owner=caller.token.principal)
    return deciding.decide(
        house,
        view,
        caller.principal,
        "mint",
        target,
        network=caller.request.network,
        mint=_describe(wanted, row, own_key=row.jkt == caller.token.jkt),
    )


def _describe(wanted: MintRequest, row: Token, *, own_key: bool) -> policy.Mint:
    details = scope.parse_details(wanted.details)
    artifacts = [detail for detail in details if detail.type == scope.ARTIFACT]
    ceilings = [detail.max_bytes for detail in artifacts]
    bounded = [each for each in ceilings if each is not None]
    identifiers = {detail["identifier"] for detail in wanted.details if "identifier" in detail}
    return policy.Mint(
        own_key=own_key,
        ttl=row.expires // 1000 - row.issued // 1000,
        max_bytes=max(bounded) if bounded and len(bounded) == len(ceilings) else 0,
        types=tuple(sorted({detail.type for detail in details})),
        actions=tuple(sorted({action for detail in details for action in detail.actions})),
        identifiers=tuple(sorted(identifiers)),
    )


def _provenance(caller: authn.Caller) -> Json:
    identity = caller.identity
    return {} if identity is None else {"issuer": identity.issuer, "mapping": identity.mapping}
