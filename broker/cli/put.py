"""``put``: publish a file or folder as a new version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.bars import Meter
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import jobs_option, read_size
from broker.cli.output import Column, counted, safe, size_text

if TYPE_CHECKING:
    from broker.client.publish import Published
    from broker.names import Ref

_KINDS = ("checkpoint", "dataset")
_LOCAL = (
    Column(name="size", title="SIZE", right=True, show=size_text),
    Column(name="path", title="PATH"),
)


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker put ./ckpt acme/llama-7b@step-1000",
        "broker put ./corpus acme/web-text@2026-11 --kind dataset",
        "broker put ./ckpt acme/llama-7b@final --label tier=critical --label run=42",
        "broker put ./ckpt acme/llama-7b@step-1000 --dry-run",
    ),
)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("ref")
@click.option("--kind", type=click.Choice(_KINDS), default=_KINDS[0], show_default=True, help="What it is.")
@click.option(
    "--label",
    "labels",
    metavar="K=V",
    multiple=True,
    help="A label that policy relies on; may be repeated. tier=standard unless a tier is given.",
)
@click.option(
    "--extent-size",
    callback=read_size,
    metavar="SIZE",
    default="32MiB",
    show_default=True,
    help="Bytes that are encrypted, fetched and revoked as one; a whole number of MiB, up to 1GiB.",
)
@jobs_option
@click.option("--dry-run", is_flag=True, help="Check names and list the files; send nothing.")
@click.pass_obj
def put(
    call: Invocation,
    path: Path,
    ref: str,
    *,
    kind: str,
    labels: tuple[str, ...],
    extent_size: int,
    jobs: int | None,
    dry_run: bool,
) -> None:
    """Publish PATH (a file, or all files of a folder) as the version that REF names.

    Files are encrypted here and go straight to the store; the broker never sees plaintext. Dotfiles are
    included, symlinks refused. The same content again is fine; other content under an existing version
    is a conflict. The same command again resumes an interrupted upload.
    """
    from broker.names import parse_ref

    parsed = parse_ref(ref)
    named = parse_labels(labels)
    if dry_run:
        _try(call, path, parsed, kind=kind, labels=named, extent_size=extent_size)
        return
    with Meter(call.out, "published") as meter:
        done = call.client.publish(
            path,
            parsed,
            labels=named,
            kind=kind,
            extent_size=extent_size,
            jobs=jobs,
            on_progress=meter.on_progress,
        )
    full = f"{done.artifact}@{done.version}"
    call.out.detail(f"manifest {done.manifest}, {counted(done.files, 'file')}, {size_text(done.bytes)}")
    call.out.record(_record(done), [f"{full}  {done.manifest}"])
    if not done.created:
        call.out.say(f"{full} is there already, with the same content; entry {done.entry}")
        return
    call.out.say(
        f"put {full}: {counted(done.files, 'file')}, {meter.summary(done.bytes)}; "
        f"entry {done.entry}; next: broker info {full}"
    )


def parse_labels(texts: tuple[str, ...]) -> dict[str, str]:
    """Labels from ``K=V`` texts.

    Raises:
        InvalidRequest: One is not a label.
        UsageError: A name is given twice.
    """
    from broker.errors import UsageError
    from broker.names import parse_label

    found: dict[str, str] = {}
    for key, value in map(parse_label, texts):
        if key in found:
            raise UsageError(f"the label {key} is given twice")
        found[key] = value
    return found


def _record(done: Published) -> dict[str, Any]:
    return {
        "artifact": done.artifact,
        "version": done.version,
        "manifest": done.manifest,
        "files": done.files,
        "bytes": done.bytes,
        "created": done.created,
        "entry": done.entry,
        "receipt": done.receipt,
    }


def _try(
    call: Invocation, path: Path, ref: Ref, *, kind: str, labels: dict[str, str], extent_size: int
) -> None:
    from broker.client.publish import PublishOptions, describe

    files, wanted = describe(path, ref, PublishOptions(kind=kind, labels=labels, extent_size=extent_size))
    total = sum(file.size for file in files)
    call.out.rows(
        [{"path": file.path, "size": file.size} for file in files],
        _LOCAL,
        whole=lambda rows: {
            "artifact": wanted.artifact,
            "version": wanted.version,
            "kind": wanted.kind,
            "labels": dict(wanted.labels),
            "extent_size": wanted.extent_size,
            "bytes": total,
            "files": rows,
            "dry_run": True,
        },
        members=("path", "size"),
        empty="",
    )
    shown = ", ".join(f"{key}={value}" for key, value in wanted.labels.items())
    call.out.say(
        f"would publish {counted(len(files), 'file')}, {size_text(total)} as {safe(ref)} ({kind}, {shown})"
    )
