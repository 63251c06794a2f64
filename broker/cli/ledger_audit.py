"""``ledger audit``: the tables of who may do what, compared with the log, on the server itself."""

from __future__ import annotations

from typing import Final

import click

from broker.cli.bars import counting
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.output import Column
from broker.cli.server_side import needs_server
from broker.errors import IntegrityFailure

_COLUMNS: Final = (
    Column(name="row", title="ROW"),
    Column(name="key", title="KEY", shrink=True),
    Column(name="problem", title="PROBLEM", shrink=True),
    Column(name="entry", title="ENTRY", right=True),
)
_MEMBERS: Final = ("row", "key", "problem", "entry")


@click.command(
    cls=BrokerCommand,
    examples=("broker ledger audit", "BROKER_CONFIG=/etc/broker/broker.toml broker ledger audit -o json"),
)
@click.pass_obj
@needs_server
def audit(call: Invocation) -> None:
    """Compare who may do what with the log that made it.

    Runs on the server, with its settings. Principals, keys, codes, tokens, grants, versions, policy and
    the rest are made again from the log's entries, and each stored row is compared: one that was put
    back from an older copy of the database, taken away or changed is named, with the newest entry about
    it. Nothing is changed. Exit 6 when a row is not what the log says.
    """
    from broker.config import load_settings
    from broker.wiring import audit_rows

    settings = load_settings()
    with counting(call.out, "folding the log", unit="entries") as told:
        found = audit_rows(settings, on_entries=told)
    rows = [finding.as_json() for finding in found.findings]
    call.out.rows(rows, _COLUMNS, whole=lambda _: found.as_json(), members=_MEMBERS, empty="")
    if not found.ok:
        raise IntegrityFailure(
            f"{found.count} of the stored rows are not what the log says",
            why="the database was changed, or partly restored, without the broker",
            next="stop the broker; see docs/operations/rollback.md",
        )
    call.out.say(f"ok: {found.rows} rows are what {found.size} entries say")
