"""A workload's own token in, an access token out (RFC 8693).

A job proves what it is with a token that somebody else issued: its cluster, its CI, its SPIFFE server.
The issuer's mapping says who that is here. The first exchange of such a token pins it to the key that
made it, so whoever copies it later gets nothing for it.

**Source**: RFC 8693 sections 2.1 and 2.2; RFC 9449 section 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from broker import jwks, limits
from broker.canonical import Json
from broker.drafts import Absent, Draft, NewEntry, ProofUse
from broker.envelope.manifest import SIGNATURE_TYPE
from broker.errors import (
    BrokerError,
    IntegrityFailure,
    InvalidGrant,
    InvalidRequest,
    InvalidSubjectToken,
    MalformedRequest,
    Unavailable,
)
from broker.identity import issuers, mapping, proof, scope
from broker.model import ACTIVE, Issuer, Key, Principal, Row, SubjectUse, Token
from broker.ports import View
from broker.services import authn, denials, federation, people, tokens
from broker.services.house import House
from broker.services.record import decide_and_append, new_entry

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name, no secret
WORKLOAD_TOKENS: Final = (
    "urn:ietf:params:oauth:token-type:jwt",
    "urn:ietf:params:oauth:token-type:id_token",
)
"""Types of subject tokens that are workload identities."""


def exchange(
    house: House, request: authn.SignedRequest, *, subject_token: str, details: list[Any]
) -> tokens.Issued:
    """An access token for the workload that a foreign token speaks of, bound to the proof's key.

    1. The proof holds, and the token names an issuer that is registered.
    2. The issuer's keys, which may have to be fetched: outside of every transaction.
    3. The token is that issuer's, for this broker, alive.
    4. On one snapshot: the issuer is still the same, its mapping names the principal, which is not
       disabled; the key is the principal's, or nobody's yet; the token was not exchanged by another key.
    5. Recorded, with the rows of a principal, key or pin that are new.

    Raises:
        InvalidSubjectToken: The token does not hold, or means nobody here. Unauthenticated: no entry.
        InvalidGrant: The token holds, but this key may not exchange it. Recorded.
        InvalidProof, ReplayedProof: The proof does not hold, or was used before.
        InvalidRequest: The ``authorization_details`` are malformed or empty (I03).
        Unavailable: The issuer's keys are not to be had, or the issuer is just being changed.
    """
    levels = scope.derive_limits((), details)
    issuer, subject = _verify(house, request, subject_token)
    id = tokens.draw_id(house)
    refusal: list[BrokerError] = []
    kept: list[Token] = []

    def decide(view: View) -> Draft:
        refusal.clear()
        kept.clear()
        workload = _identify(house, view, request, subject_token, issuer, subject)
        try:
            bound = _bind(house, view, workload)
        except InvalidGrant as error:
            refusal.append(error)
            return denials.denial_draft(house, workload, error=error, action="exchange")
        row = Token(
            id=id,
            principal=workload.principal.id,
            jkt=workload.jkt,
            limits=tokens.levels_text(levels),
            chain=(),
            issued=view.now,
            expires=_end(view.now, subject),
            status=ACTIVE,
            identity=workload.identity.as_text(),
        )
        kept.append(row)
        entry = tokens.token_entry(
            house,
            row,
            evidence=workload.evidence(),
            issuer=issuer.name,
            mapping=workload.identity.mapping,
            subject_digest=subject.digest,
        )
        # A principal, key or pin that is new changes nobody else's access, and what is written because
        # of its absence expects that: the epoch, which sends all other decisions back, stays. But for a
        # key that tokens were minted for while it was nobody's: they die with this (I15).
        return Draft(
            proof=workload.proof_use,
            entries=(*bound.entries, entry),
            rows=(*bound.rows, row),
            expects=tuple(bound.expects),
            bumps_epoch=bound.ends_delegation,
        )

    decide_and_append(house, decide)
    if refusal:
        raise refusal[0]
    return tokens.sign(house, kept[0])


# -- steps 1 to 3 -------------------------------------------------------------------------------------------


def _verify(house: House, request: authn.SignedRequest, text: str) -> tuple[Issuer, issuers.Subject]:
    with house.ledger.view() as view:
        now = view.now
        authn.verify_request(house, request, now=now, digests=False)
        with _refusing():
            peeked = jwks.peek_foreign(text)
            issuer = issuers.find_issuer_key(peeked, view.list(Issuer, status=ACTIVE))
    try:
        keys = house.issuer_keys.keys(issuer, peeked.kid, now=now)
    except Unavailable as exc:
        # What went wrong on the way there is for administrators (`admin issuer test`), not for strangers.
        raise Unavailable("the issuer's keys are not to be had just now", next="try again") from exc
    with _refusing():
        subject = issuers.verify_subject(text, issuer=issuer, keys=keys, now=now)
    return issuer, subject


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever is wrong with a foreign token is one kind of refusal; the token itself is not repeated."""
    try:
        yield
    except (InvalidRequest, MalformedRequest, IntegrityFailure) as exc:
        raise InvalidSubjectToken(
            "the subject token does not hold, or means nobody here",
            why=exc.why or exc.what,
            next="broker admin issuer test NAME --token-file FILE says which check fails",
        ) from exc


# -- step 4 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Whom a foreign token that holds speaks of, and with which key it is exchanged."""

    principal: Principal
    """Its row, or the one that it is about to get."""
    known: bool
    """Whether the row is stored already."""
    jwk: dict[str, str]
    jkt: str
    issuer: Issuer
    subject: issuers.Subject
    identity: federation.Identity
    request: authn.SignedRequest = field(repr=False)
    subject_token: str = field(repr=False)
    proof_use: ProofUse
    now: int

    def evidence(self, inputs: Json | None = None) -> Json:
        """The signed request, with what identifies the foreign token in the place of the body (I11)."""
        about = {
            "iss": self.subject.issuer,
            "sub": self.subject.sub,
            "jti": self.subject.jti or "",
            "exp": self.subject.expires_ms // 1000,
            "sha256": authn.credential_digest(self.subject_token),
        }
        found = authn.form_evidence(self.request, subject_token=about)
        return found if inputs is None else {**found, "inputs": inputs}

    def members(self) -> dict[str, Any]:
        """The members of an entry that say who asked."""
        return {"principal": self.principal.id, "jkt": self.jkt}


def _identify(
    house: House,
    view: View,
    request: authn.SignedRequest,
    text: str,
    issuer: Issuer,
    subject: issuers.Subject,
) -> Workload:
    now = view.now
    verified = authn.verify_request(house, request, now=now, digests=False)
    if view.find(Issuer, issuer.name) != issuer:
        # I15: it was believed under a registration that is no longer the one in force.
        raise Unavailable("the issuer was changed while its token was verified", next="try again")
    with _refusing():
        if _end(now, subject) <= now:
            raise InvalidRequest("it has expired")
        rules = mapping.parse_mapping(issuer.mapping, kind=issuer.kind)
        mapped = mapping.apply_mapping(rules, subject, issuer_name=issuer.name)
    row = view.find(Principal, mapped.principal)
    return Workload(
        principal=row or _new_principal(mapped.principal, now),
        known=row is not None,
        jwk=verified.jwk,
        jkt=verified.jkt,
        issuer=issuer,
        subject=subject,
        identity=federation.Identity(
            issuer=issuer.name,
            mapping=federation.mapping_digest(issuer),
            trust=federation.trust_digest(issuer),
            rule=mapped.rule,
            groups=mapped.groups,
            roles=mapped.roles,
            attributes=mapped.attributes,
            subject_expires=subject.expires_ms,
        ),
        request=request,
        subject_token=text,
        proof_use=authn.use_of(verified, now),
        now=now,
    )


def _new_principal(id: str, now: int) -> Principal:
    # What the mapping gives stays with the token: the row is what all jobs of this name share.
    return Principal(id=id, roles=("workload",), groups=(), disabled=False, created=now)


def _end(now: int, subject: issuers.Subject) -> int:
    # I06: never later than what it rests on, on a whole second.
    return min(tokens.end_of(now, limits.ACCESS_TOKEN_TTL), subject.expires_ms // 1000 * 1000)


@dataclass(kw_only=True)
class _Bound:
    entries: list[NewEntry]
    rows: list[Row]
    expects: list[Row | Absent]
    ends_delegation: bool = False


def _bind(house: House, view: View, workload: Workload) -> _Bound:
    """The rows that are missing: principal, key, pin.

    Raises:
        InvalidGrant: The principal is disabled, the key is not the principal's, or the foreign token was
            exchanged by another key.
    """
    if workload.principal.disabled:
        raise InvalidGrant("the principal is disabled", next="ask an administrator to enable it")
    _check_pin(view, workload)
    bound = _Bound(entries=[], rows=[], expects=[])
    _bind_key(house, view, workload, bound)
    _bind_principal(house, workload, bound)
    _pin(view, workload, bound)
    return bound


def _check_pin(view: View, workload: Workload) -> None:
    pin = view.find(SubjectUse, workload.subject.digest)
    if pin is not None and (pin.jkt, pin.principal) != (workload.jkt, workload.principal.id):
        raise InvalidGrant(
            "this subject token was exchanged by another key",
            why="the first exchange pins it, until it expires",
            next="ask for a fresh token, or let whoever exchanged it mint one for this key",
        )


def _bind_key(house: House, view: View, workload: Workload, bound: _Bound) -> None:
    key = view.find(Key, workload.jkt)
    if key is None:
        made = _new_key(workload)
        # The key's row is written with the index of the draft's first entry: that has to be this one,
        # by which a publisher's signature is traced to its principal.
        bound.entries.append(_enrolment_entry(house, workload, made))
        bound.rows.append(made)
        bound.expects.append(Absent(row=Key, key=(made.jkt,)))
        bound.ends_delegation = bool(view.list(Token, jkt=made.jkt, delegated=True))
    elif key.status != ACTIVE or key.principal != workload.principal.id or proof.TYP not in key.uses:
        raise InvalidGrant(
            "this key may not exchange the subject token",
            why="it was revoked, or is enrolled to another principal",
            next="make a new key for the job",
        )


def _new_key(workload: Workload) -> Key:
    # No assertions: without the issuer's token this key gets no other (I14).
    roles = federation.as_actor(workload.principal, workload.identity).roles
    uses = (proof.TYP, SIGNATURE_TYPE) if "publisher" in roles else (proof.TYP,)
    return Key(
        jkt=workload.jkt,
        principal=workload.principal.id,
        jwk=json.dumps(workload.jwk, sort_keys=True),
        uses=uses,
        status=ACTIVE,
        created=workload.now,
    )


def _enrolment_entry(house: House, workload: Workload, key: Key) -> NewEntry:
    return new_entry(
        house,
        time=workload.now,
        type="enrolment",
        evidence=workload.evidence(),
        key={"jkt": key.jkt, "jwk": workload.jwk},
        uses=list(key.uses),
        issuer=workload.issuer.name,
        **workload.members(),
    )


def _bind_principal(house: House, workload: Workload, bound: _Bound) -> None:
    if workload.known:
        return
    common = {"evidence": workload.evidence(), **workload.members()}
    bound.entries.append(people.principal_entry(house, workload.principal, workload.now, common))
    bound.rows.append(workload.principal)
    bound.expects.append(Absent(row=Principal, key=(workload.principal.id,)))


def _pin(view: View, workload: Workload, bound: _Bound) -> None:
    digest = workload.subject.digest
    if view.find(SubjectUse, digest) is not None:
        return
    pin = SubjectUse(
        digest=digest,
        jkt=workload.jkt,
        issuer=workload.issuer.name,
        principal=workload.principal.id,
        # With a margin for steps of the clock, as for proofs.
        expires=workload.subject.expires_ms + limits.REPLAY_KEEP * 1000,
    )
    bound.rows.append(pin)
    bound.expects.append(Absent(row=SubjectUse, key=(digest,)))
