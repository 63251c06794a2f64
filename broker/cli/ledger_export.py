"""``ledger export`` and ``ledger verify-export``: take the whole log home, and prove it complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from broker.cli.bars import counting
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import pinned_key, since_option, until_option, with_times
from broker.cli.output import safe


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker ledger export --out log",
        "broker ledger export --out q3 --format csv artifact:acme/llama-7b since:90d",
        "broker ledger export --out events --format ocsf decision:deny since:7d",
        "broker ledger export --out sample --format jsonl type:grant --sample 25 --seed 2026Q3",
    ),
)
@click.argument("query", nargs=-1)
@click.option(
    "--out", "target", metavar="DIR", required=True, type=click.Path(path_type=Path), help="A new folder."
)
@click.option(
    "--format",
    "format",
    type=click.Choice(["tiles", "jsonl", "csv", "ocsf", "parquet"]),
    default="tiles",
    show_default=True,
    help="tiles: the log alone. The others: also the rows that match; ocsf: as events for a SIEM.",
)
@since_option
@until_option
@click.option("--sample", metavar="N", type=click.IntRange(1), help="Only N of the rows that match.")
@click.option("--seed", metavar="TEXT", help="What the sample is drawn by; with --sample.")
@click.pass_obj
def export(
    call: Invocation,
    query: tuple[str, ...],
    *,
    target: Path,
    format: Literal["tiles", "jsonl", "csv", "ocsf", "parquet"],
    since: str | None,
    until: str | None,
    sample: int | None,
    seed: str | None,
) -> None:
    """Take the log home, with a complete answer.

    DIR holds the log as C2SP tiles up to one signed tree head. With QUERY (as in search) it
    also holds the rows that match and a certificate; whoever gets DIR runs verify-export, offline. That
    you did this is recorded.
    """
    from broker.errors import UsageError
    from broker.ledger.certificate import Sample

    if (sample is None) != (seed is None):
        raise UsageError("--sample and --seed are given together")
    with counting(call.out, "reading the log", unit="entries") as told:
        found = call.client.ledger.export(
            target,
            format=format,
            query=with_times(query, since=since, until=until),
            sample=None if sample is None or seed is None else Sample(size=sample, seed=seed),
            on_progress=told,
        )
    value = {"folder": str(target), **_summary(found)}
    call.out.record(value, [f"{safe(target)}: {line}" for line in _lines(found)])
    call.out.say(f"next: broker ledger verify-export {safe(target)}")


@click.command(
    "verify-export",
    cls=BrokerCommand,
    examples=(
        "broker ledger verify-export q3",
        "broker ledger verify-export q3 --vkey 'broker.example/log+...'",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--vkey", metavar="KEY", help="The log's verifier key; the profile's unless given.")
@click.pass_obj
def verify_export(call: Invocation, folder: Path, *, vkey: str | None) -> None:
    """Verify an export offline.

    Every entry is hashed into the signed root, and the rows and the sample are derived again. The exit
    status is 6 when it is not what the log's key signed. It says nothing about what happened after the
    export: compare its tree head with a newer one for that.
    """
    from broker.client.export import verify_export as verify

    found = verify(folder, vkey or pinned_key(call))
    call.out.record({"ok": True, **_summary(found)}, [f"ok: {line}" for line in _lines(found)])


def _summary(found: Any) -> Mapping[str, Any]:
    from broker.canonical import b64url

    head, made = found.head, found.certificate
    value = {"origin": head.origin, "size": head.size, "root": b64url(head.root)}
    if made is None:
        return {**value, "format": "tiles"}
    value |= {"format": made.format, "matching": made.matching, "rows": made.rows, "digest": made.digest}
    return value if made.sample is None else {**value, "sample": vars(made.sample)}


def _lines(found: Any) -> list[str]:
    head, made = found.head, found.certificate
    lines = [safe(f"{head.size} entries of {head.origin}, as its key signed them")]
    if made is not None and made.sample is not None:
        lines.append(
            safe(f"a sample of {made.rows} of the {made.matching} that match, by {made.sample.seed}")
        )
    elif made is not None:
        lines.append(f"{made.rows} rows: all that match")
    return lines
