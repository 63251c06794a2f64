"""Failures as HTTP answers: problem documents, and OAuth's own errors at ``/oauth/*``.

The tables of :mod:`broker.errors` give the status; this module adds the headers that HTTP and OAuth
want with it. What is not one of our errors becomes a 500 with an id and nothing else.

**Source**: RFC 9457; RFC 6749 section 5.2, RFC 6750 section 3, RFC 8693 section 2.2.2, RFC 9396
section 5, RFC 9449 sections 5, 7.1 and 8, RFC 9728 section 5.1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from broker.canonical import Json, drop_absent
from broker.errors import (
    HTTP_STATUS,
    BrokerError,
    ConfigurationError,
    Denied,
    IntegrityFailure,
    InternalError,
    InvalidProof,
    InvalidToken,
    MalformedRequest,
    MethodNotAllowed,
    NonceRequired,
    NotAuthenticated,
    NotFound,
    RateLimited,
    ScopeExceeded,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from broker.identity.scope import INVALID_DETAILS

PROBLEM: Final = "application/problem+json"
JSON: Final = "application/json"
ALGORITHMS: Final = ("EdDSA", "Ed25519", "ES256")
"""Signature algorithms that proofs may use, as metadata and challenges name them."""

UNSUPPORTED_GRANT: Final = "unsupported_grant_type"
"""``what`` of the refusal of a grant type: the error code of the OAuth answer (RFC 6749 section 5.2)."""
INVALID_TARGET: Final = "invalid_target"
"""``what`` of the refusal of a ``resource`` or ``audience``: the OAuth error (RFC 8693 section 2.2.2)."""

_OWN_CODES: Final = (INVALID_DETAILS, UNSUPPORTED_GRANT, INVALID_TARGET)
_TITLES: Final[dict[int, str]] = {
    400: "The request cannot be parsed",
    401: "Who is asking is not established",
    403: "Not allowed",
    404: "Not found, or not visible",
    405: "Not with this method",
    409: "The request contradicts what is recorded",
    413: "Too large",
    415: "Not the media type of this route",
    422: "A field is not valid",
    429: "Too many requests",
    500: "A fault of the server",
    503: "A part that is needed does not answer",
}
_FROM_HTTP: Final[dict[int, type[BrokerError]]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: TooLarge,
    414: TooLarge,
    415: UnsupportedMediaType,
    431: TooLarge,
}
_NOT_IN_DESCRIPTION: Final = re.compile(r'[^\x20-\x7e]|["\\]')
_OAUTH_CODES: Final[dict[str, str]] = {
    "invalid_grant": "invalid_grant",
    "invalid_subject_token": "invalid_request",
    "unauthenticated": "invalid_client",
    "invalid_token": "invalid_token",
    "use_dpop_nonce": "use_dpop_nonce",
    "malformed": "invalid_request",
    "invalid": "invalid_request",
    "conflict": "invalid_request",
    "too_large": "invalid_request",
    "unsupported_media_type": "invalid_request",
    "rate_limited": "temporarily_unavailable",
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer that says no: status, headers and the members of its body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Json
    media_type: str = PROBLEM

    def as_response(self) -> Response:
        """The answer as WSGI knows it."""
        text = json.dumps(self.body, allow_nan=False)
        return Response(text, status=self.status, headers=self.headers, content_type=self.media_type)


def error_of(exc: Exception) -> BrokerError:
    """Any exception as one of ours: the framework's by their status, everything else as a bug."""
    if isinstance(exc, ConfigurationError | InternalError):
        # What it says is for the log, not for the caller.
        return InternalError("an internal error")
    if isinstance(exc, BrokerError):
        return exc
    if isinstance(exc, HTTPException) and exc.code is not None and 400 <= exc.code < 500:
        kind = _FROM_HTTP.get(exc.code, MalformedRequest)
        return kind(_TITLES[HTTP_STATUS[kind.code]].lower())
    return InternalError("an internal error")


def problem_of(error: BrokerError, *, request_id: str, metadata_url: str) -> Refusal:
    """The problem document of an error.

    Args:
        request_id: The id under which the log has this request.
        metadata_url: Where a client finds out how to authenticate (RFC 9728).
    """
    status = HTTP_STATUS[error.code]
    body = {
        "type": f"urn:model-access-broker:problem:{error.code}",
        "title": _TITLES[status],
        "status": status,
        "code": error.code,
        "request_id": request_id,
        **_members(error),
    }
    headers = _headers(error, status)
    challenge = _challenge(error, status, metadata_url)
    if challenge:
        headers["WWW-Authenticate"] = challenge
    return Refusal(status=status, headers=headers, body=body)


def oauth_problem_of(
    error: BrokerError, *, request_id: str, metadata_url: str, token_endpoint: bool
) -> Refusal:
    """The error in OAuth's own form. ``code`` is ours, so that our client raises the exact class.

    Args:
        request_id: As for :func:`problem_of`.
        metadata_url: As for :func:`problem_of`.
        token_endpoint: There a proof that does not hold is 400 (RFC 9449 section 5); at the other
            endpoints, which take an access token, it is 401 like everywhere.
    """
    status = HTTP_STATUS[error.code]
    if status == 422 or (token_endpoint and isinstance(error, InvalidProof | InvalidToken)):
        status = 400
    members = _members(error)
    described = str(members.pop("detail"))
    if error.what in _OWN_CODES and error.why:
        described = error.why
    body = {
        "error": _oauth_code(error),
        "error_description": _NOT_IN_DESCRIPTION.sub("'", described),
        "code": error.code,
        "request_id": request_id,
        **members,
    }
    headers = _headers(error, status)
    challenge = _challenge(error, status, metadata_url)
    if challenge:
        headers["WWW-Authenticate"] = challenge
    return Refusal(status=status, headers=headers, body=body, media_type=JSON)


def _oauth_code(error: BrokerError) -> str:
    if error.what in _OWN_CODES:
        return error.what
    if error.code in _OAUTH_CODES:
        return _OAUTH_CODES[error.code]
    if isinstance(error, InvalidProof):
        return "invalid_dpop_proof"
    if isinstance(error, Denied):
        return "access_denied"
    return "temporarily_unavailable" if isinstance(error, Unavailable) else "server_error"


def _members(error: BrokerError) -> dict[str, Any]:
    # Which row or key was found changed is for the log and its alarm, not for whoever is asking (I11).
    why = None if error.code == IntegrityFailure.code else error.why
    found: dict[str, Any] = {"detail": error.what, "why": why, "next": error.next}
    if isinstance(error, Denied):
        found["policies"] = list(error.policies)
    if isinstance(error, RateLimited):
        found["retry_after"] = error.retry_after
    return drop_absent(found)


def _headers(error: BrokerError, status: int) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.retry_after)
    elif status == 503:
        headers["Retry-After"] = "1"
    if isinstance(error, NonceRequired) and error.nonce:
        headers["DPoP-Nonce"] = error.nonce
    return headers


def _challenge(error: BrokerError, status: int, metadata_url: str) -> str | None:
    """``WWW-Authenticate``. Who sent no credentials at all is not told what was wrong with them."""
    if status != 401 and not isinstance(error, ScopeExceeded):
        return None
    parts = [f'algs="{" ".join(ALGORITHMS)}"', f'resource_metadata="{metadata_url}"']
    code = _challenge_code(error)
    if code:
        parts.insert(0, f'error="{code}"')
    return "DPoP " + ", ".join(parts)


def _challenge_code(error: BrokerError) -> str | None:
    if isinstance(error, NonceRequired | InvalidToken | ScopeExceeded):
        return error.code
    if isinstance(error, InvalidProof):
        return "invalid_dpop_proof"
    return None if type(error) is NotAuthenticated else "invalid_token"
