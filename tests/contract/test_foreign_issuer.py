"""The port IssuerKeys and the rules of identities against a real issuer: discovery, rotation, outage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from broker import jwks, limits
from broker.discovery import IssuerKeys
from broker.errors import InvalidRequest, Unavailable
from broker.identity import issuers, mapping
from broker.model import ACTIVE, Issuer
from tests import oidc
from tests.oidc import OidcIssuer, oidc_issuer

__all__ = ["oidc_issuer"]

AUDIENCE = "https://broker.example"
RULES = {
    "schema": mapping.SCHEMA,
    "rules": [{"name": "jobs", "match": {"sub": "workload"}, "principal": "{sub}"}],
}


def now(after: float = 0) -> int:
    """Milliseconds, ``after`` seconds from now: the issuer's own clock is the machine's."""
    return time.time_ns() // 1_000_000 + int(after * 1000)


def row(issuer: OidcIssuer, **members: str) -> Issuer:
    plain = {"name": "ci", "url": issuer.url, "kind": "oidc", "audience": AUDIENCE, "mapping": "{}"}
    return Issuer(**{**plain, **members}, status=ACTIVE, created=0)  # type: ignore[arg-type]


def verify(token: str, issuer: Issuer, source: IssuerKeys, at: int) -> issuers.Subject:
    peeked = jwks.peek_foreign(token)
    assert issuers.find_issuer_key(peeked, [issuer]) is issuer
    keys = source.keys(issuer, peeked.kid, now=at)
    return issuers.verify_subject(token, issuer=issuer, keys=keys, now=at)


@pytest.fixture
def own_issuer() -> Iterator[OidcIssuer]:
    with oidc.running() as issuer:
        yield issuer


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "ES384", "EdDSA"])
def test_an_identity_through_discovery(oidc_issuer: OidcIssuer, alg: str):
    found = verify(oidc_issuer.token(AUDIENCE, alg=alg), row(oidc_issuer), IssuerKeys(), now())
    assert (found.issuer, found.sub) == (oidc_issuer.url, "workload")
    rules = mapping.parse_mapping(RULES, kind="oidc")
    assert mapping.apply_mapping(rules, found, issuer_name="ci").principal == "workload:ci/workload"


def test_its_keys_by_address_and_by_hand(oidc_issuer: OidcIssuer):
    token = oidc_issuer.token(AUDIENCE)
    by_address = row(oidc_issuer, jwks_uri=oidc_issuer.jwks_uri)
    by_hand = row(oidc_issuer, jwks=json.dumps(oidc_issuer.jwks()))
    for issuer in (by_address, by_hand):
        assert verify(token, issuer, IssuerKeys(), now()).sub == "workload"


def test_an_access_token_of_the_issuer_is_no_identity(oidc_issuer: OidcIssuer):
    with pytest.raises(Exception, match="typ is JWT") as caught:
        jwks.peek_foreign(oidc_issuer.token(AUDIENCE, typ="at+jwt"))
    assert oidc_issuer.url not in str(caught.value)
    assert verify(oidc_issuer.token(AUDIENCE, typ=""), row(oidc_issuer), IssuerKeys(), now())


@pytest.mark.parametrize("audience", ["https://other.example", AUDIENCE + "/"])
def test_a_token_for_somebody_else(oidc_issuer: OidcIssuer, audience: str):
    with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT):
        verify(oidc_issuer.token(audience), row(oidc_issuer), IssuerKeys(), now())


def test_discovery_is_of_exactly_this_issuer(oidc_issuer: OidcIssuer):
    """The same server under another spelling says that it is somebody else."""
    for url in (oidc_issuer.url + "/", oidc_issuer.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(Unavailable) as caught:
            IssuerKeys().keys(row(oidc_issuer, url=url), None, now=now())
        assert "of another issuer" in str(caught.value.why)


def test_kubernetes_claims(oidc_issuer: OidcIssuer):
    claims = {
        "sub": "system:serviceaccount:ml:trainer",
        "kubernetes.io": {"namespace": "ml", "serviceaccount": {"name": "trainer", "uid": "u-1"}},
    }
    found = verify(
        oidc_issuer.token(AUDIENCE, claims=claims), row(oidc_issuer, kind="kubernetes"), IssuerKeys(), now()
    )
    assert found.claims["service_account_uid"] == "u-1"


def test_rotation(own_issuer: OidcIssuer):
    source, issuer = IssuerKeys(), row(own_issuer)
    old, began = own_issuer.token(AUDIENCE), now()
    assert verify(old, issuer, source, began)
    own_issuer.rotate()
    new = own_issuer.token(AUDIENCE)
    # The new key is asked for once the cool-down is over, and the old one is gone with that.
    with pytest.raises(InvalidRequest):
        verify(new, issuer, source, began)
    later = began + limits.JWKS_COOLDOWN * 1000
    assert verify(new, issuer, source, later)
    with pytest.raises(InvalidRequest):
        verify(old, issuer, source, later)


def test_an_outage(own_issuer: OidcIssuer):
    source, issuer = IssuerKeys(), row(own_issuer)
    token, began = own_issuer.token(AUDIENCE, claims={"exp": now(7200) // 1000}), now()
    assert verify(token, issuer, source, began)
    own_issuer.stop()
    assert verify(token, issuer, source, began + (limits.JWKS_STALE - 1) * 1000)
    with pytest.raises(Unavailable, match="not to be had"):
        verify(token, issuer, source, began + limits.JWKS_STALE * 1000)
