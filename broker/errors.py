"""The one exception tree, and the three tables that translate it.

Inside the broker a failure is a :class:`BrokerError` with a stable ``code``. Outside, the code is
all that matters: ``HTTP_STATUS`` gives the status of the problem document, ``EXIT_CODE`` the exit
status of a command, ``ERROR_CLASS`` the class that the client raises again. The tables are complete
by test.
"""

from __future__ import annotations

from typing import ClassVar, Final


class BrokerError(Exception):
    """Base of every failure that this project raises on purpose.

    Args:
        what: One line that says what failed. It never holds a secret, a token, a URL with a
            signature, or a value that an unauthenticated caller sent.
        why: The reason, as far as the reader may know it.
        next: What the reader can do about it, ideally a command.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, what: str, *, why: str | None = None, next: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next = next


class InternalError(BrokerError):
    """A bug. The caller sees an id; the log has the traceback under the same id."""

    code = "internal"


# -- 2: usage and configuration ---------------------------------------------------------------


class UsageError(BrokerError):
    """The command or call was put together wrongly; nothing was sent or changed."""

    code = "usage"


class ConfigurationError(BrokerError):
    """A setting, profile or file is missing or wrong; the process refuses to go on."""

    code = "configuration"


class MalformedRequest(BrokerError):
    """The request cannot be parsed (HTTP 400)."""

    code = "malformed"


class InvalidRequest(BrokerError):
    """The request parses, but a field is unknown, missing or out of range (HTTP 422)."""

    code = "invalid"


class Conflict(BrokerError):
    """The request contradicts what is already recorded (HTTP 409)."""

    code = "conflict"


class TooLarge(BrokerError):
    """A body, header, name or list is larger than its limit (HTTP 413)."""

    code = "too_large"


class UnsupportedMediaType(BrokerError):
    """The body is not of the type that the route takes (HTTP 415)."""

    code = "unsupported_media_type"


class MethodNotAllowed(BrokerError):
    """The path exists, but not for this method (HTTP 405)."""

    code = "method_not_allowed"


# -- 3: denied ----------------------------------------------------------------------------------


class Denied(BrokerError):
    """Policy, or the token's scope, says no.

    Args:
        policies: ``@id`` of each policy that determined the answer; may be empty (nothing permits).
    """

    code = "denied"

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        next: str | None = None,
        policies: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, why=why, next=next)
        self.policies = policies


class ScopeExceeded(Denied):
    """The token's ``authorization_details`` do not cover the request (RFC 6750 insufficient_scope)."""

    code = "insufficient_scope"


class GrantRevoked(Denied):
    """The grant, or something that it rests on, was revoked."""

    code = "revoked"


# -- 4: not authenticated ---------------------------------------------------------------------


class NotAuthenticated(BrokerError):
    """Who is asking is not established (HTTP 401)."""

    code = "unauthenticated"


class InvalidToken(NotAuthenticated):
    """The access token is malformed, expired, revoked or unknown (RFC 6750 section 3.1)."""

    code = "invalid_token"


class InvalidProof(NotAuthenticated):
    """The DPoP proof does not hold (RFC 9449 section 7.1, ``invalid_dpop_proof``)."""

    code = "invalid_dpop_proof"


class ReplayedProof(InvalidProof):
    """This proof was used before (RFC 9449 section 11.1)."""

    code = "replayed_proof"


class ClockSkew(InvalidProof):
    """The proof's time is outside the window; the message names the difference."""

    code = "clock_skew"


class NonceRequired(InvalidProof):
    """The server wants its nonce in the proof (RFC 9449 section 8, ``use_dpop_nonce``).

    Args:
        nonce: The nonce to use, also sent as the ``DPoP-Nonce`` header.
    """

    code = "use_dpop_nonce"

    def __init__(self, what: str, *, nonce: str = "", why: str | None = None, next: str | None = None):
        super().__init__(what, why=why, next=next)
        self.nonce = nonce


class EnrolmentRefused(NotAuthenticated):
    """The enrolment code is wrong, used, expired or dead."""

    code = "enrolment_refused"


class InvalidGrant(NotAuthenticated):
    """The assertion or subject token is not acceptable (RFC 6749 section 5.2)."""

    code = "invalid_grant"


class InvalidSubjectToken(NotAuthenticated):
    """The token that is to be exchanged does not hold (RFC 8693 section 2.2.2, ``invalid_request``)."""

    code = "invalid_subject_token"


# -- 5: not found -------------------------------------------------------------------------------


class NotFound(BrokerError):
    """No such thing, or not visible to the caller: the two are the same answer."""

    code = "not_found"


# -- 6: integrity ---------------------------------------------------------------------------------


class IntegrityFailure(BrokerError):
    """A digest, signature, authentication tag, proof or MAC does not hold. Never retried."""

    code = "integrity"


class RollbackDetected(IntegrityFailure):
    """The log is smaller than, or differs from, a log that was already seen."""

    code = "rollback"


# -- 7: waiting -------------------------------------------------------------------------------------


class ApprovalNeeded(BrokerError):
    """Policy allows this only after somebody else approves it."""

    code = "needs_approval"


# -- 8: limits --------------------------------------------------------------------------------------


class RateLimited(BrokerError):
    """Too many requests; ``retry_after`` is in seconds (HTTP 429)."""

    code = "rate_limited"

    def __init__(
        self, what: str, *, retry_after: int = 1, why: str | None = None, next: str | None = None
    ) -> None:
        super().__init__(what, why=why, next=next)
        self.retry_after = retry_after


class OverBudget(BrokerError):
    """A byte limit of the token or a budget has no room for this request."""

    code = "over_budget"


# -- 9: unavailable ---------------------------------------------------------------------------------


class Unavailable(BrokerError):
    """A part that is needed does not answer; trying again later may help (HTTP 503)."""

    code = "unavailable"


class LedgerUnavailable(Unavailable):
    """The record cannot be written, so nothing is released (I01)."""

    code = "ledger_unavailable"


class StoreUnavailable(Unavailable):
    """The object store does not answer or refuses the broker."""

    code = "store_unavailable"


class Unreachable(Unavailable):
    """The client cannot reach the broker or the store after its retries."""

    code = "unreachable"


# -- 10: partly done ----------------------------------------------------------------------------------


class PartlyDone(BrokerError):
    """Some of the work is done and kept; the same command again resumes."""

    code = "partly_done"


class DiskFull(PartlyDone):
    """The local disk has no room; what was verified is kept."""

    code = "disk_full"


class Interrupted(BrokerError):
    """The user interrupted the command; what was verified is kept."""

    code = "interrupted"


def _tree(root: type[BrokerError]) -> list[type[BrokerError]]:
    found = [root]
    for child in root.__subclasses__():
        found.extend(_tree(child))
    return found


HTTP_STATUS: Final[dict[str, int]] = {
    "internal": 500,
    "usage": 400,
    "configuration": 500,
    "malformed": 400,
    "invalid": 422,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "method_not_allowed": 405,
    "denied": 403,
    "insufficient_scope": 403,
    "revoked": 403,
    "unauthenticated": 401,
    "invalid_token": 401,
    "invalid_dpop_proof": 401,
    "replayed_proof": 401,
    "clock_skew": 401,
    "use_dpop_nonce": 401,
    "enrolment_refused": 401,
    "invalid_grant": 400,
    "invalid_subject_token": 400,
    "not_found": 404,
    "integrity": 403,
    "rollback": 503,
    "needs_approval": 403,
    "rate_limited": 429,
    "over_budget": 403,
    "unavailable": 503,
    "ledger_unavailable": 503,
    "store_unavailable": 503,
    "unreachable": 503,
    "partly_done": 500,
    "disk_full": 500,
    "interrupted": 500,
}
"""Stable code -> status of the problem document (RFC 9457)."""

EXIT_CODE: Final[dict[str, int]] = {
    "internal": 1,
    "usage": 2,
    "configuration": 2,
    "malformed": 2,
    "invalid": 2,
    "conflict": 2,
    "too_large": 2,
    "unsupported_media_type": 2,
    "method_not_allowed": 2,
    "denied": 3,
    "insufficient_scope": 3,
    "revoked": 3,
    "unauthenticated": 4,
    "invalid_token": 4,
    "invalid_dpop_proof": 4,
    "replayed_proof": 4,
    "clock_skew": 4,
    "use_dpop_nonce": 4,
    "enrolment_refused": 4,
    "invalid_grant": 4,
    "invalid_subject_token": 4,
    "not_found": 5,
    "integrity": 6,
    "rollback": 6,
    "needs_approval": 7,
    "rate_limited": 8,
    "over_budget": 8,
    "unavailable": 9,
    "ledger_unavailable": 9,
    "store_unavailable": 9,
    "unreachable": 9,
    "partly_done": 10,
    "disk_full": 10,
    "interrupted": 130,
}
"""Stable code -> exit status of the command line."""

ERROR_CLASS: Final[dict[str, type[BrokerError]]] = {cls.code: cls for cls in _tree(BrokerError)}
"""Stable code -> class that the client raises for a problem document with that code."""

_STATUS_FALLBACK: Final[dict[int, type[BrokerError]]] = {
    400: MalformedRequest,
    401: NotAuthenticated,
    403: Denied,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: InvalidRequest,
    429: RateLimited,
    500: InternalError,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def find_error_class(code: str, status: int) -> type[BrokerError]:
    """The class for a problem document: by its code, else by its status, else InternalError."""
    return ERROR_CLASS.get(code) or _STATUS_FALLBACK.get(status, InternalError)
