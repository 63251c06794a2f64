"""The OAuth endpoints: forms in, JSON out, errors in OAuth's own form.

**Source**: RFC 6749, RFC 7009, RFC 7523, RFC 7662, RFC 8693, RFC 9396, RFC 9449 section 5.
"""

from __future__ import annotations

import re
from typing import Any, Final

from werkzeug.wrappers import Response

from broker import limits
from broker.canonical import Json, parse_json
from broker.errors import InvalidRequest, MalformedRequest
from broker.identity import scope
from broker.services import exchange, minting, tokens
from broker.services.house import House
from broker.web.calls import Call
from broker.web.problems import INVALID_TARGET, UNSUPPORTED_GRANT

_EXCHANGE: Final = frozenset(
    {
        "grant_type",
        "subject_token",
        "subject_token_type",
        "authorization_details",
        "requested_token_type",
        "resource",
        "audience",
    }
)
_MINTING: Final = frozenset({"cnf_jkt", "expires_in"})
"""Members that only the exchange of a broker token takes."""


def issue_token(call: Call) -> Json:
    """An access token: for an enrolled key's assertion, a workload's own token, or a wider token of ours."""
    grant_type = _member(call.body, "grant_type")
    if grant_type == tokens.JWT_BEARER:
        return _issued(_from_assertion(call))
    if grant_type == exchange.GRANT_TYPE:
        return {**_issued(_exchange(call)), "issued_token_type": exchange.ACCESS_TOKEN}
    raise InvalidRequest(
        UNSUPPORTED_GRANT, why=f"the grant types are {tokens.JWT_BEARER} and {exchange.GRANT_TYPE}"
    )


def _issued(issued: tokens.Issued) -> Json:
    return {
        "access_token": issued.access_token,
        "token_type": "DPoP",
        "expires_in": issued.expires_in,
        "token_id": issued.id,
        "authorization_details": issued.details,
        "principal": issued.principal,
    }


def _from_assertion(call: Call) -> tokens.Issued:
    return tokens.issue(
        call.house,
        call.request,
        assertion=_member(call.body, "assertion"),
        details=_details(call.body.get("authorization_details")),
    )


def _exchange(call: Call) -> tokens.Issued:
    form = call.body
    kind = _member(form, "subject_token_type")
    _check_exchange(call.house, form, minting=kind == exchange.ACCESS_TOKEN)
    subject, details = _member(form, "subject_token"), _details(form.get("authorization_details"))
    # I14: the type that the caller names chooses the one verifier that sees the token.
    if kind == exchange.ACCESS_TOKEN:
        wanted = minting.MintRequest(details=details, holder=form.get("cnf_jkt"), ttl=_ttl(form))
        return minting.mint(call.house, call.request, subject_token=subject, wanted=wanted)
    if kind in exchange.WORKLOAD_TOKENS:
        return exchange.exchange(call.house, call.request, subject_token=subject, details=details)
    raise InvalidRequest("tokens of this type are not exchanged here", why="see subject_token_type")


def _check_exchange(house: House, form: dict[str, str], *, minting: bool) -> None:
    unknown = form.keys() - _EXCHANGE - (_MINTING if minting else frozenset())
    if unknown:
        raise InvalidRequest(
            "the form has a member that this exchange does not take",
            why=f"it takes {', '.join(sorted(_EXCHANGE | _MINTING))} (the last two for an access token)",
        )
    if form.get("requested_token_type", exchange.ACCESS_TOKEN) != exchange.ACCESS_TOKEN:
        raise InvalidRequest("only access tokens are issued", why="see requested_token_type")
    ours = {house.issuer, *house.public_urls}
    for name in ("resource", "audience"):
        if name in form and form[name] not in ours:
            raise InvalidRequest(INVALID_TARGET, why=f"{name} is not this broker")


def _ttl(form: dict[str, str]) -> int:
    text = form.get("expires_in", str(limits.ACCESS_TOKEN_TTL))
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise InvalidRequest("expires_in is a whole number of seconds")
    return int(text)


def introspect_token(call: Call) -> Json:
    """What one of the caller's own tokens is worth."""
    return tokens.introspect(call.house, call.request, text=_member(call.body, "token"))


def revoke_token(call: Call) -> Response:
    """One of the caller's own tokens is dead from now on. Always the same empty answer."""
    tokens.revoke_own(call.house, call.request, text=_member(call.body, "token"))
    return Response(b"", status=200)


def _member(form: dict[str, str], name: str) -> str:
    if not form.get(name):
        raise MalformedRequest(f"the form has no {name}")
    return form[name]


def _details(text: str | None) -> list[Any]:
    # I03: absent is not "everything", it is nothing, and nothing is not worth a token.
    if text is None:
        raise InvalidRequest(
            scope.INVALID_DETAILS, why="authorization_details is missing: it would grant nothing"
        )
    try:
        found = parse_json(text.encode("utf-8"))
    except MalformedRequest as exc:
        raise InvalidRequest(scope.INVALID_DETAILS, why="authorization_details is not JSON") from exc
    if not isinstance(found, list):
        raise InvalidRequest(scope.INVALID_DETAILS, why="authorization_details is a JSON list")
    return found
