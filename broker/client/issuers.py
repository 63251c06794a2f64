"""Issuers as an administrator prepares them: a mapping from a file, and a token tried against it here.

The token that is tried never leaves the machine: the broker tells the issuer's keys, and the same rules
that it would apply run on this side.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker import jwks, model
from broker.canonical import Json, parse_json_object
from broker.errors import BrokerError, InvalidRequest, InvalidSubjectToken, MalformedRequest
from broker.identity import issuers, mapping


def parse_map(data: bytes, *, kind: str) -> Json:
    """A mapping from the bytes of a file: TOML, or JSON where the text begins with ``{``.

    ``schema`` may be left out; everything else is as ``docs/integrations/workload-identity.md`` says.

    Args:
        data: The file.
        kind: The issuer's kind: what every rule must bind depends on it.

    Raises:
        InvalidRequest: It is neither, or breaks a rule of the format.
    """
    try:
        text = data.decode("utf-8")
        found = parse_json_object(data) if text.lstrip().startswith("{") else dict(tomllib.loads(text))
        members = {"schema": mapping.SCHEMA, **found}
        mapping.parse_mapping(members, kind=kind)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, MalformedRequest) as exc:
        raise InvalidRequest("the mapping is neither TOML nor JSON", why=str(exc)) from exc
    return members


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a token would become.

    Attributes:
        issuer: The issuer's name.
        sub: The token's subject.
        expires: Its end, milliseconds since 1970.
        mapped: The principal, and what the rule gives it.
        claims: What rules can name, the flattened claims of the issuer's kind included.
    """

    issuer: str
    sub: str
    expires: int
    mapped: mapping.Mapped
    claims: Json


def try_token(text: str, known: Json, *, now: int, rules: Json | None = None) -> Tried:
    """Verify a workload's token against an issuer, and map it.

    Args:
        text: The token.
        known: What :meth:`broker.client.administration.Administration.issuer_keys` answers.
        now: Milliseconds since 1970.
        rules: A mapping to try in the place of the registered one.

    Raises:
        InvalidSubjectToken: It does not hold, or no rule is for it; ``why`` names the check.
    """
    row = _issuer(known["issuer"])
    keys = jwks.parse_jwks(known["jwks"], use=jwks.use_for(row.kind))
    chosen = mapping.parse_mapping(known["issuer"]["mapping"] if rules is None else rules, kind=row.kind)
    try:
        subject = issuers.verify_subject(text, issuer=row, keys=keys, now=now)
    except BrokerError as exc:
        raise _refused(exc, f"the token is not one of issuer {row.name}") from exc
    try:
        mapped = mapping.apply_mapping(chosen, subject, issuer_name=row.name)
    except BrokerError as exc:
        raise _refused(exc, f"the token is one of issuer {row.name}, and means nobody") from exc
    return Tried(
        issuer=row.name, sub=subject.sub, expires=subject.expires_ms, mapped=mapped, claims=subject.claims
    )


def _refused(exc: BrokerError, what: str) -> InvalidSubjectToken:
    return InvalidSubjectToken(what, why=exc.why or exc.what)


def _issuer(found: Mapping[str, Any]) -> model.Issuer:
    return model.Issuer(
        name=str(found["name"]),
        url=str(found["url"]),
        kind=str(found["kind"]),
        audience=str(found["audience"]),
        mapping="",
        status=model.ACTIVE,
        created=0,
    )
