"""The trust path of a manifest: why a reader believes a list of files (I20).

1. the receipt of the version's commit verifies under the pinned log key, and so does the receipt of the
   entry that bound the publisher's key, both under one tree head that extends what was seen;
2. the commit entry names exactly this manifest, artifact and version;
3. the binding entry is the one that the commit names, and binds the publisher's key to the publisher;
4. the manifest's signature is by that key;
5. the manifest's own artifact, version, id, kind and labels are those of the commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from broker import jose, limits, names
from broker.canonical import Json, b64url, parse_b64url
from broker.client.session import Session
from broker.client.trust import LogMemory, check_entry
from broker.envelope.manifest import Manifest, manifest_digest, parse_manifest, verify_manifest
from broker.errors import BrokerError, IntegrityFailure, MalformedRequest
from broker.ledger.receipt import VerifiedReceipt
from broker.names import Ref

MAX_MANIFEST_ANSWER: Final = 2 * limits.MAX_MANIFEST
"""Base64 of the largest manifest, its receipts, and room."""
NEWEST: Final = "-"


@dataclass(frozen=True, kw_only=True)
class TrustedVersion:
    """A version whose manifest went through its whole trust path.

    Attributes:
        digest: The manifest's digest, ``sha256:<hex>``.
        body: Its exact bytes.
        publisher: Principal who published it.
        commit: The receipt of the entry that made it visible.
    """

    manifest: Manifest
    digest: str
    body: bytes
    signature: str
    publisher: str
    commit: VerifiedReceipt

    @property
    def ref(self) -> str:
        """``collection/name@version``."""
        return f"{self.manifest.artifact}@{self.manifest.version}"


def fetch_version(session: Session, log: LogMemory, ref: Ref) -> TrustedVersion:
    """The version that a reference names (the newest without one), with its trust path verified.

    Raises:
        NotFound: It does not exist, or is not visible.
        IntegrityFailure: A step of the trust path does not hold, or it is another version.
    """
    path = f"/v1/artifacts/{ref.artifact}/versions/{ref.version or NEWEST}/manifest"
    answer = session.get(path, max_size=MAX_MANIFEST_ANSWER)
    found = verify_version(answer, log)
    check_asked(ref, artifact=found.manifest.artifact, version=found.manifest.version, digest=found.digest)
    return found


def check_asked(ref: Ref, *, artifact: str, version: Any, digest: Any) -> None:
    """What came is the artifact and version that was asked for.

    Raises:
        IntegrityFailure: It is another.
    """
    asked = ref.version
    same = asked is None or asked == (digest if asked.startswith("sha256:") else version)
    if artifact != ref.artifact or not same:
        raise IntegrityFailure("the answer is about another artifact or version than was asked for")


def verify_version(answer: Json, log: LogMemory) -> TrustedVersion:
    """Steps 1 to 5 over an answer of ``GET .../manifest``.

    Raises:
        IntegrityFailure: One of them does not hold.
        RollbackDetected: The tree head does not extend what was seen.
    """
    body, signature = _parts(answer)
    commit, binding = log.accept(answer.get("commit")), log.accept(answer.get("binding"))
    if commit.head != binding.head:  # 1
        raise IntegrityFailure("the two receipts of a version are under different tree heads")
    try:
        manifest = parse_manifest(body)
    except BrokerError as exc:
        raise IntegrityFailure("a manifest does not have the form of one", why=exc.what) from exc
    digest = manifest_digest(body)
    _check_commit(commit.entry, manifest, digest)  # 2, 5
    _check_binding(commit.entry, binding)  # 3
    verify_manifest(body, signature, binding.entry["key"]["jwk"])  # 4
    return TrustedVersion(
        manifest=manifest,
        digest=digest,
        body=body,
        signature=signature,
        publisher=commit.entry["principal"],
        commit=commit,
    )


def _parts(answer: Json) -> tuple[bytes, str]:
    body, signature = answer.get("manifest"), answer.get("signature")
    if not isinstance(body, str) or not isinstance(signature, str):
        raise IntegrityFailure("the answer carries no signed manifest")
    try:
        return parse_b64url(body), signature
    except MalformedRequest as exc:
        raise IntegrityFailure("a manifest is not base64url") from exc


def _check_commit(entry: Json, manifest: Manifest, digest: str) -> None:
    check_entry(
        entry,
        {
            "type": "commit",
            "artifact": manifest.artifact,
            "version": manifest.version,
            "manifest": digest,
            "version_id": b64url(manifest.version_id),
            "labels": dict(manifest.labels),
        },
    )


def _check_binding(commit: Json, binding: VerifiedReceipt) -> None:
    if binding.index != commit.get("publisher_binding"):
        raise IntegrityFailure("a version's publisher key was bound by another entry")
    check_entry(binding.entry, {"type": "enrolment", "principal": commit["principal"]})
    key = binding.entry["key"]
    if jose.thumbprint(key["jwk"]) != commit.get("publisher") or key["jkt"] != commit.get("publisher"):
        raise IntegrityFailure("a version was signed by another key than its commit names")


# -- selections ---------------------------------------------------------------------------------------


def include_of(ref: Ref, include: tuple[str, ...]) -> tuple[str, ...]:
    """The include patterns of a reference: its path (a file, or all below a folder), or those given.

    Raises:
        InvalidRequest: A pattern is not valid.
    """
    if ref.path is not None:
        literal = literal_glob(ref.path)
        return (literal, f"{literal}/**")
    for pattern in include:
        names.parse_glob(pattern)
    return include


def literal_glob(path: str) -> str:
    """A pattern that matches this path: characters with a meaning of their own stand as ``?``."""
    return "".join("?" if ch in "*?[" else ch for ch in path)


def selected_files(manifest: Manifest, include: tuple[str, ...], exclude: tuple[str, ...]) -> tuple[int, ...]:
    """Indices of the selected files, ascending; the broker's own rule, applied to the signed manifest."""
    paths = (file.path for file in manifest.files)
    return tuple(names.select_paths(paths, include=include, exclude=exclude))


def file_index(manifest: Manifest, path: str) -> int | None:
    """Index of the file of that path, if there is one."""
    return next((at for at, file in enumerate(manifest.files) if file.path == path), None)
