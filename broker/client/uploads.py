"""An upload as its publisher sees it: begun, its parts sent, committed (steps P1 to P6)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from broker import limits
from broker.canonical import Json, b64url, canonical_bytes, drop_absent, parse_b64url
from broker.client import private_files
from broker.client.grants import recipient_json
from broker.client.session import Session
from broker.client.settings import Profile
from broker.client.trust import LogMemory, check_entry
from broker.envelope import seal
from broker.envelope.lease import parse_upload_key
from broker.envelope.manifest import Manifest, manifest_bytes, manifest_digest, sign_manifest
from broker.errors import BrokerError, ConfigurationError, IntegrityFailure

FOLDER: Final = "uploads"
SEGMENTS: Final = 0
"""The part number under which the journal keeps a file's segment list."""
_SENT, _TAKEN = "sent", "taken"
_MAX_JOURNAL: Final = 256 * limits.MIB
MAX_URLS: Final = 1000
"""Parts for which URLs are asked for at once."""

Place = tuple[int, int]
"""(file index, part number from 1; 0 is the file's segment list)."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is published: everything that is fixed when an upload begins."""

    artifact: str
    version: str
    kind: str
    labels: Mapping[str, str]
    extent_size: int
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class OpenUpload:
    """An upload that was begun or taken up again, with the version key opened.

    Attributes:
        stored: What the store holds already.
    """

    id: str
    version_id: bytes
    version_key: bytes = field(repr=False)
    description: Description
    receipt_text: str
    stored: frozenset[Place]


@dataclass(frozen=True, kw_only=True)
class UploadUrl:
    """Where one part goes, and the headers that the URL's signature covers."""

    url: str = field(repr=False)
    headers: Mapping[str, str]


class UploadClient:
    """Uploads in one session, against one memory of the log."""

    def __init__(self, session: Session, log: LogMemory) -> None:
        self._session = session
        self._log = log

    def begin(self, wanted: Description) -> OpenUpload:
        """P1 to P3: ask, verify the receipt, open the version key.

        Raises:
            Denied, ApprovalNeeded, OverBudget: The recorded answer of the broker.
            Conflict: The version exists.
            IntegrityFailure: The receipt does not verify, is not for this request, or the key does not open.
        """
        recipient, have, request_id = seal.Recipient.generate(), self._log.have(), self._session.request_id()
        body = drop_absent(
            {
                "request_id": request_id,
                "artifact": wanted.artifact,
                "version": wanted.version,
                "kind": wanted.kind,
                "labels": dict(wanted.labels),
                "extent_size": wanted.extent_size,
                "files": [{"path": path, "size": size} for path, size in wanted.files],
                "recipient": recipient_json(recipient),
                "have": have,
            }
        )
        answer = self._session.write("POST", "/v1/uploads", body)
        verified = self._log.accept(
            answer.get("receipt"), have=have, consistency=answer.get("consistency", [])
        )
        upload = answer.get("upload")
        if not isinstance(upload, dict):
            raise IntegrityFailure("the answer carries no upload")
        check_entry(
            verified.entry,
            {
                "type": "publish",
                "action": "publish",
                "artifact": wanted.artifact,
                "version": wanted.version,
                "request_id": request_id,
                "recipient": recipient.digest,
                "jkt": self._session.jkt,
                "upload": upload.get("id"),
            },
        )
        id = str(upload["id"])
        info = seal.upload_info(
            upload=id,
            leaf_hash=verified.leaf_hash,
            jkt=self._session.jkt,
            recipient_digest=recipient.digest,
        )
        key = parse_upload_key(seal.open_sealed(_sealed(answer), recipient, info))
        if key.upload != id or upload.get("version_id") != b64url(key.version_id):
            raise IntegrityFailure("a version key that opened is for another upload")
        return OpenUpload(
            id=id,
            version_id=key.version_id,
            version_key=key.version_key,
            description=wanted,
            receipt_text=answer["receipt"],
            stored=self._stored(id),
        )

    def _stored(self, id: str) -> frozenset[Place]:
        status = self._session.get(f"/v1/uploads/{id}")
        parts = status.get("parts") or {}
        found = {(int(file), int(number)) for file, listed in parts.items() for number, _ in listed}
        found |= {(int(file), 1) for file in status.get("objects") or []}
        found |= {(int(file), SEGMENTS) for file in status.get("segments") or []}
        return frozenset(found)

    def urls(self, upload: OpenUpload, places: Sequence[Place]) -> dict[Place, UploadUrl]:
        """P4: presigned URLs for these parts, at most 1,000 at once."""
        body = {
            "request_id": self._session.request_id(),
            "parts": [[file, part] for file, part in places if part != SEGMENTS],
            "segments": [file for file, part in places if part == SEGMENTS],
        }
        answer = self._session.write("POST", f"/v1/uploads/{upload.id}/urls", body)
        listed = [*((item, item.get("part")) for item in answer.get("urls") or [])]
        listed += [(item, SEGMENTS) for item in answer.get("segments") or []]
        found = {
            (item.get("file"), part): UploadUrl(url=str(item.get("url")), headers=_headers(item))
            for item, part in listed
        }
        if set(found) != set(places):
            raise IntegrityFailure("the broker answered with URLs for other parts than were asked for")
        return found

    def commit(self, upload: OpenUpload, manifest: Manifest, profile: Profile) -> tuple[Json, str]:
        """P5 and P6: sign the manifest, make the version visible; (version, receipt).

        Raises:
            Conflict: The upload ended meanwhile, or the version exists.
            IntegrityFailure: The receipt does not verify, or is for another manifest.
        """
        body = manifest_bytes(manifest)
        have, request_id = self._log.have(), self._session.request_id()
        request = drop_absent(
            {
                "request_id": request_id,
                "manifest": b64url(body),
                "signature": sign_manifest(body, profile.key),
                "have": have,
            }
        )
        answer = self._session.write("POST", f"/v1/uploads/{upload.id}/commit", request)
        text = answer.get("receipt")
        verified = self._log.accept(text, have=have, consistency=answer.get("consistency", []))
        check_entry(
            verified.entry,
            {
                "type": "commit",
                "artifact": manifest.artifact,
                "version": manifest.version,
                "manifest": manifest_digest(body),
                "publisher": self._session.jkt,
                "version_id": b64url(upload.version_id),
                "labels": dict(manifest.labels),
            },
        )
        return answer.get("version") or {}, str(text)

    def abandon(self, upload: OpenUpload) -> None:
        """Give the upload up; its objects are swept."""
        body = {"request_id": self._session.request_id()}
        self._session.write("DELETE", f"/v1/uploads/{upload.id}", body)


def _sealed(answer: Json) -> bytes:
    try:
        return parse_b64url(answer["sealed"])
    except (KeyError, BrokerError) as exc:
        raise IntegrityFailure("the answer carries no sealed version key") from exc


def _headers(item: Mapping[str, Any]) -> dict[str, str]:
    found = item.get("headers")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


class UploadJournal:
    """Which content went into which part of an upload, kept until the commit.

    It is kept in the profile. A job that can write nothing keeps it in memory: what it began ends with it.

    A line is written *before* a part is sent, and another after the store took it. A part that the store
    holds counts as done only if everything that may have been sent for it since was made from the very
    bytes that the file has now; the store alone cannot say that, because what it holds is encrypted.

    Raises:
        ConfigurationError: The profile's folder cannot be written.
    """

    def __init__(self, profile: Profile, upload: str) -> None:
        self._sent: dict[Place, set[str]] = {}
        self._file: tuple[Path, int] | None = None
        if profile.state is not None:
            path = profile.state / FOLDER / f"{upload}.jsonl"
            for event, place, content in self._read(path):
                self._note(event, place, content)
            self._file = (path, self._open(path))

    def _open(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)
        except OSError as exc:
            raise ConfigurationError(f"cannot write {path}", why=exc.strerror) from exc

    def _read(self, path: Path) -> Iterator[tuple[str, Place, str]]:
        data = private_files.find_file(path, private=True, most=_MAX_JOURNAL) or b""
        for line in data.split(b"\n")[:-1]:
            try:
                event, file, part, content = json.loads(line)
                yield str(event), (int(file), int(part)), str(content)
            except (ValueError, TypeError):
                continue  # a line that a crash cut off says nothing

    def _note(self, event: str, place: Place, content: str) -> None:
        if event == _TAKEN:
            self._sent[place] = {content}
        else:
            self._sent.setdefault(place, set()).add(content)

    def holds(self, place: Place, content: bytes) -> bool:
        """Whether, if the store holds this part, it was made from this content (a digest)."""
        return self._sent.get(place) == {content.hex()}

    def begin(self, place: Place, content: bytes) -> None:
        """This part is about to be sent, made from this content."""
        self._add(_SENT, place, content)

    def finish(self, place: Place, content: bytes) -> None:
        """The store took it."""
        self._add(_TAKEN, place, content)

    def _add(self, event: str, place: Place, content: bytes) -> None:
        if self._file is not None:
            path, fd = self._file
            try:
                os.write(fd, canonical_bytes([event, *place, content.hex()]) + b"\n")
            except OSError as exc:
                raise ConfigurationError(f"cannot write {path}", why=exc.strerror) from exc
        self._note(event, place, content.hex())

    def close(self, *, done: bool) -> None:
        """Close it; remove it when the upload is committed or given up."""
        if self._file is None:
            return
        path, fd = self._file
        os.close(fd)
        if done:
            path.unlink(missing_ok=True)
