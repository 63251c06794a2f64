"""A whole broker in one process for tests: real rules, services and database; the store lives in memory.

Nothing of ours is mocked. ``MemoryStore`` implements the same ports as the S3 adapter and presigner; its
URLs are opaque here (the store contract suite proves real ones against a real S3 server).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker import jose, runtime, wiring
from broker.canonical import Json, b64url, parse_b64url, parse_json_object
from broker.db import migrate
from broker.db.engine import open_engine
from broker.db.ledger_store import LedgerStore
from broker.discovery import IssuerKeys
from broker.envelope import digest, extents, manifest, seal, stream
from broker.envelope import lease as leases
from broker.errors import IntegrityFailure
from broker.identity import enrolment as codes
from broker.identity import proof, token
from broker.ledger import note, receipt
from broker.model import Token
from broker.policy.bundle import build_bundle
from broker.ports import ObjectInfo
from broker.services import (
    access,
    authn,
    committing,
    completing,
    enrolment,
    exchange,
    founding,
    issuers,
    minting,
    people,
    planning,
    publish,
    releasing,
    revoking,
    tokens,
    uploads,
)
from broker.services.house import House, LogIdentity, TokenKeys
from tests.foreign import FakeIssuer, read_details

URL = "http://127.0.0.1:9"
ROOT = Path(__file__).resolve().parent.parent
EVERYTHING: list[Json] = [
    {"type": "artifact_access", "actions": ["describe", "read", "publish"], "identifier": "*"},
    {"type": "ledger_access", "actions": ["search", "read", "prove"]},
    {"type": "administration", "actions": ["principals", "policies", "revocations", "keys"]},
]
MIB = 2**20


class MovedClock:
    """Milliseconds that a test moves."""

    def __init__(self, now: int) -> None:
        self.ms = now

    def now(self) -> int:
        return self.ms

    def forward(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


@dataclass
class MemoryStore:
    """Objects by name; a presigned URL is remembered with what it allows."""

    objects: dict[str, bytes] = field(default_factory=dict)
    multiparts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    issued: list[tuple[str, str, str, int]] = field(default_factory=list)

    def create_upload(self, name: str) -> str:
        id = f"m{len(self.multiparts)}"
        self.multiparts[id] = {}
        return id

    def complete_upload(self, name: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        held = self.multiparts.pop(upload_id, None)
        if held is not None:
            self.objects[name] = b"".join(held[number] for number, _ in parts)

    def abort_upload(self, name: str, upload_id: str) -> None:
        self.multiparts.pop(upload_id, None)

    def list_parts(self, name: str, upload_id: str) -> list[tuple[int, str, int]]:
        held = self.multiparts.get(upload_id, {})
        return [(n, hashlib.md5(d).hexdigest(), len(d)) for n, d in sorted(held.items())]

    def head(self, name: str) -> ObjectInfo | None:
        data = self.objects.get(name)
        return None if data is None else ObjectInfo(size=len(data), etag="")

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        return iter([(n, len(d)) for n, d in sorted(self.objects.items()) if n.startswith(prefix)])

    def check(self) -> None:
        return None

    def _issue(self, kind: str, name: str, what: str, expires: int, now: int) -> tuple[str, int]:
        self.issued.append((kind, name, what, now + expires * 1000))
        return f"http://127.0.0.1:1/b/{name}?n={len(self.issued)}", now + expires * 1000

    def get(self, name: str, *, byte_range: str, grant: str, expires: int, now: int) -> tuple[str, int]:
        return self._issue("GET", name, byte_range, expires, now)

    def put(self, name: str, *, content_length: int, expires: int, now: int) -> tuple[str, int]:
        return self._issue("PUT", name, str(content_length), expires, now)

    def upload_part(
        self, name: str, *, upload_id: str, part_number: int, content_length: int, expires: int, now: int
    ) -> tuple[str, int]:
        return self._issue("PART", name, f"{upload_id}:{part_number}", expires, now)


class MemoryCustody:
    """A key-encryption key in memory."""

    def __init__(self) -> None:
        self._aead = AESGCM(os.urandom(32))

    def check(self) -> None:
        return None

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._aead.encrypt(nonce, key, aad)

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        try:
            return self._aead.decrypt(wrapped[:12], wrapped[12:], aad)
        except InvalidTag as exc:
            raise IntegrityFailure("a wrapped key does not open") from exc


def policy_files() -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((ROOT / "policies").iterdir()) if p.is_file()}


@dataclass
class Person:
    """A principal with an enrolled key, and a live token."""

    id: str
    key: jose.PrivateKey
    token: str


def _segment_digests(plain: bytes) -> list[bytes]:
    ranges = [
        extents.segment_plaintext_range(len(plain), i) for i in range(extents.segment_count(len(plain)))
    ]
    return [digest.segment_digest(plain[start : start + length]) for start, length in ranges]


class World:
    """One broker, and the moves of the people who use it."""

    def __init__(self, folder: Path, *, now: int | None = None, **settings: Any) -> None:
        self.url = f"sqlite:///{folder}/broker.db"
        self.path = folder / "broker.db"
        migrate.upgrade(self.url)
        self.clock = MovedClock(now or runtime.SystemClock().now())
        self.integrity_key = os.urandom(32)
        self.ledger = self.open_ledger()
        self.ledger.initialize()
        self.store = MemoryStore()
        log_key = Ed25519PrivateKey.generate()
        origin = "test.example/log"
        token_key = jose.PrivateKey.generate("EdDSA")
        self.house = House(
            ledger=self.ledger,
            clock=self.clock,
            entropy=runtime.SystemEntropy(),
            store=self.store,
            presigner=self.store,
            custody=MemoryCustody(),
            issuer_keys=IssuerKeys(),
            log=LogIdentity(origin=origin, vkey=note.vkey(origin, log_key.public_key()), sign=log_key.sign),
            token_keys=TokenKeys(current=token_key, kid="k1", accepted={"k1": token_key.jwk}),
            nonce_key=os.urandom(32),
            check_policy=wiring.check_policy,
            issuer=URL,
            public_urls=(URL,),
            store_hosts=("127.0.0.1:1",),
            **{"protected_changes": True, **settings},
        )
        founding.found(self.house, bundle=build_bundle(policy_files()), mode="dev")
        key = jose.PrivateKey.generate("EdDSA")
        founding.bind_first_key(self.house, "admin", key)
        self.admin = Person(id="user:admin", key=key, token="")
        self.admin.token = self.login(self.admin)

    def open_ledger(self) -> LedgerStore:
        return LedgerStore(
            open_engine(self.url),
            tree=wiring.MerkleRules(),
            integrity_key=self.integrity_key,
            clock=self.clock,
        )

    def with_settings(self, **changes: Any) -> House:
        self.house = replace(self.house, **changes)
        return self.house

    # -- moves ---------------------------------------------------------------------------------------------

    def uuid(self) -> str:
        return self.house.entropy.uuid()

    def request(
        self,
        who: Person,
        method: str = "POST",
        path: str = "/v1/test",
        *,
        body: bytes = b"",
        query: str = "",
        token: str | None = None,
    ) -> authn.SignedRequest:
        access_token = who.token if token is None else token
        made = proof.build_proof(
            key=who.key,
            method=method,
            url=URL + path,
            now=self.clock.now(),
            jti=b64url(os.urandom(16)),
            body=body,
            query=query or None,
            access_token=access_token or None,
            nonce=None,
        )
        return authn.SignedRequest(
            method=method,
            raw_path=path,
            query=query.encode(),
            body=body,
            proof=made,
            access_token=access_token or None,
            network="127.0.0.1",
        )

    def login(self, who: Person, details: list[Json] | None = None) -> str:
        assertion = token.build_assertion(
            key=who.key,
            principal=who.id,
            issuer=URL,
            now=self.clock.now(),
            jti=b64url(os.urandom(16)),
        )
        request = self.request(who, path="/oauth/token", token="")
        issued = tokens.issue(self.house, request, assertion=assertion, details=details or EVERYTHING)
        return issued.access_token

    # -- workloads -----------------------------------------------------------------------------------------

    def register(self, issuer: FakeIssuer, **changes: Any) -> Json:
        """An issuer is registered, with its present key as a static set."""
        fields: dict[str, Any] = {
            "name": issuer.name,
            "url": issuer.url,
            "kind": issuer.kind,
            "jwks": issuer.jwks(),
            "mapping": issuer.mapping(),
            **changes,
        }
        return issuers.put_issuer(
            self.house,
            self.request(self.admin),
            request_id=self.uuid(),
            wanted=issuers.IssuerRequest(**fields),
            have=None,
        )

    def remove(self, issuer: FakeIssuer) -> Json:
        return issuers.remove_issuer(
            self.house, self.request(self.admin), request_id=self.uuid(), name=issuer.name, have=None
        )

    def exchange(
        self, subject_token: str, *, key: jose.PrivateKey | None = None, details: list[Json] | None = None
    ) -> Person:
        """A job exchanges its own token; its key is made for it unless given."""
        job = Person(id="", key=key or jose.PrivateKey.generate("EdDSA"), token="")
        issued = exchange.exchange(
            self.house,
            self.request(job, path="/oauth/token", token=""),
            subject_token=subject_token,
            details=read_details() if details is None else details,
        )
        return Person(id=issued.principal, key=job.key, token=issued.access_token)

    def mint(
        self,
        who: Person,
        details: list[Json] | None = None,
        *,
        key: jose.PrivateKey | None = None,
        prover: jose.PrivateKey | None = None,
        **wanted: Any,
    ) -> Person:
        """Somebody mints from their token, for ``key`` if given, under a proof by ``prover`` if given."""
        issued = minting.mint(
            self.house,
            self.request(replace(who, key=prover or who.key), path="/oauth/token", token=""),
            subject_token=who.token,
            wanted=minting.MintRequest(
                details=read_details() if details is None else details,
                holder=None if key is None else key.jkt,
                **wanted,
            ),
        )
        return Person(id=issued.principal, key=key or who.key, token=issued.access_token)

    def token_row(self, who: Person) -> Token:
        """The row of somebody's token."""
        claims = parse_json_object(parse_b64url(who.token.split(".")[1]))
        with self.house.ledger.view() as view:
            row = view.find(Token, claims["jti"])
        assert row is not None
        return row

    def revoke(self, kind: str, id: str) -> Json:
        return revoking.revoke(
            self.house, self.request(self.admin), request_id=self.uuid(), kind=kind, id=id, have=None
        )

    def new_code(self, id: str, *, roles: Sequence[str] = (), groups: Sequence[str] = ()) -> str:
        """The one-time code of a principal that is added now."""
        made = people.add_principal(
            self.house,
            self.request(self.admin),
            request_id=self.uuid(),
            id=id,
            roles=list(roles),
            groups=list(groups),
            have=None,
        )
        return str(made["enrolment_code"])

    def add(self, id: str, *, roles: Sequence[str] = ("engineer",), groups: Sequence[str] = ()) -> Person:
        code = self.new_code(id, roles=roles, groups=groups)
        return self.enrol(id if ":" in id else f"user:{id}", code)

    def enrol(self, id: str, text: str, *, alg: str = "EdDSA") -> Person:
        key = jose.PrivateKey.generate(alg)
        code = codes.parse_code(text)
        mac = codes.enrolment_mac(
            codes.secret_hash(code.secret), jkt=key.jkt, url=URL, vkey=self.house.log.vkey
        )
        who = Person(id=id, key=key, token="")
        enrolment.enrol(
            self.house,
            self.request(who, path="/v1/enrolments", token=""),
            request_id=self.uuid(),
            id=code.id.hex(),
            mac=mac,
        )
        who.token = self.login(who)
        return who

    def publish(
        self,
        who: Person,
        ref: str,
        files: Mapping[str, bytes],
        *,
        labels: Mapping[str, str] | None = None,
        extent_size: int = MIB,
        kind: str = "checkpoint",
    ) -> Json:
        artifact, _, version = ref.partition("@")
        collection, _, name = artifact.partition("/")
        ordered = sorted(files.items(), key=lambda item: item[0].encode())
        recipient = seal.Recipient.generate()
        wanted = uploads.UploadRequest(
            request_id=self.uuid(),
            collection=collection,
            name=name,
            version=version,
            kind=kind,
            labels=dict(labels or {"tier": "standard"}),
            extent_size=extent_size,
            files=tuple((path, len(data)) for path, data in ordered),
            recipient=recipient.public_bytes,
        )
        begun = publish.begin(self.house, self.request(who), wanted)
        key = self.open_upload(who, begun, recipient)
        listed = [
            self._put_file(artifact, key, i, path, data, extent_size)
            for i, (path, data) in enumerate(ordered)
        ]
        made = manifest.Manifest(
            artifact=artifact,
            version=version,
            version_id=key.version_id,
            kind=kind,
            labels=dict(wanted.labels),
            extent_size=extent_size,
            files=tuple(listed),
        )
        data = manifest.manifest_bytes(made)
        return committing.commit(
            self.house,
            self.request(who),
            committing.CommitRequest(
                request_id=self.uuid(),
                upload=key.upload,
                manifest=data,
                signature=manifest.sign_manifest(data, who.key),
            ),
        )

    def open_upload(self, who: Person, begun: Json, recipient: seal.Recipient) -> leases.UploadKey:
        found = receipt.verify_receipt(begun["receipt"], self.house.log.vkey)
        info = seal.upload_info(
            upload=begun["upload"]["id"],
            leaf_hash=found.leaf_hash,
            jkt=who.key.jkt,
            recipient_digest=recipient.digest,
        )
        return leases.parse_upload_key(seal.open_sealed(parse_b64url(begun["sealed"]), recipient, info))

    def _put_file(
        self, artifact: str, key: leases.UploadKey, index: int, path: str, data: bytes, extent_size: int
    ) -> manifest.ManifestFile:
        pieces = [data[i : i + extent_size] for i in range(0, len(data), extent_size)]
        segments = [_segment_digests(piece) for piece in pieces]
        sealed = b"".join(
            stream.encrypt_extent(
                extents.extent_key(key.version_key, key.version_id, path, i),
                extents.associated_data(
                    artifact=artifact, version_id=key.version_id, path=path, extent=i, extents=len(pieces)
                ),
                piece,
                salt=os.urandom(32),
                nonce_prefix=os.urandom(7),
            )
            for i, piece in enumerate(pieces)
        )
        flat = b"".join(d for group in segments for d in group)
        if sealed:
            self.store.objects[releasing.object_name(key.version_id, index)] = sealed
        if extents.has_segments_object(len(data), extent_size):
            size = extents.segments_object_size(len(data), extent_size)
            self.store.objects[releasing.segments_name(key.version_id, index)] = bytes(size)
        return manifest.ManifestFile(
            path=path,
            size=len(data),
            sha256=hashlib.sha256(data).digest(),
            extents=tuple(digest.extent_digest(group) for group in segments),
            segments=hashlib.sha256(flat).digest(),
        )

    def grant_request(self, ref: str, **changes: Any) -> planning.GrantRequest:
        artifact, _, version = ref.partition("@")
        collection, _, name = artifact.partition("/")
        self.recipient = seal.Recipient.generate()
        fields: dict[str, Any] = {
            "request_id": self.uuid(),
            "collection": collection,
            "name": name,
            "version": version or None,
            "include": (),
            "exclude": (),
            "purpose": "test",
            "recipient": self.recipient.public_bytes,
            "extents": None,
            **changes,
        }
        return planning.GrantRequest(**fields)

    def ask(self, who: Person, ref: str, **changes: Any) -> access.Released:
        return access.ask(self.house, self.request(who), self.grant_request(ref, **changes))

    def lease(self, who: Person, grant: str, *runs: tuple[int, int, int], **changes: Any) -> access.Released:
        self.recipient = seal.Recipient.generate()
        fields: dict[str, Any] = {
            "request_id": self.uuid(),
            "grant": grant,
            "recipient": self.recipient.public_bytes,
            "extents": runs,
            **changes,
        }
        return access.lease(self.house, self.request(who), planning.LeaseRequest(**fields))

    def open_lease(self, who: Person, released: access.Released) -> leases.OpenLease:
        body = completing.released_json(released)
        found = receipt.verify_receipt(body["receipt"], self.house.log.vkey)
        info = seal.lease_info(
            grant=released.grant.id,
            number=body["lease"]["number"],
            leaf_hash=found.leaf_hash,
            jkt=who.key.jkt,
            recipient_digest=self.recipient.digest,
            expires_at=body["lease"]["expires_at"],
        )
        sealed = parse_b64url(body["lease"]["ciphertext"])
        return leases.parse_lease(seal.open_sealed(sealed, self.recipient, info))

    def size(self) -> int:
        with self.ledger.view() as view:
            return view.tail().size

    def entry(self, index: int) -> Json:
        from broker.ledger.entry import parse_entry

        with self.ledger.view() as view:
            return parse_entry(view.entry(index))
