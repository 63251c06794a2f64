"""Outside issuers of workload identities: registered, shown, removed. Every change is an entry first."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from cryptography.x509 import load_pem_x509_certificates

from broker import jwks, limits
from broker.canonical import Json, canonical_bytes, format_time
from broker.drafts import Absent, NewEntry
from broker.errors import Conflict, InvalidRequest, MalformedRequest, NotFound
from broker.identity import issuers, mapping
from broker.model import ACTIVE, ISSUER_KINDS, REVOKED, Issuer, Principal
from broker.ports import View
from broker.services import authn, completing, federation
from broker.services.administration import (
    Change,
    administer,
    check_protected,
    missing_groups,
    read_administration,
)
from broker.services.house import House
from broker.services.record import Recorded, new_entry

AREA = "issuers"
RIGHT = "principals"


@dataclass(frozen=True, kw_only=True)
class IssuerRequest:
    """An issuer as an administrator describes it; nothing of it is checked yet.

    ``audience`` None is the broker's own issuer identifier; ``jwks`` a static JWK Set.
    """

    name: str
    url: str
    kind: str
    audience: str | None = None
    jwks_uri: str = ""
    jwks: Json | None = None
    ca: str = ""
    mapping: Any

    def body(self) -> Json:
        """What a retry must repeat."""
        return dict(vars(self))


def issuer_json(row: Issuer) -> Json:
    """An issuer as administrators see it."""
    return {
        "name": row.name,
        "url": row.url,
        "kind": row.kind,
        "audience": row.audience,
        "jwks_uri": row.jwks_uri,
        "jwks": json.loads(row.jwks) if row.jwks else None,
        "ca": row.ca,
        "mapping": json.loads(row.mapping),
        "mapping_digest": federation.mapping_digest(row),
        "disabled": row.status != ACTIVE,
        "created_at": format_time(row.created),
        "entry": row.entry,
    }


def list_issuers(house: House, request: authn.SignedRequest) -> Json:
    """Every issuer that was ever registered, ordered by name."""
    read_administration(house, request, AREA, RIGHT)
    with house.ledger.view() as view:
        return {"issuers": [issuer_json(row) for row in view.list(Issuer)]}


def show_keys(house: House, request: authn.SignedRequest, name: str) -> Json:
    """An issuer, and its keys as the broker knows them now: with these a token can be tried elsewhere.

    Raises:
        NotFound: There is no such issuer, or it was removed.
        Unavailable: Its keys are not to be had.
    """
    read_administration(house, request, AREA, RIGHT)
    with house.ledger.view() as view:
        row, now = _find(view, name), view.now
    keys = house.issuer_keys.keys(row, None, now=now)
    return {"issuer": issuer_json(row), "jwks": jwks.build_jwks(keys, use=jwks.use_for(row.kind))}


def put_issuer(
    house: House, request: authn.SignedRequest, *, request_id: str, wanted: IssuerRequest, have: str | None
) -> Json:
    """Register an issuer, or describe it anew: tokens that rest on what changed are dead (I15).

    A protected change: whoever may name an issuer may name every workload.

    Raises:
        InvalidRequest: A member of the description is not valid.
        Conflict: Another issuer has this URL, or principals have names under this one already.
    """
    made: list[Issuer] = []

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        check_protected(house, "naming who vouches for workloads")
        before = view.find(Issuer, wanted.name)
        row, rules = _parse(house, wanted, created=before.created if before else caller.now)
        _check_alone(view, row)
        if before is None:
            _check_unused(view, row.name)
        made[:] = [row]
        groups = {group for rule in rules.rules for group in rule.groups}
        group_entries, group_rows = missing_groups(house, view, caller.now, groups, common)
        return Change(
            entries=[_issuer_entry(house, row, caller.now, common), *group_entries],
            rows=[row, *group_rows],
            expects=[before if before else Absent(row=Issuer, key=(row.name,))],
        )

    recorded = _administer(house, request, request_id, wanted.body(), have, change)
    return _answer(house, made[0].name, recorded)


def remove_issuer(
    house: House, request: authn.SignedRequest, *, request_id: str, name: str, have: str | None
) -> Json:
    """Nothing that the issuer says counts any more, and every token that rests on it is dead (I15).

    Raises:
        NotFound: There is no such issuer.
    """

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        before = view.find(Issuer, issuers.parse_issuer_name(name))
        if before is None:
            raise _unknown()
        gone = replace(before, status=REVOKED)
        return Change(entries=[_issuer_entry(house, gone, caller.now, common)], rows=[gone], expects=[before])

    recorded = _administer(house, request, request_id, {"name": name, "remove": True}, have, change)
    return _answer(house, name, recorded)


def _administer(
    house: House, request: authn.SignedRequest, request_id: str, body: Json, have: str | None, change: Any
) -> Recorded:
    return administer(
        house,
        request,
        area=AREA,
        right=RIGHT,
        request_id=request_id,
        body=body,
        have=have,
        change=change,
    )


def _answer(house: House, name: str, recorded: Recorded) -> Json:
    with house.ledger.view() as view:
        row = view.find(Issuer, name)
    if row is None:
        raise _unknown()
    return {**issuer_json(row), **completing.proof_json(recorded)}


def _check_unused(view: View, name: str) -> None:
    # Whoever enrolled as workload:<name>/... was not meant to be what an issuer's jobs become.
    prefix = f"workload:{name}/"
    taken = next((row.id for row in view.list(Principal) if row.id.startswith(prefix)), None)
    if taken is not None:
        raise Conflict(
            f"{taken} exists already: this issuer's jobs could become it", next="choose another name"
        )


def _find(view: View, name: str) -> Issuer:
    row = view.find(Issuer, issuers.parse_issuer_name(name))
    if row is None or row.status != ACTIVE:
        raise _unknown()
    return row


def _unknown() -> NotFound:
    return NotFound("there is no such issuer", next="broker admin issuer ls")


def _issuer_entry(house: House, row: Issuer, time: int, common: Json) -> NewEntry:
    return new_entry(
        house,
        time=time,
        type="issuer",
        issuer=row.name,
        url=row.url,
        issuer_kind=row.kind,
        audience=row.audience,
        mapping=federation.mapping_digest(row),
        trust=federation.trust_digest(row),
        disabled=row.status != ACTIVE,
        record=row.mapping.encode("utf-8"),
        **common,
    )


def _check_alone(view: View, row: Issuer) -> None:
    # A token names its issuer by URL alone: two of the same could not be told apart.
    for other in view.list(Issuer, status=ACTIVE):
        if other.url == row.url and other.name != row.name:
            raise Conflict(f"issuer {other.name} has this URL", next=f"broker admin issuer rm {other.name}")


# -- what is checked before it is believed ------------------------------------------------------------------


def _parse(house: House, wanted: IssuerRequest, *, created: int) -> tuple[Issuer, mapping.Mapping]:
    if wanted.kind not in ISSUER_KINDS:
        raise InvalidRequest("there is no such kind of issuer", why=f"kinds are {', '.join(ISSUER_KINDS)}")
    rules = mapping.parse_mapping(wanted.mapping, kind=wanted.kind)
    static = "" if wanted.jwks is None else _parse_keys(wanted.jwks, wanted.kind)
    if wanted.kind == "spiffe" and not (static or wanted.jwks_uri):
        raise InvalidRequest("a SPIFFE trust domain is registered with its keys: jwks or jwks_uri")
    if static and wanted.jwks_uri:
        raise InvalidRequest("an issuer has either jwks or jwks_uri")
    row = Issuer(
        name=issuers.parse_issuer_name(wanted.name),
        url=issuers.parse_issuer_id(wanted.url, kind=wanted.kind),
        kind=wanted.kind,
        audience=_parse_audience(house.issuer if wanted.audience is None else wanted.audience),
        jwks_uri=jwks.parse_issuer_url(wanted.jwks_uri, query=True) if wanted.jwks_uri else "",
        jwks=static,
        ca=_parse_authorities(wanted.ca),
        mapping=mapping.mapping_bytes(rules).decode("utf-8"),
        status=ACTIVE,
        created=created,
    )
    return row, rules


def _parse_audience(text: str) -> str:
    if not 0 < len(text) <= limits.MAX_CLAIM or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidRequest("an audience is printable ASCII without spaces")
    return text


def _parse_keys(value: Json, kind: str) -> str:
    use = jwks.use_for(kind)
    try:
        keys = jwks.parse_jwks(value, use=use)
    except MalformedRequest as exc:
        raise InvalidRequest("the static keys are not a JWK Set of public keys", why=exc.what) from exc
    if not keys:
        raise InvalidRequest("the static keys hold none that may verify tokens", why=f"their use is {use}")
    text = canonical_bytes(jwks.build_jwks(keys, use=use))
    if len(text) > limits.MAX_JWKS:
        raise InvalidRequest(f"the static keys are larger than {limits.MAX_JWKS} bytes")
    return text.decode("utf-8")


def _parse_authorities(text: str) -> str:
    if not text:
        return ""
    if len(text) > limits.MAX_CA or not text.isascii():
        raise InvalidRequest(f"ca is PEM of at most {limits.MAX_CA} bytes")
    try:
        load_pem_x509_certificates(text.encode("ascii"))
    except ValueError as exc:
        raise InvalidRequest("ca holds no certificates in PEM") from exc
    return text
