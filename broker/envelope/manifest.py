"""The manifest: the publisher's signed list of a version's files.

RFC 8785 JSON, identified by its SHA-256, with the publisher's detached JWS beside it. There is one byte
form for one meaning: a manifest that parses is exactly what :func:`manifest_bytes` writes.

In these classes every digest is its raw 32 bytes; the JSON has ``sha256:<hex>`` for ``segments`` and
plain hex for the others.

**Source**: ``docs/formats/manifest.md``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from broker import jose, limits, names
from broker.canonical import (
    Json,
    b64url,
    canonical_bytes,
    parse_b64url,
    parse_canonical,
    parse_digest,
    sha256_digest,
)
from broker.envelope import extents
from broker.envelope.extents import DIGEST_SIZE, VERSION_ID_SIZE
from broker.errors import IntegrityFailure, InvalidRequest, MalformedRequest, TooLarge
from broker.model import KINDS

SCHEMA: Final = "broker/manifest/v1"
CIPHER: Final = "AES256_GCM_HKDF_1MB"
SIGNATURE_TYPE: Final = "broker-manifest+jws"

_MEMBERS: Final = frozenset(
    {"schema", "artifact", "version", "version_id", "kind", "labels", "cipher", "extent_size", "files"}
)
_FILE_MEMBERS: Final = frozenset({"path", "size", "sha256", "extents", "segments"})
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_EMPTY_SHA256: Final = hashlib.sha256(b"").digest()


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """One file: its path, plaintext size in bytes, and digests (32 bytes each).

    Attributes:
        sha256: SHA-256 of the whole plaintext, for other tools.
        extents: The extent digests, in order; empty for an empty file.
        segments: SHA-256 of the file's segment list (the plaintext one), stored or not.
    """

    path: str
    size: int
    sha256: bytes
    extents: tuple[bytes, ...]
    segments: bytes


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A version as its publisher describes it; ``files`` ascend by the UTF-8 bytes of their path."""

    artifact: str
    version: str
    version_id: bytes
    kind: str
    labels: Mapping[str, str]
    extent_size: int
    files: tuple[ManifestFile, ...]

    @property
    def total_bytes(self) -> int:
        """Plaintext bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def total_extents(self) -> int:
        """Extents of all files."""
        return sum(len(file.extents) for file in self.files)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest's only byte form.

    Raises:
        InvalidRequest: A name, size, digest, label or the order of files is not as it must be.
        TooLarge: More than ``limits.MAX_MANIFEST`` bytes.
    """
    _check_manifest(manifest)
    data = canonical_bytes(
        {
            "schema": SCHEMA,
            "artifact": manifest.artifact,
            "version": manifest.version,
            "version_id": b64url(manifest.version_id),
            "kind": manifest.kind,
            "labels": dict(manifest.labels),
            "cipher": CIPHER,
            "extent_size": manifest.extent_size,
            "files": [_file_json(file) for file in manifest.files],
        }
    )
    _check_length(data)
    return data


def parse_manifest(data: bytes) -> Manifest:
    """The manifest that these bytes are the canonical form of.

    Raises:
        MalformedRequest: Not canonical JSON, or a value has another form.
        InvalidRequest: A member is unknown or missing, or a name, size, digest, label or the order of
            files is not as it must be.
        TooLarge: More than ``limits.MAX_MANIFEST`` bytes, or files.
    """
    _check_length(data)
    value = parse_canonical(data)
    _check_members(value, _MEMBERS, "a manifest")
    if value["schema"] != SCHEMA or value["cipher"] != CIPHER:
        raise InvalidRequest(f"a manifest is not of {SCHEMA} with {CIPHER}")
    labels = value["labels"]
    if not isinstance(labels, dict):
        raise MalformedRequest("the labels of a manifest are not an object")
    manifest = Manifest(
        artifact=_text(value["artifact"]),
        version=_text(value["version"]),
        version_id=parse_b64url(value["version_id"], size=VERSION_ID_SIZE),
        kind=_text(value["kind"]),
        labels={name: _text(label) for name, label in labels.items()},
        extent_size=_integer(value["extent_size"]),
        files=tuple(_parse_file(item) for item in _array(value["files"])),
    )
    _check_manifest(manifest)
    return manifest


def manifest_digest(data: bytes) -> str:
    """``sha256:<hex>`` of a manifest's bytes: the version's name that cannot be given twice."""
    return sha256_digest(data)


def sign_manifest(data: bytes, key: jose.PrivateKey) -> str:
    """The publisher's detached JWS over a manifest's bytes, ``typ: broker-manifest+jws``.

    Raises:
        IntegrityFailure: The key's record does not name this kind (I14).

    Source: RFC 7515 appendix F.
    """
    return jose.sign_detached(data, key=key, typ=SIGNATURE_TYPE)


def verify_manifest(data: bytes, signature: str, jwk: Mapping[str, Any]) -> None:
    """``signature`` is this key's, over exactly these bytes, as a manifest.

    That the key is the publisher's is for the caller to establish, from the version's commit entry.

    Raises:
        IntegrityFailure: It is not, or one of the two is malformed.

    Source: RFC 7515 appendix F.
    """
    try:
        jose.verify_detached(signature, data, jwk=jwk, typ=SIGNATURE_TYPE)
    except MalformedRequest as exc:
        raise IntegrityFailure("the signature of a manifest has the wrong form") from exc


# -- form -------------------------------------------------------------------------------------------


def _file_json(file: ManifestFile) -> Json:
    return {
        "path": file.path,
        "size": file.size,
        "sha256": file.sha256.hex(),
        "extents": [digest.hex() for digest in file.extents],
        "segments": "sha256:" + file.segments.hex(),
    }


def _parse_file(item: object) -> ManifestFile:
    if not isinstance(item, dict):
        raise MalformedRequest("a file of a manifest is not an object")
    _check_members(item, _FILE_MEMBERS, "a file of a manifest")
    return ManifestFile(
        path=_text(item["path"]),
        size=_integer(item["size"]),
        sha256=_parse_hex(item["sha256"]),
        extents=tuple(_parse_hex(digest) for digest in _array(item["extents"])),
        segments=parse_digest(item["segments"]),
    )


def _check_members(value: Json, expected: Iterable[str], what: str) -> None:
    if set(value) != set(expected):
        raise InvalidRequest(f"{what} has exactly the members {', '.join(sorted(expected))}")


def _parse_hex(text: object) -> bytes:
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise MalformedRequest("a digest of a manifest is not 64 lower-case hex digits")
    return bytes.fromhex(text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise MalformedRequest("a member of a manifest is not text")
    return value


def _integer(value: object) -> int:
    # JSON true is an int to Python, and 1.0 would be written back as 1.
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedRequest("a size in a manifest is not an integer")
    return value


def _array(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedRequest("a member of a manifest is not a list")
    return value


# -- meaning ----------------------------------------------------------------------------------------


def _check_length(data: bytes) -> None:
    if len(data) > limits.MAX_MANIFEST:
        raise TooLarge(f"a manifest has at most {limits.MAX_MANIFEST} bytes")


def _check_manifest(manifest: Manifest) -> None:
    names.parse_artifact(manifest.artifact)
    names.parse_version_name(manifest.version)
    if len(manifest.version_id) != VERSION_ID_SIZE or manifest.kind not in KINDS:
        raise InvalidRequest("a manifest has a version id of 16 bytes and a known kind")
    if len(manifest.labels) > limits.MAX_LABELS:
        raise TooLarge(f"a version has at most {limits.MAX_LABELS} labels")
    for name, label in manifest.labels.items():
        names.check_label(name, label)
    extents.check_extent_size(manifest.extent_size)
    _check_files(manifest)


def _check_files(manifest: Manifest) -> None:
    if not manifest.files:
        raise InvalidRequest("a version has at least one file")
    if len(manifest.files) > limits.MAX_FILES:
        raise TooLarge(f"a version has at most {limits.MAX_FILES} files")
    for file in manifest.files:
        _check_file(file, manifest.extent_size)
    if manifest.total_bytes > limits.MAX_VERSION_BYTES:
        raise TooLarge(f"a version has at most {limits.MAX_VERSION_BYTES} bytes")
    order = [file.path.encode("utf-8") for file in manifest.files]
    if any(before >= after for before, after in pairwise(order)):
        raise InvalidRequest("the files of a manifest do not ascend by the bytes of their path")
    names.check_distinct_paths(file.path for file in manifest.files)


def _check_file(file: ManifestFile, extent_size: int) -> None:
    names.parse_path(file.path)
    if len(file.extents) != extents.extent_count(file.size, extent_size):
        raise InvalidRequest("a file of a manifest has another number of extents than its size gives")
    digests = (file.sha256, file.segments, *file.extents)
    if any(len(digest) != DIGEST_SIZE for digest in digests):
        raise InvalidRequest("a digest of a manifest is not 32 bytes")
    if file.size == 0 and not file.sha256 == file.segments == _EMPTY_SHA256:
        raise InvalidRequest("an empty file of a manifest has the digests of other content")
