"""``admin evidence``: erase what somebody asked, and leave every proof as it is."""

from __future__ import annotations

import click

from broker.cli.command import BrokerGroup, Invocation
from broker.cli.output import safe
from broker.cli.server_side import needs_server


@click.group(
    cls=BrokerGroup,
    examples=(
        'broker admin evidence erase --principal ana --reason "left the company"',
        "broker admin evidence sweep",
    ),
)
def evidence() -> None:
    """Erase the signed requests behind ledger entries."""


@evidence.command(
    examples=(
        'broker admin evidence erase --principal ana --reason "left the company"',
        'broker admin evidence erase --principal ana --before 365d --reason "retention rule 4"',
    )
)
@click.option("--principal", metavar="ID", required=True, help="Whose evidence.")
@click.option("--before", metavar="T", help="Only what is older: 90d, a date or RFC 3339 time.")
@click.option("--reason", metavar="TEXT", required=True, help="Why; it is on record.")
@click.pass_obj
def erase(call: Invocation, *, principal: str, before: str | None, reason: str) -> None:
    """Erase the evidence of what somebody asked.

    The signed requests and decision inputs behind that principal's entries go, with the addresses that
    they came from. The entries, their records and every proof stay as they are. The erasure is itself an
    entry, which is written first. It cannot be undone.
    """
    found = call.client.admin.erase_evidence(principal, reason=reason, before=before)
    shown = {name: found[name] for name in ("principal", "before", "evidence", "pending")}
    what = f"{found['evidence']} pieces of evidence of {found['principal']} from before {found['before']}"
    lines = [safe(f"erased {what}")]
    if found["pending"]:
        lines = [safe(f"on record as erased, and shown to nobody any more: {what}")]
    call.out.record(shown, lines)
    if found["pending"]:
        call.out.say("next, on the server, with the role that may delete: broker admin evidence sweep")


@evidence.command(examples=("BROKER_DATABASE_URL=... broker admin evidence sweep",))
@click.pass_obj
@needs_server
def sweep(call: Invocation) -> None:
    """Delete the rows that erasures on record speak of.

    Runs on the server, with its settings and a database role that may delete evidence. Needed where
    the broker's own role may not, and after a crash; doing it again is fine.
    """
    from broker.config import load_settings
    from broker.wiring import sweep_evidence

    erasures, gone = sweep_evidence(load_settings())
    line = f"{gone} pieces of evidence deleted; {erasures} erasures are on record"
    call.out.record({"erasures": erasures, "deleted": gone}, [line])
