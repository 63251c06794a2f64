"""``ledger count``: how many entries answer a question, in groups."""

from __future__ import annotations

from typing import Any, Final

import click

from broker import limits
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import since_option, until_option
from broker.cli.output import Column, plain, time_text
from broker.ledger.query import GROUPINGS

_MEMBERS: Final = ("value", "entries")


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker ledger count --since 24h",
        "broker ledger count decision:deny --by principal --top 10",
        "broker ledger count type:grant artifact:acme/llama-7b --by day --since 30d -o csv",
    ),
)
@click.argument("query", nargs=-1)
@click.option(
    "--by",
    type=click.Choice(GROUPINGS),
    default="decision",
    show_default=True,
    help="What the entries are counted by; hours and days are UTC.",
)
@since_option
@until_option
@click.option(
    "--top",
    metavar="N",
    type=click.IntRange(1, limits.MAX_PAGE),
    default=limits.DEFAULT_PAGE,
    show_default=True,
    help="The N largest groups; of hours and days the newest.",
)
@click.pass_obj
def count(
    call: Invocation,
    query: tuple[str, ...],
    *,
    by: Any,
    since: str | None,
    until: str | None,
    top: int,
) -> None:
    """Count all entries that match.

    QUERY is that of search. The counts are of the whole answer, not of a page; groups that are not
    shown are summed up, so that the numbers add up.
    """
    found = call.client.ledger.count(" ".join(query), by=by, since=since, until=until, top=top)
    shown = time_text if by in ("hour", "day") else _value
    columns = (
        Column(name="value", title=by.upper(), shrink=True, show=shown),
        Column(name="entries", title="ENTRIES", right=True),
    )
    call.out.rows(found["groups"], columns, whole=lambda _: found, members=_MEMBERS, empty="no entry matches")
    rest = found["rest"]
    if rest["groups"]:
        call.out.say(f"and {rest['entries']} entries in {rest['groups']} more groups (--top for more)")
    call.out.say(f"{found['total']} of {found['size']} entries match")


def _value(value: Any) -> str:
    return "-" if value is None else plain(value)
