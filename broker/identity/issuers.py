"""Workload identities: what a token of a foreign issuer says, if it holds now and was made for us.

Everything that a token claims is the word of its issuer, and of that issuer alone: who it becomes here
is for the mapping of the same issuer to say (:mod:`broker.identity.mapping`). Each kind of issuer has its
own claims, and they must agree with its ``sub``; a mapping can name them as if they were top-level:

============== ==========================================================================================
``oidc``       nothing of its own
``kubernetes`` ``namespace``, ``service_account``, ``service_account_uid``, ``pod``, ``pod_uid``, ``node``
``github``     its claims are top-level already; ``repository_id`` and ``repository_owner_id`` are decimal
``spiffe``     ``trust_domain``, ``path`` (without the slash in front)
============== ==========================================================================================

Every refusal is an :class:`~broker.errors.InvalidRequest` whose ``what`` is ``INVALID_SUBJECT``, which is
the OAuth error of a subject token that is not acceptable; ``why`` never repeats the token.

**Source**: RFC 7519 section 4, RFC 8693 section 2.2.2, RFC 8725; Kubernetes "Managing Service Accounts"
(bound tokens); GitHub "OpenID Connect reference"; SPIFFE-ID section 2, SPIFFE JWT-SVID sections 2 and 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from broker import jwks, limits
from broker.canonical import Json
from broker.errors import InvalidRequest, MalformedRequest
from broker.identity.claims import get_seconds, refuse_as
from broker.model import ACTIVE, Issuer

INVALID_SUBJECT: Final = "invalid_request"
"""``what`` of every refusal here: the error code of the OAuth answer (RFC 8693 section 2.2.2)."""

KUBERNETES_CLAIMS: Final = (
    "namespace",
    "service_account",
    "service_account_uid",
    "pod",
    "pod_uid",
    "node",
)
SPIFFE_CLAIMS: Final = ("trust_domain", "path")

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_SVID_HEADER: Final = frozenset({"alg", "kid", "typ"})
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SPIFFE_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")
_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,19}")
_GITHUB_SUBJECT: Final = re.compile(
    r"repo:(?P<owner>[^/:@]+)(?:@(?P<owner_id>[0-9]+))?/(?P<name>[^/:@]+)(?:@(?P<id>[0-9]+))?(?::(?P<rest>.+))?"
)
_PULL_REQUEST: Final = "pull_request"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Who a foreign token that holds speaks of.

    Attributes:
        issuer: The issuer's URL: ``iss``, or the trust domain's ``spiffe://...``.
        sub: The claim ``sub``.
        jti: The claim ``jti``, None when there is none.
        expires_ms: Dead from then on, milliseconds since 1970.
        claims: All its claims, and the flattened ones of its kind.
        digest: ``sha256:<hex>`` of what was signed, the same for every spelling of the signature.
        pull_request: For GitHub: whether the run is of a pull request, of which strangers choose the code.
    """

    issuer: str
    sub: str
    jti: str | None
    expires_ms: int
    claims: Json = field(repr=False)
    digest: str
    pull_request: bool = False


def parse_issuer_name(text: str) -> str:
    """The name of an issuer here: ``[a-z0-9][a-z0-9-]{0,31}``.

    Raises:
        InvalidRequest: It is something else.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise InvalidRequest(
            "the name of an issuer is not valid", why="lower-case letters, digits and '-'; at most 32"
        )
    return text


def parse_issuer_id(text: str, *, kind: str) -> str:
    """What ``iss`` must be: an https URL, or ``spiffe://`` and a trust domain for kind ``spiffe``.

    Raises:
        InvalidRequest: It is something else.
    """
    if kind != "spiffe":
        return jwks.parse_issuer_url(text)
    domain = text.removeprefix("spiffe://") if isinstance(text, str) else ""
    if not _TRUST_DOMAIN.fullmatch(domain) or domain == text:
        raise InvalidRequest(
            "the trust domain is not valid", why="spiffe:// and lower-case letters, digits, '.', '_' and '-'"
        )
    return text


def find_issuer_key(peeked: jwks.ForeignHeader, issuers: Iterable[Issuer]) -> Issuer:
    """The one active issuer that the token says it is from.

    By its exact ``iss``, or else, among the SPIFFE ones, by the trust domain of its ``sub``. A token that
    names the issuer wrongly fails on that issuer's keys, so nothing is believed here.

    Raises:
        InvalidRequest: No such issuer, or more than one.
    """
    active = [issuer for issuer in issuers if issuer.status == ACTIVE]
    named = [row for row in active if row.kind != "spiffe" and row.url == peeked.iss]
    domain = _find_trust_domain(peeked.sub)
    found = named or [row for row in active if row.kind == "spiffe" and row.url == domain]
    if len(found) != 1:
        raise refuse_subject("no issuer of this name is known here, or more than one")
    return found[0]


def verify_subject(text: str, *, issuer: Issuer, keys: Iterable[jwks.ForeignKey], now: int) -> Subject:
    """Who the token speaks of: signed by this issuer, for this broker only, and alive now.

    1. One of the keys signed it, with an algorithm of that key.
    2. ``iss`` is exactly the issuer's (for SPIFFE the trust domain of ``sub`` is).
    3. ``aud`` is exactly one value, the issuer's ``audience``.
    4. ``exp`` is there, not past, and at most ``limits.MAX_SUBJECT_TTL`` away; ``iat`` and ``nbf``, if
       there, are not in the future (give or take ``limits.PROOF_WINDOW``).
    5. The claims of its kind are whole and agree with each other.

    Args:
        text: The compact token.
        issuer: Whose token it says it is.
        keys: That issuer's keys.
        now: Milliseconds since 1970.

    Raises:
        InvalidRequest: It does not hold; ``what`` is ``INVALID_SUBJECT``.
    """
    with refuse_as(InvalidRequest, INVALID_SUBJECT):
        peeked = jwks.peek_foreign(text)
        claims = jwks.verify_foreign(text, jwks.find_foreign_key(peeked, keys))  # 1
        sub = peeked.sub
        if sub is None:
            raise MalformedRequest("it has no sub")
        _check_issuer(issuer, peeked)  # 2
        _check_audience(claims, issuer.audience)  # 3
        expires = _check_times(claims, now)  # 4
        flat, pull_request = _kind_claims(issuer.kind, claims, sub)  # 5
        return Subject(
            issuer=issuer.url,
            sub=sub,
            jti=_find_jti(claims),
            expires_ms=expires,
            claims=flat,
            digest=jwks.signing_digest(text),
            pull_request=pull_request,
        )


def refuse_subject(why: str) -> InvalidRequest:
    """The refusal of a foreign token, or of what it says."""
    return InvalidRequest(INVALID_SUBJECT, why=why)


def _check_issuer(issuer: Issuer, peeked: jwks.ForeignHeader) -> None:
    if issuer.kind == "spiffe":
        # A JWT-SVID needs no iss, and its header has nothing but these three.
        if peeked.members - _SVID_HEADER:
            raise MalformedRequest("the header of a JWT-SVID has a member other than alg, kid and typ")
        if _find_trust_domain(peeked.sub) != issuer.url:
            raise MalformedRequest("its sub is not a SPIFFE ID of this trust domain")
    elif peeked.iss != issuer.url:
        raise MalformedRequest("it is of another issuer")


def _check_audience(claims: Json, audience: str) -> None:
    # With a second audience, that one could present the token here.
    value = claims.get("aud")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise MalformedRequest("it is not for exactly one audience")
    if value != audience:
        raise MalformedRequest("it is for another audience")


def _check_times(claims: Json, now: int) -> int:
    """The token's end in milliseconds."""
    expires = get_seconds(claims, "exp") * 1000
    if expires <= now:
        raise MalformedRequest("it has expired")
    if expires > now + limits.MAX_SUBJECT_TTL * 1000:
        raise MalformedRequest(f"it is good for more than {limits.MAX_SUBJECT_TTL} s from now")
    for name in ("iat", "nbf"):
        if name in claims and get_seconds(claims, name) * 1000 > now + limits.PROOF_WINDOW * 1000:
            raise MalformedRequest(f"its {name} is in the future")
    return expires


def _find_jti(claims: Json) -> str | None:
    return _get_claim(claims, "jti") if "jti" in claims else None


def _get_claim(claims: Json, name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= limits.MAX_CLAIM or not value.isprintable():
        raise MalformedRequest(f"its claim {name} is not printable text")
    return value


def _kind_claims(kind: str, claims: Json, sub: str) -> tuple[Json, bool]:
    """All claims with the flattened ones of the kind, and whether it is a pull request's."""
    if kind == "kubernetes":
        return _flatten(claims, KUBERNETES_CLAIMS, _kubernetes_claims(claims, sub)), False
    if kind == "spiffe":
        domain, _, path = sub.removeprefix("spiffe://").partition("/")
        return _flatten(claims, SPIFFE_CLAIMS, {"trust_domain": domain, "path": path}), False
    if kind == "github":
        return dict(claims), _check_github(claims, sub)
    return dict(claims), False


def _flatten(claims: Json, names: Iterable[str], flat: dict[str, str]) -> Json:
    # A top-level claim of the same name must not show through where the kind's own is absent.
    return {name: value for name, value in claims.items() if name not in names} | flat


# -- kubernetes ---------------------------------------------------------------------------------------------


def _kubernetes_claims(claims: Json, sub: str) -> dict[str, str]:
    """The names and ids of a bound service-account token, which agree with its ``sub``.

    Source: Kubernetes, "Managing Service Accounts", schema for service account private claims.
    """
    nested = _get_object(claims, "kubernetes.io")
    account = _get_object(nested, "serviceaccount")
    flat = {
        "namespace": _get_claim(nested, "namespace"),
        "service_account": _get_claim(account, "name"),
        "service_account_uid": _get_claim(account, "uid"),
    }
    # Neither name can hold a colon, so equal text means equal names.
    if ":" in flat["namespace"] + flat["service_account"]:
        raise MalformedRequest("its namespace or service account is not a name")
    if sub != f"system:serviceaccount:{flat['namespace']}:{flat['service_account']}":
        raise MalformedRequest("its sub is not the service account that its claims name")
    if "pod" in nested:
        pod = _get_object(nested, "pod")
        flat |= {"pod": _get_claim(pod, "name"), "pod_uid": _get_claim(pod, "uid")}
    if "node" in nested:
        flat["node"] = _get_claim(_get_object(nested, "node"), "name")
    return flat


def _get_object(claims: Json, name: str) -> Json:
    value = claims.get(name)
    if not isinstance(value, dict):
        raise MalformedRequest(f"its claim {name} is not an object")
    return value


# -- github -------------------------------------------------------------------------------------------------


def _check_github(claims: Json, sub: str) -> bool:
    """The repository's names and ids agree with ``sub``; whether the run is of a pull request.

    ``sub`` names the repository as ``repo:owner/name`` or, with ids that are never used again, as
    ``repo:owner@id/name@id``; an owner may also have chosen a template that begins with another claim.

    Source: GitHub, "OpenID Connect reference" (token claims, immutable subject claims).
    """
    repository, event = _get_claim(claims, "repository"), _get_claim(claims, "event_name")
    ids = [_get_claim(claims, name) for name in ("repository_owner_id", "repository_id")]
    if not all(_DECIMAL.fullmatch(number) for number in ids):
        raise MalformedRequest("the id of its repository or of the owner is not a decimal number")
    rest = ""
    if sub.startswith("repo:"):
        found = _GITHUB_SUBJECT.fullmatch(sub)
        if found is None or f"{found['owner']}/{found['name']}" != repository:
            raise MalformedRequest("its sub is not of the repository that its claims name")
        stated = [found["owner_id"], found["id"]]
        if stated not in ([None, None], ids):
            raise MalformedRequest("its sub has other ids than its claims")
        rest = found["rest"] or ""
    return (
        event.startswith(_PULL_REQUEST)
        or rest.split(":")[0] == _PULL_REQUEST
        or str(claims.get("ref", "")).startswith("refs/pull/")
        or bool(claims.get("head_ref"))
    )


# -- spiffe -------------------------------------------------------------------------------------------------


def _find_trust_domain(sub: str | None) -> str | None:
    """``spiffe://domain`` of a workload's SPIFFE ID, or None when the text is none.

    Strict: no port, query, fragment, escape, empty or dot segment, no slash at the end, and a path.

    Source: SPIFFE-ID sections 2.1 to 2.3.
    """
    if sub is None or not sub.startswith("spiffe://") or len(sub) > limits.MAX_SPIFFE_ID:
        return None
    domain, slash, path = sub.removeprefix("spiffe://").partition("/")
    segments = path.split("/")
    if not slash or not _TRUST_DOMAIN.fullmatch(domain):
        return None
    if not all(_SPIFFE_SEGMENT.fullmatch(segment) and segment not in (".", "..") for segment in segments):
        return None
    return f"spiffe://{domain}"
