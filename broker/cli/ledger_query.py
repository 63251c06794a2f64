"""``ledger query``: SQL over the ledger, on this machine, over rows that were verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from broker.cli.bars import counting
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import pinned_key, read_duration
from broker.cli.output import Column, counted, safe

_ROWS: Final = 10_000
_MOST_ROWS: Final = 1_000_000
_MOST_SECONDS: Final = 3600


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker ledger query 'SELECT type, count(*) AS n FROM entries GROUP BY type ORDER BY n DESC'",
        "broker ledger query \"SELECT * FROM entries WHERE principal = 'user:ana'\" -o csv > ana.csv",
        "broker ledger query --from q3 'DESCRIBE entries'",
    ),
)
@click.argument("sql")
@click.option(
    "--from",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Over an export or a published log in DIR, offline, instead of the broker's log.",
)
@click.option("--vkey", metavar="KEY", help="With --from: the log's verifier key, if not the profile's.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, _MOST_ROWS),
    default=_ROWS,
    show_default=True,
    help="At most N rows of the answer.",
)
@click.option(
    "--timeout",
    metavar="TIME",
    default="60s",
    show_default=True,
    callback=read_duration,
    help="End a question that takes longer, such as 10m.",
)
@click.pass_obj
def query(
    call: Invocation, sql: str, *, folder: Path | None, vkey: str | None, limit: int, timeout: int
) -> None:
    """Ask the ledger in SQL (DuckDB's).

    SQL is one SELECT over the view entries: one row for each entry, with its search columns, its leaf hash
    and its text; DESCRIBE entries names them. Times are UTC. All rows are verified against a signed tree
    head before they are asked. Without --from they are read from the broker, which needs the auditor role
    and is recorded, and kept in the profile: the next question reads what is new. The SQL itself stays on
    this machine; it can read nothing else here, and change nothing. Needs the extra archive.
    """
    from broker.client.asking import Bounds
    from broker.client.querying import query_folder
    from broker.errors import UsageError

    if vkey is not None and folder is None:
        raise UsageError("--vkey goes with --from", next="without --from the profile's key is used")
    if timeout > _MOST_SECONDS:
        raise UsageError("a question takes at most an hour", next="--timeout 1h")
    bounds = Bounds(seconds=timeout, rows=limit)
    if folder is not None:
        found = query_folder(folder, vkey or pinned_key(call), sql, bounds=bounds)
    else:
        with counting(call.out, "reading the log", unit="entries") as told:
            found = call.client.query_ledger(sql, bounds=bounds, on_progress=told)
    _show(call, found)


def _show(call: Invocation, found: Any) -> None:
    answer, head = found.answer, found.head
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
    columns = [
        Column(name=name, title=safe(name), right=_is_number(rows, name), shrink=True)
        for name in answer.columns
    ]
    whole = {"columns": list(answer.columns), "rows": rows, "more": answer.more}
    whole |= {"origin": head.origin, "entries": found.entries, "size": head.size}
    call.out.rows(
        rows, columns, whole=lambda _: whole, members=answer.columns, empty="the answer has no rows"
    )
    if answer.more:
        call.out.say(f"there is more than these {counted(len(rows), 'row')}: give --limit, or ask for less")
    call.out.say(
        safe(f"asked over {found.entries} of {head.size} entries of {head.origin}, as its key signed them")
    )


def _is_number(rows: list[dict[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if row[name] is not None]
    return bool(values) and all(type(value) in (int, float) for value in values)
