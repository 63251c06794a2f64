"""Typed access to the claims of a JWT, and the one translation of why it was refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from broker import limits
from broker.canonical import MAX_SAFE_INTEGER
from broker.errors import BrokerError, IntegrityFailure, InvalidRequest, MalformedRequest

_PRINTABLE: Final = re.compile(r"[!-~]+")


@contextmanager
def refuse_as(refusal: type[BrokerError], what: str) -> Iterator[None]:
    """Everything in the block that is malformed, invalid or not signed becomes a ``refusal``.

    The reason goes along as ``why``; it never holds the object itself. Refusals that the block
    raises on purpose pass through unchanged.
    """
    try:
        yield
    except (MalformedRequest, InvalidRequest, IntegrityFailure) as exc:
        raise refusal(what, why=exc.what) from exc


def check_members(claims: Mapping[str, Any], expected: Collection[str]) -> None:
    """The claims are exactly the expected ones.

    Raises:
        MalformedRequest: One is missing, or there is another.
    """
    if set(claims) != set(expected):
        raise MalformedRequest(f"the claims are not exactly {', '.join(sorted(expected))}")


def get_text(claims: Mapping[str, Any], name: str, *, most: int, least: int = 1) -> str:
    """A claim that is text of ``least`` to ``most`` printable ASCII characters without spaces.

    Raises:
        MalformedRequest: It is missing or something else.
    """
    value = claims.get(name)
    if not isinstance(value, str) or not least <= len(value) <= most or not _PRINTABLE.fullmatch(value):
        raise MalformedRequest(f"the claim {name} is not text of {least} to {most} printable characters")
    return value


def get_jti(claims: Mapping[str, Any]) -> str:
    """The claim ``jti``: ``limits.MIN_JTI`` to ``limits.MAX_JTI`` printable characters.

    Raises:
        MalformedRequest: It is missing or something else.
    """
    return get_text(claims, "jti", least=limits.MIN_JTI, most=limits.MAX_JTI)


def get_seconds(claims: Mapping[str, Any], name: str) -> int:
    """A NumericDate in whole seconds since 1970.

    Raises:
        MalformedRequest: It is missing, a fraction, a boolean or out of range.

    Source: RFC 7519 section 2 (fractions are allowed there; nothing that we accept has them).
    """
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= MAX_SAFE_INTEGER // 1000:
        raise MalformedRequest(f"the claim {name} is not a time in whole seconds")
    return value


def check_times(*, iat: int, exp: int, now: int, ttl: int) -> None:
    """Issued (give or take the clock's window), not expired, and never valid for longer than ``ttl``.

    Args:
        iat: NumericDate, seconds.
        exp: NumericDate, seconds; the object is dead from this second on.
        now: Milliseconds since 1970.
        ttl: Seconds from ``iat`` to ``exp`` at most.

    Raises:
        InvalidRequest: One of the three does not hold.
    """
    if exp * 1000 <= now:
        raise InvalidRequest("it has expired")
    if iat * 1000 > now + limits.PROOF_WINDOW * 1000:
        raise InvalidRequest("it was issued in the future")
    if not 0 < exp - iat <= ttl:
        raise InvalidRequest(f"it is valid for longer than {ttl} s, or for no time at all")
