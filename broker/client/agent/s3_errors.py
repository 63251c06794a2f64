"""How the S3 endpoint says no: a status and a code that S3 clients know, and our reason as its message.

Clients repeat a request that got a 5xx, for minutes some of them. So only what may be better the next time
is one: a budget that is used up is not.

**Source**: Amazon S3 API Reference, *Error Responses*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.client.agent.http import Answer
from broker.client.agent.s3_xml import XML_TYPE, error_document
from broker.errors import (
    ApprovalNeeded,
    BrokerError,
    Denied,
    IntegrityFailure,
    InvalidRequest,
    MalformedRequest,
    NotAuthenticated,
    NotFound,
    OverBudget,
    RateLimited,
    TooLarge,
    Unavailable,
)


class S3Refusal(BrokerError):
    """A refusal that the S3 API itself defines. Never leaves the agent.

    Args:
        status: Of the answer.
        s3_code: As the S3 API spells it.
        headers: More headers of the answer.
    """

    code = "invalid"

    def __init__(
        self,
        what: str,
        *,
        status: int,
        s3_code: str,
        headers: Sequence[tuple[str, str]] = (),
        why: str | None = None,
        next: str | None = None,
    ) -> None:
        super().__init__(what, why=why, next=next)
        self.headers = headers
        self.status = status
        self.s3_code = s3_code


_KINDS: Final[tuple[tuple[type[BrokerError], int, str], ...]] = (
    (RateLimited, 503, "SlowDown"),
    (Denied, 403, "AccessDenied"),
    (ApprovalNeeded, 403, "AccessDenied"),
    (OverBudget, 403, "AccessDenied"),
    (NotAuthenticated, 403, "AccessDenied"),
    (NotFound, 404, "NoSuchKey"),
    (Unavailable, 503, "ServiceUnavailable"),
    (IntegrityFailure, 500, "InternalError"),
    (InvalidRequest, 400, "InvalidArgument"),
    (MalformedRequest, 400, "InvalidRequest"),
    (TooLarge, 400, "InvalidRequest"),
)
"""Kind of error -> status and code; the first that fits."""


def refuse(error: BrokerError) -> Answer:
    """The S3 answer to an error: what, why and next are its message."""
    status, code = _find(error)
    message = "; ".join(part for part in (error.what, error.why, error.next) if part)
    headers = [("Content-Type", XML_TYPE)]
    if isinstance(error, S3Refusal):
        headers.extend(error.headers)
    if isinstance(error, RateLimited):
        headers.append(("Retry-After", str(error.retry_after)))
    return Answer(status=status, headers=headers, body=error_document(code, message))


def _find(error: BrokerError) -> tuple[int, str]:
    if isinstance(error, S3Refusal):
        return error.status, error.s3_code
    return next(
        ((status, code) for kind, status, code in _KINDS if isinstance(error, kind)), (500, "InternalError")
    )


def refuse_write() -> S3Refusal:
    """That nothing is written through this endpoint."""
    return S3Refusal(
        "this endpoint is read-only",
        status=403,
        s3_code="AccessDenied",
        next="broker put PATH COLLECTION/NAME@VERSION",
    )


def refuse_bucket(name: str) -> S3Refusal:
    """That there is no such bucket, or none that the caller may see: the two are the same answer."""
    return S3Refusal(
        f"there is no collection {name[:64]!a}, or it is not visible to you",
        status=404,
        s3_code="NoSuchBucket",
        next="broker ls",
    )


def refuse_key() -> NotFound:
    """That a key names no file."""
    return NotFound(
        "there is no such file",
        why="a key is NAME/PATH for the newest version, or NAME@VERSION/PATH",
        next="broker ls COLLECTION",
    )
