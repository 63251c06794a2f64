"""A log of one entry of each type, with everything that its tests need to know about it."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.canonical import b64url, format_time
from broker.ledger.entry import build_entry
from broker.ledger.merkle import Frontier, leaf_hash
from broker.ledger.note import TreeHead, Verifier, sign_head

NOW = 1_760_000_000_123
ORIGIN = "log.example/broker"
KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"log key").digest())
VERIFIER = Verifier(name=ORIGIN, public=KEY.public_key().public_bytes_raw())
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"another key").digest())
OTHER_VERIFIER = Verifier(name=ORIGIN, public=OTHER_KEY.public_key().public_bytes_raw())

# The key and thumbprint of RFC 8037, appendix A.
JWK = {"crv": "Ed25519", "kty": "OKP", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
JKT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


_ALLOW = {"effect": "allow", "policies": ["readers-by-group"], "bundle": digest("bundle")}
_CALLER = {"principal": "user:ana", "jkt": JKT, "token": "t_1", "request_id": "8c4bd8a4-0d2c-4e0f-9d3d-2f1a"}
_VERSION = {"artifact": "nlp/minilm", "version": "v1", "manifest": digest("manifest")}
_READ = {
    **_CALLER,
    **_VERSION,
    "action": "read",
    "selection": {"digest": digest("selection"), "files": 12, "extents": 14},
    "bytes": 91_650_000,
    "purpose": "evaluation",
    "recipient": digest("recipient"),
    "decision": _ALLOW,
    "grant": "g_1",
    "lease": 0,
    "expires_at": format_time(NOW + 60_000),
    "evidence": digest("evidence"),
}
_HOUR = format_time(NOW - NOW % 3_600_000)

SAMPLES: dict[str, dict[str, Any]] = {
    "genesis": {"origin": ORIGIN, "vkey": VERIFIER.vkey, "mode": "dev"},
    "enrolment-code": {
        "subject": "user:ana",
        "code": "00112233aabbccdd",
        "expires_at": format_time(NOW + 3_600_000),
    },
    "enrolment": {"principal": "user:ana", "key": {"jwk": JWK, "jkt": JKT}, "enrolled_by": 1},
    "token": {**_CALLER, "expires_at": format_time(NOW + 900_000), "scope": digest("scope")},
    "grant": _READ,
    "lease": {**_READ, "lease": 1},
    "completion": {**_CALLER, "grant": "g_1", "received": {"files": 12, "extents": 14, "bytes": 91_650_000}},
    "denial": {
        **_CALLER,
        "action": "read",
        "artifact": "acme/llama-7b",
        "version": "step-1000",
        "decision": {"effect": "deny", "policies": ["critical-needs-approval"], "bundle": digest("bundle")},
    },
    "publish": {
        **_CALLER,
        "action": "publish",
        "artifact": "nlp/minilm",
        "version": "v1",
        "decision": _ALLOW,
        "upload": "u_1",
        "kind": "checkpoint",
        "labels": {"tier": "standard"},
    },
    "commit": {
        **_CALLER,
        **_VERSION,
        "version_id": b64url(bytes(range(16))),
        "publisher": JKT,
        "publisher_binding": 2,
        "wrap": digest("wrap"),
        "labels": {"tier": "standard"},
        "bytes": 91_650_000,
    },
    "abandon": {"upload": "u_2"},
    "collection": {"collection": "nlp", "readers": ["nlp"], "publishers": ["nlp"]},
    "principal": {
        "principal": "user:admin",
        "subject": "user:ana",
        "roles": ["engineer"],
        "groups": ["nlp"],
        "disabled": False,
    },
    "group": {"group": "nlp", "parents": ["research"]},
    "policy": {"bundle": digest("bundle"), "previous": digest("older bundle")},
    "approval": {
        "principal": "user:boss",
        "request": "r_1",
        "approves": digest("request"),
        "decision": {"effect": "allow", "policies": []},
    },
    "revocation": {"principal": "user:admin", "target": {"kind": "grant", "id": "g_1"}},
    "freeze": {"principal": "user:admin", "target": {"kind": "all", "id": "*"}, "frozen": True},
    "key-rotation": {"use": "log", "kid": "2", "previous_kid": "1"},
    "export": {"principal": "user:aud", "format": "jsonl", "range": {"start": 0, "stop": 7}},
    "origin": {
        "origin": ORIGIN,
        "vkey": VERIFIER.vkey,
        "former": {"origin": "log.example/lost", "size": 40, "root": digest("root")},
        "known": {"size": 54, "root": digest("known")},
        "reason": "the disk of 9 October failed; restored from the night before",
    },
    "erasure": {
        "principal": "user:root",
        "subject": "user:ana",
        "until": _HOUR,
        "counts": {"evidence": 3},
        "reason": "asked for under GDPR, article 17",
    },
    "audit-query": {"principal": "user:aud", "query": "actor:ana since:24h", "hour": _HOUR},
    "decision": {"principal": "user:ana", "action": "read", "artifact": "nlp/minilm", "decision": _ALLOW},
    "junk-summary": {"counts": {"malformed": 7}, "since": _HOUR, "until": format_time(NOW)},
    "denial-summary": {
        "principal": "user:ana",
        "counts": {"denied": 61},
        "since": _HOUR,
        "until": format_time(NOW),
    },
    "issuer": {
        "principal": "user:admin",
        "issuer": "ci",
        "url": "https://ci.example",
        "issuer_kind": "oidc",
        "audience": "https://broker.example",
        "mapping": digest("mapping"),
        "trust": digest("trust"),
        "disabled": False,
    },
}


def sample(type: str, *, at: int = 0, **changes: Any) -> bytes:
    """The sample entry of a type, ``at`` seconds later, with members changed (None: left out)."""
    salt = hashlib.sha256(f"{type} {at}".encode()).digest()[:16]
    return build_entry(type=type, time=NOW + 1000 * at, salt=salt, **{**SAMPLES[type], **changes})


def sample_log(size: int) -> list[bytes]:
    """A log of that many entries, all types in turn, no two alike."""
    types = list(SAMPLES)
    return [sample(types[at % len(types)], at=at) for at in range(size)]


class StoredLog:
    """A log as a store keeps it: entries, leaf hashes, and hashes of the levels 8, 16, ..."""

    def __init__(self, entries: list[bytes]) -> None:
        self.entries = list(entries)
        self.leaves = [leaf_hash(entry) for entry in entries]
        self.frontier, completed = Frontier().extend(self.leaves)
        self.hashes: dict[int, list[bytes]] = {}
        for level, index, value in completed:
            row = self.hashes.setdefault(level, [])
            assert len(row) == index
            row.append(value)
        self.reads: list[tuple[int, int, int]] = []

    def read(self, level: int, start: int, stop: int) -> list[bytes]:
        self.reads.append((level, start, stop))
        return (self.leaves if level == 0 else self.hashes.get(level, []))[start:stop]

    def rows(self) -> list[tuple[int, bytes, bytes]]:
        return [(at, *row) for at, row in enumerate(zip(self.entries, self.leaves, strict=True))]

    def head(self, size: int) -> TreeHead:
        frontier, _ = Frontier().extend(self.leaves[:size])
        return TreeHead(origin=ORIGIN, size=size, root=frontier.root())

    def note(self, size: int) -> str:
        return sign_head(self.head(size), VERIFIER, KEY.sign)
