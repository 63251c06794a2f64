"""Workload identities: the claims of each kind of issuer, and everything that makes them not hold."""

from __future__ import annotations

from typing import Any

import pytest
from joserfc import jwt as other_jwt
from joserfc.jwk import ECKey, RSAKey

from broker import jwks, limits
from broker.errors import InvalidRequest
from broker.identity import issuers
from broker.model import ACTIVE, ISSUER_KINDS, REVOKED, Issuer

NOW = 1_800_000_000_000
SECONDS = NOW // 1000
AUDIENCE = "https://broker.example"
KEY = ECKey.generate_key("P-256")
OTHER = RSAKey.generate_key(2048)
UID = "0b1d5c1e-4c8e-4f0e-9d0a-1f2e3d4c5b6a"

URLS = {
    "oidc": "https://issuer.example",
    "kubernetes": "https://kubernetes.default.svc",
    "github": "https://token.actions.githubusercontent.com",
    "spiffe": "spiffe://prod.example",
}
COMMON: dict[str, Any] = {
    "aud": [AUDIENCE],
    "exp": SECONDS + 600,
    "iat": SECONDS - 5,
    "nbf": SECONDS - 5,
    "jti": "c1b0f1d2-0000-4000-8000-000000000000",
}
CLAIMS: dict[str, dict[str, Any]] = {
    "oidc": {**COMMON, "iss": URLS["oidc"], "sub": "service-7"},
    "kubernetes": {
        **COMMON,
        "iss": URLS["kubernetes"],
        "sub": "system:serviceaccount:ml:trainer",
        "kubernetes.io": {
            "namespace": "ml",
            "serviceaccount": {"name": "trainer", "uid": UID},
            "pod": {"name": "train-0", "uid": "pod-uid"},
            "node": {"name": "gpu-1", "uid": "node-uid"},
        },
    },
    "github": {
        **COMMON,
        "iss": URLS["github"],
        "aud": AUDIENCE,
        "sub": "repo:acme/train:ref:refs/heads/main",
        "repository": "acme/train",
        "repository_owner": "acme",
        "repository_id": "456789",
        "repository_owner_id": "123456",
        "event_name": "push",
        "ref": "refs/heads/main",
        "head_ref": "",
        "job_workflow_ref": "acme/train/.github/workflows/train.yml@refs/heads/main",
    },
    "spiffe": {"aud": [AUDIENCE], "exp": SECONDS + 300, "sub": "spiffe://prod.example/ns/ml/sa/trainer"},
}


def issuer(kind: str = "oidc", **members: Any) -> Issuer:
    row = {"name": kind, "url": URLS[kind], "kind": kind, "audience": AUDIENCE, "mapping": "{}"}
    return Issuer(**{**row, "status": ACTIVE, "created": 0, **members})


def keys(kind: str = "oidc") -> tuple[jwks.ForeignKey, ...]:
    use = jwks.use_for(kind)
    listed = [{**key.as_dict(private=False), "kid": "k1", "use": use} for key in (KEY, OTHER)]
    return jwks.parse_jwks({"keys": listed}, use=use)


def sign(claims: dict[str, Any], **header: Any) -> str:
    present = {name: value for name, value in claims.items() if value is not ...}
    return other_jwt.encode({"alg": "ES256", "kid": "k1", **header}, present, KEY)


def verify(kind: str, now: int = NOW, /, **changes: Any) -> issuers.Subject:
    token = sign({**CLAIMS[kind], **changes})
    return issuers.verify_subject(token, issuer=issuer(kind), keys=keys(kind), now=now)


def refused(kind: str, why: str, now: int = NOW, /, **changes: Any) -> None:
    with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT) as caught:
        verify(kind, now, **changes)
    assert caught.value.what == issuers.INVALID_SUBJECT == "invalid_request"
    assert why in str(caught.value.why)


# -- every kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ISSUER_KINDS)
def test_an_identity_that_holds(kind: str):
    claims = CLAIMS[kind]
    found = verify(kind)
    assert (found.issuer, found.sub, found.jti) == (URLS[kind], claims["sub"], claims.get("jti"))
    assert found.expires_ms == claims["exp"] * 1000
    assert {name: found.claims[name] for name in claims} == claims
    assert not found.pull_request
    assert claims["sub"] not in repr(found).replace(f"sub={claims['sub']!r}", "")


def test_the_digest_is_of_what_was_signed():
    token = sign(CLAIMS["oidc"])
    found = issuers.verify_subject(token, issuer=issuer(), keys=keys(), now=NOW)
    assert found.digest == jwks.signing_digest(token)


@pytest.mark.parametrize("kind", ISSUER_KINDS)
def test_a_token_of_another_issuer(kind: str):
    with pytest.raises(InvalidRequest):
        issuers.verify_subject(sign(CLAIMS[kind]), issuer=issuer(kind), keys=keys(kind)[1:], now=NOW)
    for other in set(ISSUER_KINDS) - {kind}:
        with pytest.raises(InvalidRequest):
            issuers.verify_subject(sign(CLAIMS[kind]), issuer=issuer(other), keys=keys(other), now=NOW)


@pytest.mark.parametrize(
    "iss",
    [
        URLS["oidc"] + "/",
        URLS["oidc"].upper(),
        "https://Issuer.example",
        "https://issuer.example:443",
        "https://іssuer.example",
        "https://issuer.example.evil.example",
        "http://issuer.example",
        " https://issuer.example",
        ...,
    ],
    ids=ascii,
)
def test_the_issuer_is_compared_exactly(iss: object):
    refused("oidc", "of another issuer", iss=iss)


@pytest.mark.parametrize("iss", ["", 7, ["https://issuer.example"], None], ids=repr)
def test_an_issuer_of_another_type(iss: object):
    refused("oidc", "iss is not printable text", iss=iss)


def test_the_audience_is_ours_alone():
    assert verify("oidc", aud=AUDIENCE)
    assert verify("oidc", aud=[AUDIENCE])
    for several in (
        [AUDIENCE, "https://other.example"],
        [AUDIENCE, AUDIENCE],
        [],
        ...,
        None,
        7,
        [7],
        {},
        [[]],
    ):
        refused("oidc", "not for exactly one audience", aud=several)
    for other in ("https://other.example", AUDIENCE + "/", AUDIENCE.upper(), "", ["x"]):
        refused("oidc", "for another audience", aud=other)


@pytest.mark.parametrize("sub", [..., "", 7, None, ["a"], "a\x00b", "x" * (limits.MAX_CLAIM + 1)], ids=ascii)
def test_every_identity_has_a_subject(sub: object):
    refused("oidc", "sub", sub=sub)


def test_spaces_and_letters_of_any_alphabet_in_a_subject():
    sub = "repo:acme/train:environment:Größe Nord"
    assert verify("oidc", sub=sub).sub == sub


@pytest.mark.parametrize("jti", ["", 7, None, "a\nb", "x" * (limits.MAX_CLAIM + 1)], ids=ascii)
def test_an_id_is_text(jti: object):
    refused("oidc", "jti is not printable text", jti=jti)


def test_an_id_may_be_missing():
    assert verify("oidc", jti=...).jti is None


# -- times ----------------------------------------------------------------------------------------------


def test_expiry():
    assert verify("oidc", COMMON["exp"] * 1000 - 1)
    refused("oidc", "has expired", COMMON["exp"] * 1000)
    refused("oidc", "has expired", exp=0)


@pytest.mark.parametrize(
    "exp", [..., None, SECONDS + 60.0, 1e300, str(SECONDS + 60), True, -1, 2**53, [SECONDS + 60]], ids=repr
)
def test_an_expiry_is_a_whole_number_of_seconds(exp: object):
    refused("oidc", "exp is not a time in whole seconds", exp=exp)


def test_the_lifetime_that_is_left_is_bounded():
    longest = SECONDS + limits.MAX_SUBJECT_TTL
    assert verify("oidc", exp=longest)
    refused("oidc", "good for more than", exp=longest + 1)
    # How long ago it was made does not matter: only what is left can be abused.
    assert verify("oidc", exp=longest, iat=0, nbf=0)


@pytest.mark.parametrize("name", ["iat", "nbf"])
def test_the_future(name: str):
    latest = SECONDS + limits.PROOF_WINDOW
    assert verify("oidc", **{name: latest})
    assert verify("oidc", **{name: ...})
    refused("oidc", f"{name} is in the future", **{name: latest + 1})
    for wrong in (None, 1.5, str(SECONDS), True):
        refused("oidc", f"{name} is not a time", **{name: wrong})


# -- signatures -----------------------------------------------------------------------------------------


def test_no_key():
    for none in ((), keys()[1:]):
        with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT) as caught:
            issuers.verify_subject(sign(CLAIMS["oidc"]), issuer=issuer(), keys=none, now=NOW)
        assert "no key" in str(caught.value.why)


def test_the_key_of_somebody_else_with_the_same_name():
    stranger = {**ECKey.generate_key("P-256").as_dict(private=False), "kid": "k1"}
    wrong = jwks.parse_jwks({"keys": [stranger]}, use=jwks.SIGNING)
    with pytest.raises(InvalidRequest) as caught:
        issuers.verify_subject(sign(CLAIMS["oidc"]), issuer=issuer(), keys=wrong, now=NOW)
    assert "signature" in str(caught.value.why)


def test_refusals_do_not_repeat_the_token():
    hostile = "h0st1le-cl41m"
    changes: list[dict[str, Any]] = [
        {"iss": f"https://{hostile}"},
        {"aud": hostile},
        {"exp": hostile},
        {"sub": hostile + "\n"},
    ]
    for change in changes:
        with pytest.raises(InvalidRequest) as caught:
            verify("oidc", **change)
        assert hostile not in f"{caught.value.what} {caught.value.why} {caught.value.next}"


# -- which issuer ---------------------------------------------------------------------------------------


def find(claims: dict[str, Any], *rows: Issuer) -> Issuer:
    return issuers.find_issuer_key(jwks.peek_foreign(sign(claims)), rows)


@pytest.mark.parametrize("kind", ISSUER_KINDS)
def test_the_issuer_is_found(kind: str):
    rows = [issuer(each) for each in ISSUER_KINDS]
    assert find(CLAIMS[kind], *rows).kind == kind


def test_the_issuer_is_one():
    claims = CLAIMS["oidc"]
    for rows in (
        (),
        (issuer("github"),),
        (issuer(status=REVOKED),),
        (issuer(), issuer(name="twin")),
        (issuer(url="https://issuer.example/"),),
    ):
        with pytest.raises(InvalidRequest, match=issuers.INVALID_SUBJECT):
            find(claims, *rows)
    assert find(claims, issuer(), issuer(name="twin", status=REVOKED)).name == "oidc"


def test_a_trust_domain_is_not_an_iss():
    """A token that puts the trust domain where an issuer's URL belongs, or a SPIFFE ID of another domain."""
    for claims in (
        {**CLAIMS["spiffe"], "sub": "x", "iss": "spiffe://prod.example"},
        {**CLAIMS["spiffe"], "sub": "spiffe://prod.example.evil.example/ns/ml/sa/trainer"},
        {**CLAIMS["spiffe"], "sub": "spiffe://prod.example"},
        {**CLAIMS["oidc"], "sub": ...},
    ):
        with pytest.raises(InvalidRequest):
            find(claims, issuer("spiffe"))


def test_a_svid_may_have_an_iss():
    claims = {**CLAIMS["spiffe"], "iss": "https://oidc.prod.example"}
    assert find(claims, issuer("oidc"), issuer("spiffe")).kind == "spiffe"
    assert verify("spiffe", iss="https://oidc.prod.example").issuer == URLS["spiffe"]
    # Where that iss is an issuer of its own, its keys decide.
    own = issuer("oidc", url="https://oidc.prod.example")
    assert find(claims, own, issuer("spiffe")) == own


# -- kubernetes -----------------------------------------------------------------------------------------


def kubernetes(**changes: Any) -> dict[str, Any]:
    nested = {**CLAIMS["kubernetes"]["kubernetes.io"], **changes}
    return {"kubernetes.io": {name: value for name, value in nested.items() if value is not ...}}


def test_kubernetes_claims_are_flattened():
    claims = verify("kubernetes").claims
    assert {name: claims[name] for name in issuers.KUBERNETES_CLAIMS} == {
        "namespace": "ml",
        "service_account": "trainer",
        "service_account_uid": UID,
        "pod": "train-0",
        "pod_uid": "pod-uid",
        "node": "gpu-1",
    }


def test_a_token_that_is_bound_to_no_pod():
    claims = verify("kubernetes", **kubernetes(pod=..., node=...)).claims
    assert not {"pod", "pod_uid", "node"} & set(claims)


def test_top_level_claims_do_not_stand_in_for_nested_ones():
    forged = {"namespace": "prod", "service_account_uid": "x", "pod": "y", "pod_uid": "y", "node": "z"}
    claims = verify("kubernetes", **forged, **kubernetes(pod=..., node=...)).claims
    assert (claims["namespace"], claims["service_account_uid"]) == ("ml", UID)
    assert not {"pod", "pod_uid", "node"} & set(claims)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("sub is not the service account", {"sub": "system:serviceaccount:ml:other"}),
        ("sub is not the service account", {"sub": "system:serviceaccount:prod:trainer"}),
        ("sub is not the service account", {"sub": "system:node:gpu-1"}),
        ("sub is not the service account", {"sub": "trainer"}),
        ("sub is not the service account", kubernetes(namespace="prod")),
        ("is not a name", {"sub": "system:serviceaccount:a:b:c", **kubernetes(namespace="a:b")}),
        ("kubernetes.io is not an object", {"kubernetes.io": ...}),
        ("kubernetes.io is not an object", {"kubernetes.io": "ml"}),
        ("serviceaccount is not an object", kubernetes(serviceaccount=...)),
        ("uid is not printable", kubernetes(serviceaccount={"name": "trainer"})),
        ("uid is not printable", kubernetes(serviceaccount={"name": "trainer", "uid": 7})),
        ("uid is not printable", kubernetes(serviceaccount={"name": "trainer", "uid": ""})),
        ("namespace is not printable", kubernetes(namespace=["ml"])),
        ("pod is not an object", kubernetes(pod="train-0")),
        ("uid is not printable", kubernetes(pod={"name": "train-0"})),
        ("node is not an object", kubernetes(node=None)),
        # A token of the kind that lives for ever.
        ("exp is not a time", {"exp": ...}),
    ],
)
def test_kubernetes_claims_that_do_not_hold(why: str, changes: dict[str, Any]):
    refused("kubernetes", why, **changes)


# -- github ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sub",
    [
        "repo:acme/train:ref:refs/heads/main",
        "repo:acme@123456/train@456789:ref:refs/heads/main",
        "repo:acme/train:environment:prod",
        "repo:acme/train",
        "repository_owner_id:123456:job_workflow_ref:acme/train/.github/workflows/x.yml@refs/heads/main",
    ],
)
def test_github_subjects(sub: str):
    found = verify("github", sub=sub)
    assert (found.sub, found.pull_request) == (sub, False)


@pytest.mark.parametrize(
    "sub",
    [
        "repo:acme/other:ref:refs/heads/main",
        "repo:evil/train:ref:refs/heads/main",
        "repo:Acme/train:ref:refs/heads/main",
        "repo:acme/train/x:ref:refs/heads/main",
        "repo:acme@123456/train:ref:refs/heads/main",
        "repo:acme/train@456789:ref:refs/heads/main",
        "repo:acme@123457/train@456789:ref:refs/heads/main",
        "repo:acme@123456/train@456780:ref:refs/heads/main",
        "repo:acme@456789/train@123456:ref:refs/heads/main",
        "repo:acme@123456@1/train@456789:ref:refs/heads/main",
        "repo:acme@0123456/train@456789:ref:refs/heads/main",
        "repo:acme-123456/train-456789:ref:refs/heads/main",
        "repo:acme:ref:refs/heads/main",
        "repo:",
    ],
)
def test_github_subjects_that_contradict_the_claims(sub: str):
    refused("github", "its sub", sub=sub)


@pytest.mark.parametrize("name", ["repository_id", "repository_owner_id"])
@pytest.mark.parametrize(
    "value", [..., "", 456789, "0456789", "-1", "4_5", "٤٥", "1" * 21, ["456789"]], ids=ascii
)
def test_github_ids_are_decimal_text(name: str, value: object):
    refused("github", "", **{name: value})


@pytest.mark.parametrize("name", ["repository", "event_name"])
def test_github_claims_that_are_always_there(name: str):
    refused("github", f"claim {name}", **{name: ...})


@pytest.mark.parametrize(
    "changes",
    [
        {"event_name": "pull_request", "sub": "repo:acme/train:pull_request", "ref": "refs/pull/7/merge"},
        # Runs in the base's context, often on the stranger's code: only the event tells.
        {"event_name": "pull_request_target"},
        {"event_name": "pull_request_review"},
        {"sub": "repo:acme/train:pull_request"},
        {"sub": "repo:acme@123456/train@456789:pull_request"},
        {"sub": "repo:acme/train:pull_request:environment:prod"},
        {"ref": "refs/pull/7/merge"},
        {"head_ref": "patch-1"},
        {"head_ref": ["patch-1"]},
    ],
    ids=str,
)
def test_github_runs_of_pull_requests_are_told_apart(changes: dict[str, Any]):
    assert verify("github", **changes).pull_request


# -- spiffe ---------------------------------------------------------------------------------------------


def test_spiffe_claims():
    claims = verify("spiffe").claims
    assert (claims["trust_domain"], claims["path"]) == ("prod.example", "ns/ml/sa/trainer")


def test_a_claim_does_not_stand_in_for_the_path():
    assert verify("spiffe", path="admin", trust_domain="x").claims["path"] == "ns/ml/sa/trainer"


@pytest.mark.parametrize(
    "sub",
    [
        "spiffe://prod.example/a",
        "spiffe://prod.example/a.b-c_D/...",
        "spiffe://prod.example/" + "x" * (limits.MAX_CLAIM - 22),
    ],
)
def test_spiffe_ids(sub: str):
    assert verify("spiffe", sub=sub).sub == sub


@pytest.mark.parametrize(
    "sub",
    [
        "spiffe://prod.example",
        "spiffe://prod.example/",
        "spiffe://prod.example/a/",
        "spiffe://prod.example//a",
        "spiffe://prod.example/./a",
        "spiffe://prod.example/a/..",
        "spiffe://prod.example/a%2fb",
        "spiffe://prod.example/a?x",
        "spiffe://prod.example/a#x",
        "spiffe://prod.example/ä",
        "spiffe://prod.example/a b",
        "spiffe://prod.example:443/a",
        "spiffe://user@prod.example/a",
        "spiffe://Prod.example/a",
        "SPIFFE://prod.example/a",
        "spiffe:/prod.example/a",
        "spiffe:///a",
        "https://prod.example/a",
        "spiffe://prod.example.evil/a",
        "spiffe://evil/prod.example/a",
        "prod.example/a",
    ],
)
def test_what_is_no_spiffe_id_of_the_domain(sub: str):
    refused("spiffe", "not a SPIFFE ID of this trust domain", sub=sub)


def test_the_header_of_a_svid_has_three_members():
    for header in ({"typ": "JWT"}, {"typ": "JOSE"}, {}):
        token = sign(CLAIMS["spiffe"], **header)
        assert issuers.verify_subject(token, issuer=issuer("spiffe"), keys=keys("spiffe"), now=NOW)
    token = sign(CLAIMS["spiffe"], x5t="AA")
    with pytest.raises(InvalidRequest) as caught:
        issuers.verify_subject(token, issuer=issuer("spiffe"), keys=keys("spiffe"), now=NOW)
    assert "header of a JWT-SVID" in str(caught.value.why)


# -- names ----------------------------------------------------------------------------------------------


def test_names_of_issuers():
    for name in ("a", "k8s-prod", "0" * 32):
        assert issuers.parse_issuer_name(name) == name
    for wrong in ("", "-a", "A", "a_b", "a/b", "a.b", "a" * 33, "a\n", "ä", None, 7):
        with pytest.raises(InvalidRequest):
            issuers.parse_issuer_name(wrong)  # type: ignore[arg-type]


def test_ids_of_issuers():
    for kind, url in URLS.items():
        assert issuers.parse_issuer_id(url, kind=kind) == url
    for wrong in (
        "spiffe://",
        "prod.example",
        "spiffe://a/b",
        "spiffe://A",
        "spiffe://a:1",
        "https://a",
        None,
    ):
        with pytest.raises(InvalidRequest):
            issuers.parse_issuer_id(wrong, kind="spiffe")  # type: ignore[arg-type]
    assert issuers.parse_issuer_id("spiffe://" + "a" * 255, kind="spiffe")
    with pytest.raises(InvalidRequest):
        issuers.parse_issuer_id("spiffe://" + "a" * 256, kind="spiffe")
    for kind in ("oidc", "kubernetes", "github"):
        with pytest.raises(InvalidRequest):
            issuers.parse_issuer_id("spiffe://a", kind=kind)
