"""What somebody wants to publish, and the rules that its description must pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker import limits, names
from broker.canonical import Json, canonical_bytes
from broker.envelope import seal
from broker.errors import InvalidRequest
from broker.model import (
    KINDS,
)
from broker.services.record import digest_of


@dataclass(frozen=True, kw_only=True)
class UploadRequest:
    """P1: what somebody wants to publish; the names have passed their grammar."""

    request_id: str
    collection: str
    name: str
    version: str
    kind: str
    labels: Mapping[str, str]
    extent_size: int
    files: tuple[tuple[str, int], ...]
    recipient: bytes
    have: str | None = None

    @property
    def artifact(self) -> str:
        """``collection/name``."""
        return f"{self.collection}/{self.name}"

    def content(self) -> Json:
        """What makes two requests the same upload: all but who asks, when, and whom it is sealed to."""
        return {
            "artifact": self.artifact,
            "version": self.version,
            "kind": self.kind,
            "labels": dict(self.labels),
            "extent_size": self.extent_size,
            "files": [list(file) for file in self.files],
        }

    def body_digest(self) -> bytes:
        """What a retry must repeat."""
        return digest_of(canonical_bytes({**self.content(), "to": seal.recipient_digest(self.recipient)}))


def check_description(wanted: UploadRequest) -> None:
    """Kind, labels, extent size and list of files are within their rules.

    Raises:
        InvalidRequest: One of them is not; the message names it.
    """
    if wanted.kind not in KINDS:
        raise InvalidRequest(f"kind is {' or '.join(KINDS)}")
    if len(wanted.labels) > limits.MAX_LABELS:
        raise InvalidRequest(f"more than {limits.MAX_LABELS} labels")
    for key, value in wanted.labels.items():
        names.check_label(key, value)
    if "tier" not in wanted.labels:
        raise InvalidRequest("a version needs the label tier", next="--label tier=standard")
    if not limits.MIN_EXTENT_SIZE <= wanted.extent_size <= limits.MAX_EXTENT_SIZE:
        raise InvalidRequest("extent_size is from 1 MiB to 1 GiB")
    if wanted.extent_size % limits.SEGMENT_SIZE:
        raise InvalidRequest("extent_size is a whole number of MiB")
    if not 1 <= len(wanted.files) <= limits.MAX_FILES:
        raise InvalidRequest(f"a version has 1 to {limits.MAX_FILES} files")
    for path, size in wanted.files:
        names.parse_path(path)
        if not 0 <= size <= limits.MAX_FILE_SIZE:
            raise InvalidRequest(f"a file is larger than {limits.MAX_FILE_SIZE} bytes")
    paths = [path for path, _ in wanted.files]
    if sorted(paths, key=lambda path: path.encode()) != paths:
        raise InvalidRequest("files are not sorted by the bytes of their path")
    names.check_distinct_paths(paths)
    if sum(size for _, size in wanted.files) > limits.MAX_VERSION_BYTES:
        raise InvalidRequest("the version is too large")
