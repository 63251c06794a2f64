"""The vectors of ``docs/formats``, against the code and against a second, plain implementation.

The second implementation below shares nothing with the first but AES-GCM, BLAKE3, ML-KEM and X25519
themselves: HKDF, the stream, the KEM combiner and the HPKE key schedule are written out from their
specifications.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker import jose
from broker.canonical import parse_b64url
from broker.envelope import digest, extents, lease, manifest, reader, seal, stream, wrap
from broker.errors import BrokerError

FOLDER = Path(__file__).parents[2] / "docs" / "formats" / "vectors"


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


EXTENT, MANIFEST, LEASE = load("extent.json"), load("manifest.json"), load("lease.json")
VERSION_KEY, VERSION_ID = bytes.fromhex(EXTENT["version_key"]), bytes.fromhex(EXTENT["version_id"])


def shake(text: str, size: int) -> bytes:
    return hashlib.shake_256(text.encode()).digest(size)


# -- the second implementation ------------------------------------------------------------------------


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def hkdf_expand(prk: bytes, info: bytes, size: int) -> bytes:
    found, block = b"", b""
    while len(found) < size:
        block = hmac.digest(prk, block + info + bytes([len(found) // 32 + 1]), "sha256")
        found += block
    return found[:size]


def plain_stream(key: bytes, ad: bytes, salt: bytes, prefix: bytes, plaintext: bytes) -> bytes:
    """Tink's description, literally: a ciphertext in 1 MiB pieces of which the header is a part."""
    cipher = AESGCM(hkdf_expand(hkdf_extract(salt, key), ad, 32))
    found, rest, counter, room = bytes([40]) + salt + prefix, plaintext, 0, 2**20 - 40 - 16
    while True:
        piece, rest = rest[:room], rest[room:]
        nonce = prefix + counter.to_bytes(4, "big") + (b"\x00" if rest else b"\x01")
        found += cipher.encrypt(nonce, piece, None)
        if not rest:
            return found
        counter, room = counter + 1, 2**20 - 16


def plain_digests(plaintext: bytes) -> list[bytes]:
    found, room = [], 2**20 - 40 - 16
    while plaintext:
        found.append(blake3(plaintext[:room]).digest())
        plaintext, room = plaintext[room:], 2**20 - 16
    return found


def hpke_open(sealed: bytes, lattice: Any, curve: Any, info: bytes) -> bytes:
    """RFC 9180 base mode, with the KEM of draft-connolly-cfrg-xwing-kem."""
    enc, ciphertext = sealed[:1120], sealed[1120:]
    curve_public = curve.public_key().public_bytes_raw()
    inner = lattice.decapsulate(enc[:1088])
    outer = curve.exchange(x25519.X25519PublicKey.from_public_bytes(enc[1088:]))
    label = rb"\.//^\ "[:-1]
    secret = hashlib.sha3_256(inner + outer + enc[1088:] + curve_public + label).digest()
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, name: bytes, ikm: bytes) -> bytes:
        return hkdf_extract(salt, b"HPKE-v1" + suite + name + ikm)

    def expand(prk: bytes, name: bytes, context: bytes, size: int) -> bytes:
        return hkdf_expand(prk, size.to_bytes(2, "big") + b"HPKE-v1" + suite + name + context, size)

    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    schedule = extract(secret, b"secret", b"")
    key, nonce = expand(schedule, b"key", context, 32), expand(schedule, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, None)


def xwing_keys(seed: str) -> tuple[mlkem.MLKEM768PrivateKey, x25519.X25519PrivateKey]:
    expanded = hashlib.shake_256(bytes.fromhex(seed)).digest(96)
    return (
        mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        x25519.X25519PrivateKey.from_private_bytes(expanded[64:]),
    )


# -- extents ------------------------------------------------------------------------------------------

named = pytest.mark.parametrize("case", EXTENT["extents"], ids=lambda case: case["name"])


@named
def test_keys_and_associated_data(case: Any) -> None:
    path = case["path"].encode()
    info = b"broker/extent/v1" + len(path).to_bytes(2, "big") + path + case["extent"].to_bytes(4, "big")
    plain_key = hkdf_expand(hkdf_extract(VERSION_ID, VERSION_KEY), info, 32)
    key = extents.extent_key(VERSION_KEY, VERSION_ID, case["path"], case["extent"])
    assert key.hex() == plain_key.hex() == case["extent_key"]
    members = {
        "artifact": EXTENT["artifact"],
        "extent": case["extent"],
        "extents": case["extents"],
        "path": case["path"],
        "version_id": "weiV0xdHHLhJc4YTRMVEQA",
    }
    text = json.dumps(members, separators=(",", ":"), ensure_ascii=False)
    place = {name: value for name, value in members.items() if name != "version_id"}
    bound = extents.associated_data(**place, version_id=VERSION_ID)
    assert bound.hex() == hashlib.sha256(text.encode()).hexdigest() == case["associated_data"]


@named
def test_ciphertexts(case: Any) -> None:
    plaintext = shake(case["plaintext_shake256_of"], case["plaintext_size"])
    key, bound, salt, prefix = (
        bytes.fromhex(case[name]) for name in ("extent_key", "associated_data", "salt", "nonce_prefix")
    )
    ours = stream.encrypt_extent(key, bound, plaintext, salt=salt, nonce_prefix=prefix)
    assert ours == plain_stream(key, bound, salt, prefix, plaintext)
    assert hashlib.sha256(ours).hexdigest() == case["ciphertext_sha256"]
    assert ours.hex() == case.get("ciphertext", ours.hex())
    expected = bytes.fromhex(case["extent_digest"])
    size = case["plaintext_size"]
    assert reader.open_extent(key, bound, ours, plaintext_size=size, extent_digest=expected) == plaintext


@named
def test_digests(case: Any) -> None:
    plaintext = shake(case["plaintext_shake256_of"], case["plaintext_size"])
    digests = plain_digests(plaintext)
    assert [found.hex() for found in digests] == case["segment_digests"]
    message = len(digests).to_bytes(4, "big") + b"".join(digests)
    whole = blake3(message, derive_key_context="broker extent digest v1").digest()
    assert digest.extent_digest(digests).hex() == whole.hex() == case["extent_digest"]


@named
def test_places_in_the_object(case: Any) -> None:
    place = (case["size"], case["extent_size"], case["extent"])
    assert list(extents.extent_range(*place)) == case["object_range"]
    assert extents.extent_plaintext_size(*place) == case["plaintext_size"]
    assert extents.extent_count(*place[:2]) == case["extents"]


@pytest.mark.parametrize("case", EXTENT["sizes"], ids=lambda case: f"{case['size']}/{case['extent_size']}")
def test_sizes(case: Any) -> None:
    place = (case["size"], case["extent_size"])
    assert extents.extent_count(*place) == case["extents"]
    assert extents.object_size(*place) == case["object_size"]
    assert extents.file_segment_count(*place) == case["segments"]
    assert extents.segments_object_size(*place) == case["segments_object_size"]


def test_the_segment_list() -> None:
    case = EXTENT["segment_list"]
    digests = [bytes.fromhex(found) for found in case["digests"]]
    assert extents.file_segment_count(case["size"], case["extent_size"]) == len(digests)
    path = case["path"].encode()
    info = b"broker/segments/v1" + len(path).to_bytes(2, "big") + path
    plain_key = hkdf_expand(hkdf_extract(VERSION_ID, VERSION_KEY), info, 32)
    key = extents.segments_key(VERSION_KEY, VERSION_ID, case["path"])
    assert key.hex() == plain_key.hex() == case["key"]
    bound = extents.segments_associated_data(
        artifact=EXTENT["artifact"], version_id=VERSION_ID, path=case["path"], segments=len(digests)
    )
    assert bound.hex() == case["associated_data"]
    salt, prefix = bytes.fromhex(case["salt"]), bytes.fromhex(case["nonce_prefix"])
    sealed = plain_stream(key, bound, salt, prefix, b"".join(digests))
    assert sealed.hex() == case["object"]
    assert len(sealed) == extents.segments_object_size(case["size"], case["extent_size"])
    opened = stream.decrypt_extent(key, bound, sealed, plaintext_size=32 * len(digests))
    assert digest.parse_segment_list(opened, len(digests)) == digests


@pytest.mark.parametrize("case", EXTENT["wraps"], ids=lambda case: case["use"])
def test_wraps(case: Any) -> None:
    given = {name: value for name, value in case.items() if name != "aad"}
    found = wrap.wrap_aad(version_id=VERSION_ID, artifact=EXTENT["artifact"], **given)
    assert found.decode() == case["aad"]


# -- manifests ----------------------------------------------------------------------------------------


def test_the_manifest() -> None:
    data = MANIFEST["manifest"].encode()
    found = manifest.parse_manifest(data)
    assert manifest.manifest_bytes(found) == data
    assert (
        "sha256:" + hashlib.sha256(data).hexdigest() == manifest.manifest_digest(data) == MANIFEST["digest"]
    )
    key = jose.PrivateKey.from_jwk(MANIFEST["publisher"])
    manifest.verify_manifest(data, MANIFEST["signature"], key.jwk)
    # Ed25519 signatures are deterministic.
    assert manifest.sign_manifest(data, key) == MANIFEST["signature"]


def test_the_digests_in_the_manifest_are_those_of_its_files() -> None:
    found = manifest.parse_manifest(MANIFEST["manifest"].encode())
    for file in found.files:
        plaintext = shake("file " + file.path, file.size)
        cuts = [plaintext[at : at + found.extent_size] for at in range(0, file.size, found.extent_size)]
        lists = [plain_digests(cut) for cut in cuts]
        assert file.sha256 == hashlib.sha256(plaintext).digest()
        assert file.extents == tuple(digest.extent_digest(segments) for segments in lists)
        assert file.segments == hashlib.sha256(b"".join(b"".join(segments) for segments in lists)).digest()


@pytest.mark.parametrize("case", MANIFEST["refused"], ids=lambda case: case["name"])
def test_refused_manifests(case: Any) -> None:
    with pytest.raises(BrokerError) as caught:
        manifest.parse_manifest(case["manifest"].encode())
    assert caught.value.code in ("malformed", "invalid")


# -- leases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LEASE["recipients"], ids=lambda case: case["xwing_seed"][:8])
def test_public_keys_have_the_layout_of_xwing(case: Any) -> None:
    public = seal.Recipient(*xwing_keys(case["xwing_seed"])).public_bytes
    assert public.hex().startswith(case["public_key_begins"])
    assert public.hex().endswith(case["public_key_ends"])


@pytest.mark.parametrize("kind", ["lease", "lease_spans", "upload"])
def test_sealed_answers(kind: str) -> None:
    case = LEASE[kind]
    build = seal.upload_info if kind == "upload" else seal.lease_info
    info = build(**{**case["info_parts"], "leaf_hash": bytes.fromhex(case["info_parts"]["leaf_hash"])})
    assert info.hex() == case["info"]
    keys = xwing_keys(LEASE["recipients"][0]["xwing_seed"])
    sealed = parse_b64url(case["sealed"])
    opened = seal.open_sealed(sealed, seal.Recipient(*keys), info)
    assert opened == hpke_open(sealed, *keys, info) == case["plaintext"].encode()


def test_the_second_implementation_opens_what_is_sealed_now() -> None:
    lattice, curve = mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    sealed = seal.seal(b"fresh", seal.Recipient(lattice, curve).public_bytes, b"info")
    assert hpke_open(sealed, lattice, curve, b"info") == b"fresh"


def test_the_plaintexts_parse() -> None:
    for kind in ("lease", "lease_spans"):
        opened = lease.parse_lease(LEASE[kind]["plaintext"].encode())
        assert lease.lease_bytes(opened).decode() == LEASE[kind]["plaintext"]
        assert opened.files[-1].segments is not None
    upload = lease.parse_upload_key(LEASE["upload"]["plaintext"].encode())
    assert (upload.version_id, upload.version_key) == (VERSION_ID, VERSION_KEY)
