"""The OAuth endpoints: forms in, JSON out, errors in OAuth's own form.

**Source**: RFC 6749, RFC 7009, RFC 7523, RFC 7662, RFC 9396, RFC 9449 section 5.
"""

from __future__ import annotations

from typing import Any

from werkzeug.wrappers import Response

from broker.canonical import Json, parse_json
from broker.errors import InvalidRequest, MalformedRequest
from broker.identity import scope
from broker.services import tokens
from broker.web.calls import Call
from broker.web.problems import UNSUPPORTED_GRANT


def issue_token(call: Call) -> Json:
    """An access token for an enrolled key: assertion under a proof by the same key."""
    form = call.body
    if _member(form, "grant_type") != tokens.JWT_BEARER:
        raise InvalidRequest(UNSUPPORTED_GRANT, why=f"the one grant type is {tokens.JWT_BEARER}")
    issued = tokens.issue(
        call.house,
        call.request,
        assertion=_member(form, "assertion"),
        details=_details(form.get("authorization_details")),
    )
    return {
        "access_token": issued.access_token,
        "token_type": "DPoP",
        "expires_in": issued.expires_in,
        "token_id": issued.id,
        "authorization_details": issued.details,
    }


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
