"""The manifest: one byte form, strict parsing, signature, limits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from broker import jose, limits
from broker.canonical import canonical_bytes
from broker.envelope import manifest
from broker.envelope.manifest import Manifest, ManifestFile
from broker.errors import BrokerError, IntegrityFailure, InvalidRequest, TooLarge

EMPTY = hashlib.sha256(b"").digest()
KEY = jose.PrivateKey.generate()


def file(path: str, size: int = 1) -> ManifestFile:
    count = -(-size // limits.MIN_EXTENT_SIZE)
    found = EMPTY if size == 0 else bytes(32)
    return ManifestFile(path=path, size=size, sha256=found, extents=(bytes(32),) * count, segments=found)


def version(**changes: Any) -> Manifest:
    base = Manifest(
        artifact="acme/llama-7b",
        version="step-1000",
        version_id=bytes(range(16)),
        kind="checkpoint",
        labels={"tier": "standard"},
        extent_size=limits.MIN_EXTENT_SIZE,
        files=(file("a", 0), file("b/c", limits.MIB + 1)),
    )
    return dataclasses.replace(base, **changes)


def test_round_trip() -> None:
    data = manifest.manifest_bytes(version())
    found = manifest.parse_manifest(data)
    assert found == version()
    assert manifest.manifest_bytes(found) == data
    assert found.total_bytes == limits.MIB + 1
    assert found.total_extents == 2
    assert manifest.manifest_digest(data) == "sha256:" + hashlib.sha256(data).hexdigest()


def test_the_shape_of_the_json() -> None:
    value = json.loads(manifest.manifest_bytes(version()))
    assert value["schema"] == "broker/manifest/v1"
    assert value["cipher"] == "AES256_GCM_HKDF_1MB"
    assert value["version_id"] == "AAECAwQFBgcICQoLDA0ODw"
    assert value["files"][1] == {
        "path": "b/c",
        "size": limits.MIB + 1,
        "sha256": "0" * 64,
        "extents": ["0" * 64] * 2,
        "segments": "sha256:" + "0" * 64,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"artifact": "acme"},
        {"artifact": "acme/llama@v1"},
        {"version": "latest"},
        {"version": "sha256:" + "0" * 64},
        {"version_id": bytes(15)},
        {"kind": "model"},
        {"labels": {"tier": "*"}},
        {"extent_size": limits.MIN_EXTENT_SIZE - 1},
        {"extent_size": limits.MAX_EXTENT_SIZE + 1},
        {"files": ()},
        {"files": (file("b"), file("a"))},
        {"files": (file("a"), file("a"))},
        {"files": (file("A"), file("a"))},
        {"files": (file("a"), file("a/b"))},
        {"files": (file("../a"),)},
        {"files": (dataclasses.replace(file("a"), size=2**20 + 1),)},
        {"files": (dataclasses.replace(file("a"), sha256=bytes(31)),)},
        {"files": (dataclasses.replace(file("a"), extents=(bytes(33),)),)},
        {"files": (dataclasses.replace(file("a", 0), segments=bytes(32)),)},
        {"files": (file("a", 0), dataclasses.replace(file("b"), size=limits.MAX_FILE_SIZE + 1))},
    ],
)
def test_what_is_not_a_manifest_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        manifest.manifest_bytes(version(**changes))


def test_order_is_by_bytes_not_by_code_units() -> None:
    # U+FF5E is one UTF-16 unit above the surrogates of U+1F600, but its UTF-8 sorts before.
    files = (file("a\uff5e"), file("a\U0001f600"))
    assert manifest.parse_manifest(manifest.manifest_bytes(version(files=files))).files == files
    with pytest.raises(InvalidRequest):
        manifest.manifest_bytes(version(files=files[::-1]))


def test_labels_at_the_limit_and_one_past() -> None:
    labels = {f"l{n}": "x" for n in range(limits.MAX_LABELS)}
    manifest.manifest_bytes(version(labels=labels))
    with pytest.raises(TooLarge):
        manifest.manifest_bytes(version(labels={**labels, "more": "x"}))


def test_files_at_the_limit_and_one_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILES", 2)
    data = manifest.manifest_bytes(version())
    three = version(files=(*version().files, file("d")))
    with pytest.raises(TooLarge):
        manifest.manifest_bytes(three)
    monkeypatch.setattr(limits, "MAX_FILES", 1)
    with pytest.raises(TooLarge):
        manifest.parse_manifest(data)


def test_bytes_at_the_limit_and_one_past(monkeypatch: pytest.MonkeyPatch) -> None:
    data = manifest.manifest_bytes(version())
    monkeypatch.setattr(limits, "MAX_MANIFEST", len(data))
    manifest.parse_manifest(data)
    monkeypatch.setattr(limits, "MAX_MANIFEST", len(data) - 1)
    with pytest.raises(TooLarge):
        manifest.manifest_bytes(version())
    with pytest.raises(TooLarge):
        manifest.parse_manifest(data)


def test_total_bytes_at_the_limit_and_one_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VERSION_BYTES", limits.MIB + 1)
    manifest.manifest_bytes(version())
    monkeypatch.setattr(limits, "MAX_VERSION_BYTES", limits.MIB)
    with pytest.raises(TooLarge):
        manifest.manifest_bytes(version())


@pytest.mark.parametrize("member", sorted(json.loads(manifest.manifest_bytes(version()))))
@pytest.mark.parametrize("value", [None, 1.5, [], {"": 1}, "", True, [[]]])
def test_a_member_of_another_type_is_refused(member: str, value: Any) -> None:
    parsed = json.loads(manifest.manifest_bytes(version()))
    parsed[member] = value
    with pytest.raises(BrokerError) as caught:
        manifest.parse_manifest(canonical_bytes(parsed))
    assert caught.value.code in ("malformed", "invalid")


@pytest.mark.parametrize("member", ["path", "size", "sha256", "extents", "segments"])
@pytest.mark.parametrize("value", [None, 1.5, {}, "", True, [[]]])
def test_a_member_of_a_file_of_another_type_is_refused(member: str, value: Any) -> None:
    parsed = json.loads(manifest.manifest_bytes(version()))
    parsed["files"][1][member] = value
    with pytest.raises(BrokerError) as caught:
        manifest.parse_manifest(canonical_bytes(parsed))
    assert caught.value.code in ("malformed", "invalid")


def test_the_signature_holds_for_these_bytes_and_this_key_only() -> None:
    data = manifest.manifest_bytes(version())
    signature = manifest.sign_manifest(data, KEY)
    assert ".." in signature
    manifest.verify_manifest(data, signature, KEY.jwk)
    for other in (data + b" ", data[:-1], b""):
        with pytest.raises(IntegrityFailure):
            manifest.verify_manifest(other, signature, KEY.jwk)
    with pytest.raises(IntegrityFailure):
        manifest.verify_manifest(data, signature, jose.PrivateKey.generate().jwk)
    with pytest.raises(IntegrityFailure):
        manifest.verify_manifest(data, signature, jose.PrivateKey.generate("ES256").jwk)


@pytest.mark.parametrize("signature", ["", "..", "a.b.c", "a..b", "x" * 10_000])
def test_a_signature_of_another_form_is_refused(signature: str) -> None:
    with pytest.raises(IntegrityFailure):
        manifest.verify_manifest(manifest.manifest_bytes(version()), signature, KEY.jwk)


def test_I14_a_signature_of_another_kind_is_refused() -> None:
    data = manifest.manifest_bytes(version())
    other = jose.sign_detached(data, key=KEY, typ="broker-statement+jws")
    with pytest.raises(IntegrityFailure):
        manifest.verify_manifest(data, other, KEY.jwk)
