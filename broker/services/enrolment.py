"""One-time codes, and the keys that they bind to principals."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

from broker import jose, limits, names
from broker.canonical import Json, canonical_bytes
from broker.drafts import Absent, Draft, RequestKey
from broker.envelope.manifest import SIGNATURE_TYPE
from broker.errors import Conflict, EnrolmentRefused, InvalidRequest
from broker.identity import enrolment as codes
from broker.identity import proof, token
from broker.model import ACTIVE, Enrolment, Key, Principal
from broker.ports import View
from broker.services import authn
from broker.services.house import House
from broker.services.record import Recorded, decide_and_record, digest_of, new_entry

KEY_USES = (proof.TYP, token.ASSERTION_TYP, SIGNATURE_TYPE)
"""What an enrolled key may sign (I14)."""


def draw_code(house: House, principal: str, now: int) -> tuple[str, Enrolment]:
    """A fresh one-time code for a principal: the text for its holder, and the row that knows its hash."""
    id, secret = house.entropy.random_bytes(8), house.entropy.random_bytes(16)
    row = Enrolment(
        id=id.hex(),
        principal=names.parse_principal(principal),
        secret_hash=codes.secret_hash(secret),
        expires=now + limits.ENROLMENT_TTL * 1000,
        status=ACTIVE,
    )
    return codes.build_code(id=id, secret=secret, vkey=house.log.vkey), row


def enrol(house: House, request: authn.SignedRequest, *, request_id: str, id: str, mac: bytes) -> Json:
    """Bind the key that signed this request to the principal that the code was made for.

    The secret is never sent: ``mac`` proves that the caller knows it, for exactly this key, this
    server and this log (I11). Any failure is the same answer and counts against the code.

    Raises:
        EnrolmentRefused: Unknown, used, expired or dead code, or a MAC that does not hold.
        Conflict: The key is enrolled already.
        InvalidProof, ReplayedProof: The proof does not hold, or was used before.
    """
    kept: dict[str, Any] = {}

    def decide(view: View) -> Draft:
        now = view.now
        verified = authn.verify_request(house, request, now=now)
        repeated = view.find_request(verified.jkt, request_id) is not None
        row = view.find(Enrolment, id) if repeated else _find_code(house, view, id, now)
        if row is None:
            raise _refused()
        _check_mac(house, row, verified.jkt, mac)
        principal = view.find(Principal, row.principal)
        if principal is None or principal.disabled:
            raise _refused()
        if view.find(Key, verified.jkt) is not None and not repeated:
            raise Conflict(
                "this key is enrolled already", next="make a new key: broker login with an empty profile"
            )
        key = Key(
            jkt=verified.jkt,
            principal=principal.id,
            jwk=json.dumps(verified.jwk, sort_keys=True),
            uses=KEY_USES,
            status=ACTIVE,
            created=now,
        )
        kept["principal"] = principal
        entry = new_entry(
            house,
            time=now,
            type="enrolment",
            evidence=authn.request_evidence(request),
            principal=principal.id,
            jkt=key.jkt,
            request_id=request_id,
            key={"jkt": key.jkt, "jwk": verified.jwk},
            code=row.id,
            enrolled_by=row.entry,
            uses=list(KEY_USES),
        )
        digest = digest_of(canonical_bytes({"code": row.id, "jkt": key.jkt}))
        return Draft(
            proof=authn.use_of(verified, now),
            # A retry after a lost answer gets the first outcome: the code is used, but by this very key.
            request=RequestKey(jkt=key.jkt, request_id=request_id, body_digest=digest),
            entries=(entry,),
            rows=(key, replace(row, status="used")),
            expects=(row, Absent(row=Key, key=(key.jkt,))),
            bumps_epoch=True,
        )

    _, recorded = decide_and_record(house, decide)
    return enrolled_json(house, kept["principal"], recorded)


def enrolled_json(house: House, principal: Principal, recorded: Recorded) -> Json:
    """What a new key's holder needs for its profile."""
    return {
        "principal": {
            "id": principal.id,
            "roles": list(principal.roles),
            "groups": list(principal.groups),
        },
        "jkt": recorded.entry["jkt"],
        "issuer": house.issuer,
        "log": {"origin": house.log.origin, "vkey": house.log.vkey},
        "store_hosts": list(house.store_hosts),
        "receipt": recorded.receipt,
    }


def _find_code(house: House, view: View, id: str, now: int) -> Enrolment:
    row = view.find(Enrolment, id)
    if row is None or row.status != ACTIVE or row.expires <= now:
        raise _refused()
    if house.ledger.enrolment_failures(row.id) >= limits.ENROLMENT_FAILURES:
        raise _refused()
    return row


def _check_mac(house: House, row: Enrolment, jkt: str, mac: bytes) -> None:
    for url in house.public_urls:
        with suppress(EnrolmentRefused):
            codes.verify_enrolment_mac(mac, row.secret_hash, jkt=jkt, url=url, vkey=house.log.vkey)
            return
    # Counted before it is answered, so that a crash never gives a free guess.
    house.ledger.note_enrolment_failure(row.id)
    raise _refused()


def _refused() -> EnrolmentRefused:
    return EnrolmentRefused(
        "the enrolment code is not accepted",
        why="it is wrong, used, expired (one hour) or dead after five failures",
        next="ask an administrator: broker admin principal code ID",
    )


def parse_code_id(text: str) -> str:
    """The 16 lower-case hex digits that name a code.

    Raises:
        InvalidRequest: It is something else.
    """
    if not isinstance(text, str) or len(text) != 16 or any(c not in "0123456789abcdef" for c in text):
        raise InvalidRequest("the id of an enrolment code is 16 hex digits")
    return text


def first_key(house: House, principal: Principal, key: jose.PrivateKey, now: int) -> tuple[Key, Any]:
    """The key of the first administrator, bound by the log's genesis batch instead of a code."""
    row = Key(
        jkt=key.jkt,
        principal=principal.id,
        jwk=json.dumps(key.jwk, sort_keys=True),
        uses=KEY_USES,
        status=ACTIVE,
        created=now,
    )
    entry = new_entry(
        house,
        time=now,
        type="enrolment",
        principal=principal.id,
        jkt=key.jkt,
        key={"jkt": key.jkt, "jwk": key.jwk},
        uses=list(KEY_USES),
    )
    return row, entry
