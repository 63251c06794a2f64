"""``get``: fetch a version, or some files of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.bars import Meter
from broker.cli.catalogue import FILE_MEMBERS, FILES, select_files, version_record
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import include_patterns, jobs_option, purpose_option
from broker.cli.output import counted, safe, size_text, table

if TYPE_CHECKING:
    from broker.client.fetch import Receipt
    from broker.names import Ref


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker get acme/llama-7b@step-1000 ./ckpt",
        "broker get acme/llama-7b --include '*.json' --purpose 'read the configuration'",
        "broker get acme/llama-7b@step-1000/tokenizer ./tok",
        "broker get acme/llama-7b@step-1000 --dry-run",
    ),
)
@click.argument("ref")
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@click.option("--include", metavar="GLOB", multiple=True, help="Only files that match; may be repeated.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Not these files; may be repeated.")
@purpose_option
@jobs_option
@click.option("--dry-run", is_flag=True, help="Ask whether it is allowed and list the files; fetch nothing.")
@click.option("--force", is_flag=True, help="Replace existing files that differ.")
@click.pass_obj
def get(
    call: Invocation,
    ref: str,
    dest: Path | None,
    *,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    purpose: str | None,
    jobs: int | None,
    dry_run: bool,
    force: bool,
) -> None:
    """Fetch a version (the newest without one) into DEST, every byte verified before it counts.

    DEST is ./NAME unless given; files land directly in it. What is there already is verified and kept;
    the same command again resumes. Receipts and state are in DEST/.broker/. A GLOB without a slash
    matches a name anywhere; * stays inside a folder, ** crosses folders.
    """
    from broker.names import parse_ref

    parsed = parse_ref(ref)
    wanted, refused = include_patterns(include), include_patterns(exclude)
    if dry_run:
        _try(call, parsed, wanted, refused)
        return
    with Meter(call.out, "fetched") as meter:
        receipt = call.client.fetch(
            parsed,
            dest,
            include=wanted or None,
            exclude=refused or None,
            purpose=purpose,
            force=force,
            jobs=jobs,
            on_progress=meter.on_progress,
        )
    found = _record(receipt)
    full = f"{receipt.artifact}@{receipt.version}"
    call.out.record(found, [f"{full}  {safe(receipt.dest)}"])
    there = receipt.bytes - receipt.fetched_bytes
    kept = f" ({size_text(there)} were there)" if there else ""
    call.out.say(
        f"got {full}: {counted(receipt.files, 'file')}, {size_text(receipt.bytes)}{kept}; "
        f"{meter.summary(receipt.fetched_bytes)}; entry {receipt.index}; "
        f"next: broker verify {safe(receipt.dest)} {full}"
    )
    call.out.detail(
        f"grant {safe(found['grant'])}, {counted(receipt.leases, 'lease')}, "
        f"receipts in {safe(found['receipts'])}"
    )
    if receipt.completion is None:
        call.out.say("the report of what was received could not be delivered; the files are complete")


def _record(receipt: Receipt) -> dict[str, Any]:
    from broker.client.resume import RECEIPTS

    return {
        "artifact": receipt.artifact,
        "version": receipt.version,
        "manifest": receipt.manifest,
        "dest": str(receipt.dest),
        "files": receipt.files,
        "bytes": receipt.bytes,
        "fetched_bytes": receipt.fetched_bytes,
        "leases": receipt.leases,
        "grant": receipt.entry["grant"],
        "entry": receipt.index,
        "completed": receipt.completion is not None,
        "receipts": str(receipt.dest / RECEIPTS),
    }


def _try(call: Invocation, ref: Ref, include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    from broker.cli.access import STATUS_OF_EFFECT, decision_record
    from broker.errors import InvalidRequest

    if ref.path is not None and include:
        raise InvalidRequest("a reference with a path and include patterns say two different things")
    decision = decision_record(call.client.can(ref))
    version = call.client.info(ref)
    files = select_files(version, ref.path, include, exclude)
    total = sum(file["size"] for file in files)
    lines = table(files, FILES)
    found = {**version_record(version), **decision, "dry_run": True, "files": files, "bytes": total}
    if call.out.format in ("jsonl", "csv"):
        call.out.rows(files, FILES, whole=lambda _: found, members=FILE_MEMBERS, empty="")
    else:
        call.out.record(found, lines)
    effect = decision["decision"]["effect"]
    call.out.say(
        f"{effect}: {safe(decision['why'])}; "
        f"would fetch {counted(len(files), 'file')}, {size_text(total)} of {version.ref}"
    )
    if status := STATUS_OF_EFFECT[effect]:
        raise click.exceptions.Exit(status)
