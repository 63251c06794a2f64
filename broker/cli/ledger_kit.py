"""``ledger kit`` and ``ledger verify-kit``: evidence taken home, and checked there."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.bars import counting
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import pinned_key, since_option, until_option, with_times
from broker.cli.output import safe


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker ledger kit --out case-7 actor:ana artifact:acme/llama-7b since:30d",
        "broker ledger kit --out denials --since 2026-01-01 type:denial",
    ),
)
@click.argument("query", nargs=-1)
@click.option(
    "--out", "target", metavar="DIR", required=True, type=click.Path(path_type=Path), help="A new folder."
)
@since_option
@until_option
@click.pass_obj
def kit(
    call: Invocation, query: tuple[str, ...], *, target: Path, since: str | None, until: str | None
) -> None:
    """Take entries home with the evidence and the proofs.

    DIR holds the entries that match QUERY (as in search), the signed requests and the lists that they
    commit to, the policies that decided, proofs under one checkpoint, a page to read (index.html) and a
    verifier that needs Python and the package cryptography alone (verify.py). That you did this is
    recorded, and so is every piece of evidence that you read.
    """
    with counting(call.out, "reading evidence", unit="entries") as told:
        question = with_times(query, since=since, until=until)
        made = call.client.ledger.write_kit(target, question, on_progress=told)
    lines = [
        f"{safe(target)}: {made.entries} entries with their evidence, and {made.support} that they rest on"
    ]
    if made.erased:
        lines.append(f"the evidence of {made.erased} was erased; the kit says by which entries")
    call.out.record({"folder": str(target), **vars(made)}, lines)
    call.out.say(f"next: open {safe(target / 'index.html')}, or broker ledger verify-kit {safe(target)}")


@click.command(
    "verify-kit",
    cls=BrokerCommand,
    examples=(
        "broker ledger verify-kit case-7",
        "broker ledger verify-kit case-7 --vkey 'broker.example/log+...'",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--vkey", metavar="KEY", help="The log's verifier key; the profile's unless given.")
@click.option(
    "--witness", metavar="KEY", multiple=True, help="A witness that must have cosigned; repeatable."
)
@click.pass_obj
def verify_kit(call: Invocation, folder: Path, *, vkey: str | None, witness: tuple[str, ...]) -> None:
    """Verify an evidence kit offline.

    It runs the checks of the kit's own verify.py from this installation, so that nobody has to trust the
    copy in the kit. The exit status is 6 when something does not hold; the first thing is named.
    """
    from broker.client.kit import verify_kit as verify
    from broker.errors import UsageError

    if not (folder / "manifest.json").is_file():
        raise UsageError(f"there is no evidence kit in {folder}")
    found = verify(folder, vkey or pinned_key(call), witnesses=witness)
    lines = [
        f"ok: {found['entries']} entries of {safe(found['origin'])}, in a signed tree of {found['size']}",
        f"{found['requests']} signed requests hold, {found['evidence']} pieces of evidence are there, "
        f"{found['erased']} were erased",
    ]
    call.out.record({"ok": True, **found}, lines)
