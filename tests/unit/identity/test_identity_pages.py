"""The format pages say what the code does: their vectors are made, and judged, independently of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt as other_jwt
from joserfc.jwk import OKPKey

from broker import jose, limits
from broker.identity import enrolment, proof, scope, token

PAGES = Path(__file__).parents[3] / "docs" / "formats"
SECRET = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"  # RFC 8037 appendix A.1
ISSUER = "https://broker.example"


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def vectors(name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r"```json vector\n(.*?)```", page(name), re.DOTALL)]


def opened(made: str, jwk: dict[str, str]) -> dict[str, Any]:
    return dict(other_jwt.decode(made, OKPKey.import_key(jwk), algorithms=["EdDSA"]).claims)


def signer(jwk: dict[str, str]) -> jose.PrivateKey:
    return jose.PrivateKey.from_jwk({**jwk, "d": SECRET})


def digest(text: str) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}:"


def test_the_vector_of_a_signed_request():
    (vector,) = vectors("signed-request.md")
    claims = opened(vector["proof"], vector["key"])
    assert claims == vector["claims"]
    assert claims["content_digest"] == digest(vector["body"])
    assert claims["query_digest"] == digest(vector["query"])
    request = {name: vector[name] for name in ("method", "url", "now", "jti", "query", "access_token")}
    made = proof.build_proof(key=signer(vector["key"]), body=vector["body"].encode(), nonce=None, **request)
    assert made == vector["proof"]
    verified = proof.verify_proof(
        vector["proof"],
        method=vector["method"],
        public_urls=[ISSUER],
        raw_path=vector["url"].removeprefix(ISSUER),
        query=vector["query"].encode(),
        body=vector["body"].encode(),
        access_token=vector["access_token"],
        now=vector["now"],
        require_digests=True,
        nonce_check=None,
    )
    assert verified.jkt == vector["jkt"] == OKPKey.import_key(vector["key"]).thumbprint()


def test_the_vector_of_an_access_token():
    vector = vectors("access-token.md")[0]
    assert opened(vector["token"], vector["key"]) == vector["claims"]
    claims = token.verify_access_token(
        vector["token"],
        keys={vector["kid"]: vector["key"]},
        issuer=ISSUER,
        audience=ISSUER,
        now=vector["now"],
    )
    assert token.sign_access_token(claims, key=signer(vector["key"]), kid=vector["kid"]) == vector["token"]
    ask = scope.Ask(
        action="read",
        collection="acme",
        name="llama-7b",
        version="step-1000",
        paths=("shards/00.bin",),
        purpose="evaluation",
    )
    assert scope.byte_ceilings(claims.limits, claims.holders, ask) == ((claims.jti, 2**30),)


def test_the_vector_of_an_assertion():
    vector = vectors("access-token.md")[1]
    claims = opened(vector["assertion"], vector["key"])
    assert claims["iss"] == claims["sub"] == vector["principal"]
    named = {name: vector[name] for name in ("principal", "issuer", "now")}
    token.verify_assertion(vector["assertion"], jwk=vector["key"], **named)
    made = token.build_assertion(key=signer(vector["key"]), jti=claims["jti"], **named)
    assert made == vector["assertion"]


def test_the_vector_of_an_enrolment_code():
    (vector,) = vectors("enrolment-code.md")
    id, secret = bytes.fromhex(vector["id"]), bytes.fromhex(vector["secret"])
    fingerprint = hashlib.sha256(vector["vkey"].encode()).digest()[:16]
    assert fingerprint.hex() == vector["fingerprint"]
    text = base64.b32encode(id + secret + fingerprint).decode().lower()
    assert vector["code"] == f"bke1.{text}" == enrolment.build_code(id=id, secret=secret, vkey=vector["vkey"])
    parts = ("broker/enrol/v1", vector["jkt"], vector["url"], vector["vkey"])
    message = b"".join(len(part).to_bytes(4, "big") + part.encode() for part in parts)
    key = hashlib.sha256(secret).digest()
    assert key.hex() == vector["secret_hash"]
    assert hmac.new(key, message, hashlib.sha256).hexdigest() == vector["mac"]
    binding = {name: vector[name] for name in ("jkt", "url", "vkey")}
    enrolment.verify_enrolment_mac(bytes.fromhex(vector["mac"]), enrolment.secret_hash(secret), **binding)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("signed-request.md", [proof.TYP, f"{limits.MAX_PROOF:,} bytes", f"within {limits.PROOF_WINDOW} s"]),
        ("signed-request.md", [f"{limits.MIN_JTI} to {limits.MAX_JTI} printable", f"{limits.NONCE_TTL} s"]),
        ("signed-request.md", [f"{limits.MAX_JSON_DEPTH} levels"]),
        ("access-token.md", [token.ACCESS_TYP, token.ASSERTION_TYP, f"{limits.MAX_TOKEN:,} bytes"]),
        (
            "access-token.md",
            [f"at most {limits.ACCESS_TOKEN_TTL} s", f"at most {limits.ASSERTION_TTL} s later"],
        ),
        (
            "access-token.md",
            [f"1 to {limits.MAX_LIMITS_LEVELS} levels", f"at most {limits.MAX_DETAILS} `auth"],
        ),
        ("access-token.md", [f"at most {limits.MAX_GLOBS}.", *scope.ACTIONS, scope.INVALID_DETAILS]),
        ("access-token.md", [f"`{action}`" for actions in scope.ACTIONS.values() for action in actions]),
        ("access-token.md", [f"`{claim}`" for claim in token._ACCESS_MEMBERS]),
        ("enrolment-code.md", [enrolment.PREFIX, "broker/enrol/v1"]),
    ],
)
def test_a_page_states_the_limits_and_words_of_the_code(name: str, words: list[str]):
    text = " ".join(page(name).split())
    assert [word for word in words if word not in text] == []
