"""A foreign issuer of workload identities: real keys, real JWTs, no HTTP.

Signing is spelled out here, apart from the code under test, so that tokens can also be wrong in any way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from broker.canonical import Json, b64url

AUDIENCE = "http://127.0.0.1:9"


def _number(value: int, size: int) -> str:
    return b64url(value.to_bytes(size, "big"))


class ForeignKey:
    """A signing key: ``ES256``, ``EdDSA`` or ``RS256``."""

    def __init__(self, alg: str = "ES256", kid: str | None = None) -> None:
        self.alg = alg
        self.kid = kid or os.urandom(4).hex()
        self.private: Any
        if alg == "ES256":
            self.private = ec.generate_private_key(ec.SECP256R1())
        elif alg == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwk(self, use: str = "sig") -> Json:
        public = self.private.public_key()
        found: Json = {"kid": self.kid, "use": use}
        if self.alg == "ES256":
            at = public.public_numbers()
            return {**found, "kty": "EC", "crv": "P-256", "x": _number(at.x, 32), "y": _number(at.y, 32)}
        if self.alg == "EdDSA":
            return {**found, "kty": "OKP", "crv": "Ed25519", "x": b64url(public.public_bytes_raw())}
        numbers = public.public_numbers()
        return {**found, "kty": "RSA", "n": _number(numbers.n, 256), "e": _number(numbers.e, 3)}

    def sign(self, message: bytes) -> bytes:
        if self.alg == "ES256":
            r, s = utils.decode_dss_signature(self.private.sign(message, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        if self.alg == "EdDSA":
            return bytes(self.private.sign(message))
        return bytes(self.private.sign(message, padding.PKCS1v15(), hashes.SHA256()))

    def jwt(self, claims: Mapping[str, Any], **header: Any) -> str:
        """A compact JWT. ``header`` replaces members of the usual one; None leaves one out."""
        usual: Json = {"alg": self.alg, "typ": "JWT", "kid": self.kid, **header}
        parts = ({name: value for name, value in usual.items() if value is not None}, dict(claims))
        text = ".".join(b64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        return f"{text}.{b64url(self.sign(text.encode()))}"


class FakeIssuer:
    """An issuer of plain OIDC tokens: one key at a time, which it can replace."""

    kind = "oidc"
    jwks_use = "sig"

    def __init__(self, name: str = "ci", url: str = "https://ci.example", *, alg: str = "ES256") -> None:
        self.name = name
        self.url = url
        self.key = ForeignKey(alg)

    def rotate(self) -> None:
        self.key = ForeignKey(self.key.alg)

    def jwks(self) -> Json:
        return {"keys": [self.key.jwk(self.jwks_use)]}

    def mapping(self, **rule: Any) -> Json:
        """Jobs are named by their claim ``job``; what a rule says beside that is given."""
        usual: Json = {"name": "jobs", "match": {"project": "llm"}, "principal": "{job}"}
        return {"schema": "broker/issuer-map/v1", "rules": [{**usual, **rule}]}

    def claims(self, now: int, **more: Any) -> Json:
        """Claims of a token that holds; ``now`` in milliseconds. A member that is None is left out."""
        usual: Json = {
            "iss": self.url,
            "sub": "job:train",
            "aud": AUDIENCE,
            "iat": now // 1000,
            "exp": now // 1000 + 3600,
            "jti": os.urandom(8).hex(),
            "project": "llm",
            "job": "train",
        }
        return {name: value for name, value in {**usual, **more}.items() if value is not None}

    def token(self, now: int, *, header: Mapping[str, Any] | None = None, **more: Any) -> str:
        return self.key.jwt(self.claims(now, **more), **dict(header or {}))


def read_details(
    identifier: str = "*", *, actions: Sequence[str] = ("describe", "read"), **more: Any
) -> list[Json]:
    """``authorization_details`` that read."""
    return [{"type": "artifact_access", "actions": list(actions), "identifier": identifier, **more}]
