"""``ls`` and ``info``: what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.output import Column, fields, size_text, time_text

if TYPE_CHECKING:
    from broker.client.versions import TrustedVersion

_ARTIFACTS = (
    Column(name="artifact", title="ARTIFACT"),
    Column(name="kind", title="KIND"),
    Column(name="versions", title="VERSIONS", right=True),
    Column(name="newest", title="NEWEST", shrink=True),
    Column(name="bytes", title="SIZE", right=True, show=lambda n: "" if n is None else size_text(n)),
)
_VERSIONS = (
    Column(name="version", title="VERSION"),
    Column(name="files", title="FILES", right=True),
    Column(name="bytes", title="SIZE", right=True, show=size_text),
    Column(name="committed_at", title="COMMITTED", show=time_text),
    Column(name="publisher", title="PUBLISHER", shrink=True),
    Column(name="labels", title="LABELS", shrink=True),
)
FILES = (
    Column(name="size", title="SIZE", right=True, show=size_text),
    Column(name="sha256", title="SHA-256", shrink=True),
    Column(name="path", title="PATH"),
)
_ARTIFACT_MEMBERS = ("artifact", "kind", "versions", "newest", "files", "bytes")
VERSION_MEMBERS = (
    "artifact",
    "version",
    "manifest",
    "kind",
    "labels",
    "files",
    "bytes",
    "publisher",
    "committed_at",
    "entry",
)
FILE_MEMBERS = ("path", "size", "sha256")


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker ls",
        "broker ls acme",
        "broker ls acme/llama-7b",
        "broker ls acme/llama-7b@step-1000 -o json",
    ),
)
@click.argument("ref", required=False)
@click.pass_obj
def ls(call: Invocation, ref: str | None) -> None:
    """List artifacts, the versions of one, or the files of a version.

    Without REF all artifacts that you may see; COLLECTION those of a collection; COLLECTION/NAME its
    versions, oldest first; with a version (and a path) the files that its publisher signed.
    """
    text = None if ref is None else ref.removeprefix("broker://").rstrip("/")
    if text is None or "/" not in text:
        call.out.rows(
            call.client.ls(text),
            _ARTIFACTS,
            whole=lambda rows: {"artifacts": rows},
            members=_ARTIFACT_MEMBERS,
            empty="no artifact that you may see",
        )
        return
    from broker.names import parse_ref

    parsed = parse_ref(text)
    if parsed.version is None and parsed.path is None:
        call.out.rows(
            call.client.ls(text),
            _VERSIONS,
            whole=lambda rows: {"artifact": parsed.artifact, "versions": rows},
            members=VERSION_MEMBERS,
            empty="no version is committed yet",
        )
        return
    version = call.client.info(parsed)
    call.out.rows(
        select_files(version, parsed.path),
        FILES,
        whole=lambda rows: {**version_record(version), "files": rows},
        members=FILE_MEMBERS,
        empty="no such file",
    )


@click.command(
    cls=BrokerCommand,
    examples=("broker info acme/llama-7b", "broker info acme/llama-7b@step-1000 --json"),
)
@click.argument("ref")
@click.pass_obj
def info(call: Invocation, ref: str) -> None:
    """Show a version (the newest without one), or a file of it; its trust path is verified first.

    Verified means: the publisher signed the manifest, their key is bound to them in the ledger, and the
    ledger is the one that this profile knows.
    """
    from broker.names import parse_ref

    parsed = parse_ref(ref)
    version = call.client.info(parsed)
    found = version_record(version)
    if parsed.path is not None:
        [file, *_] = select_files(version, parsed.path)
        found = {**{name: found[name] for name in ("artifact", "version", "manifest")}, **file}
    else:
        found["extent_size"] = version.manifest.extent_size
    shown = {**found, "verified": "the publisher's signature, and their key's entry in the ledger"}
    for name in ("bytes", "size", "extent_size"):
        if name in shown:
            shown[name] = f"{size_text(shown[name])} ({shown[name]} bytes)"
    call.out.record({**found, "verified": True}, fields(shown.items()))


def version_record(version: TrustedVersion) -> dict[str, Any]:
    """A version in the shape that the API has for it, every member from what was verified."""
    manifest, entry = version.manifest, version.commit.entry
    return {
        "artifact": manifest.artifact,
        "version": manifest.version,
        "manifest": version.digest,
        "kind": manifest.kind,
        "labels": dict(manifest.labels),
        "files": len(manifest.files),
        "bytes": manifest.total_bytes,
        "publisher": version.publisher,
        "committed_at": entry["time"],
        "entry": version.commit.index,
    }


def select_files(
    version: TrustedVersion, path: str | None, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The files of a version that a path (a file, or a folder) and patterns select.

    Raises:
        NotFound: None.
    """
    from broker.client.versions import include_of, selected_files
    from broker.errors import NotFound
    from broker.names import Ref, parse_artifact

    collection, name = parse_artifact(version.manifest.artifact)
    ref = Ref(collection=collection, name=name, path=path)
    chosen = selected_files(version.manifest, include_of(ref, include), exclude)
    if not chosen:
        raise NotFound(f"no file of {version.ref} matches", next=f"broker ls {version.ref}")
    files = (version.manifest.files[at] for at in chosen)
    return [{"path": file.path, "size": file.size, "sha256": file.sha256.hex()} for file in files]
