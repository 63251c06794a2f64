"""docs/integrations/workload-identity.md: its mappings are valid, and its tokens become what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt as other_jwt
from joserfc.jwk import ECKey

from broker import jwks, limits
from broker.client.issuers import parse_map
from broker.identity import issuers, mapping
from broker.model import ACTIVE, ISSUER_KINDS, Issuer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations" / "workload-identity.md"
TEXT = PAGE.read_text()
AUDIENCE = "https://broker.example"
KEY = ECKey.generate_key("P-256")
EXAMPLES: dict[str, tuple[str, dict[str, Any], str]] = {
    kind: (rules, json.loads(claims), principal)
    for rules, kind, claims, principal in re.findall(
        r"^```toml\n(# kind: (\w+)\n.*?)^```\n+^```json\n(.*?)^```\n+^This token is `([^`]+)`",
        TEXT,
        flags=re.S | re.M,
    )
}


def verify(kind: str, claims: dict[str, Any]) -> issuers.Subject:
    use = jwks.use_for(kind)
    keys = jwks.parse_jwks({"keys": [{**KEY.as_dict(private=False), "kid": "k", "use": use}]}, use=use)
    url = claims.get("iss", "spiffe://prod.example")
    row = Issuer(
        name="x", url=url, kind=kind, audience=AUDIENCE, mapping="", status=ACTIVE, created=0
    )  # fmt: skip
    token = other_jwt.encode({"alg": "ES256", "kid": "k"}, claims, KEY)
    return issuers.verify_subject(token, issuer=row, keys=keys, now=(claims["exp"] - 60) * 1000)


def test_there_is_an_example_of_each_kind():
    assert set(EXAMPLES) == set(ISSUER_KINDS)
    assert TEXT.count("```toml") == len(EXAMPLES)


@pytest.mark.parametrize("kind", ISSUER_KINDS)
def test_the_token_becomes_what_the_page_says(kind: str):
    text, claims, principal = EXAMPLES[kind]
    rules = mapping.parse_mapping(parse_map(text.encode(), kind=kind), kind=kind)
    issuer_name = principal.removeprefix("workload:").partition("/")[0]
    found = mapping.apply_mapping(rules, verify(kind, claims), issuer_name=issuer_name)
    assert found.principal == principal
    assert found.groups


@pytest.mark.parametrize("kind", ISSUER_KINDS)
def test_every_claim_of_an_example_matters(kind: str):
    text, claims, _ = EXAMPLES[kind]
    rules = mapping.parse_mapping(parse_map(text.encode(), kind=kind), kind=kind)
    subject = verify(kind, claims)
    for name, _ in rules.rules[0].match:
        missing = {key: value for key, value in subject.claims.items() if key != name}
        with pytest.raises(Exception, match=issuers.INVALID_SUBJECT):
            mapping.apply_mapping(
                rules, issuers.Subject(**{**vars(subject), "claims": missing}), issuer_name="x"
            )


@pytest.mark.parametrize(
    ("phrase", "holds"),
    [
        ("at most 64 rules and 64 KiB", (limits.MAX_MAP_RULES, limits.MAX_MAPPING) == (64, 64 * limits.KIB)),
        ("up to 16 claims with up to 64 values", (limits.MAX_MAP_CLAIMS, limits.MAX_MAP_VALUES) == (16, 64)),
        ("keeps an issuer's keys for 10 minutes", limits.JWKS_TTL == 600),
        ("at most once in 60 seconds", limits.JWKS_COOLDOWN == 60),
        ("less than an hour ago", limits.JWKS_STALE == 3600),
        ("At most 4 requests of a process wait", limits.ISSUER_WAITERS == 4),
        ("more than 24 hours away", limits.MAX_SUBJECT_TTL == 24 * 3600),
        ("more than 60 seconds in the future", limits.PROOF_WINDOW == 60),
    ],
)
def test_the_numbers_are_the_limits(phrase: str, holds: bool):
    assert phrase in TEXT
    assert holds


def test_the_names_of_claims_are_those_of_the_code():
    for name in (*issuers.KUBERNETES_CLAIMS, *issuers.SPIFFE_CLAIMS):
        assert f"`{name}`" in TEXT
