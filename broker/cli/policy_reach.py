"""``policy who-can`` and ``policy what-can``: who can reach what, by the policies in force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.output import Column, plain

_WHO: Final = ("principal", "effect", "policies")
_WHAT: Final = ("artifact", "version", "action", "effect", "policies")
_TITLES: Final = {"principal": "WHO", "artifact": "ARTIFACT", "effect": "DECISION", "policies": "POLICIES"}


def _columns(members: tuple[str, ...]) -> list[Column]:
    return [
        Column(name=name, title=_TITLES.get(name, name.upper()), shrink=True, show=plain) for name in members
    ]


@click.command(
    "who-can",
    cls=BrokerCommand,
    examples=(
        "broker policy who-can acme/llama-7b@step-1000",
        "broker policy who-can acme/llama-7b --purpose evaluation -o csv",
    ),
)
@click.argument("ref")
@click.option(
    "--action", type=click.Choice(["describe", "read"]), default="read", show_default=True, help="To do what."
)
@click.option("--purpose", metavar="TEXT", default="", help="What they would say that it is for.")
@click.pass_obj
def who_can(call: Invocation, ref: str, *, action: str, purpose: str) -> None:
    """List who can read a version.

    Policy is asked about every principal as it is stored. What a workload's own token adds, and what
    policies say about network, time and usage, shows only when it asks. For auditors; recorded.
    """
    from broker.client.catalogue import as_ref

    found = as_ref(ref)
    rows = _pages(
        lambda after: call.client.ledger.who_can(found, action=action, purpose=purpose, after=after)
    )
    _show(call, rows, "principals", _WHO, empty="nobody can")


@click.command(
    "what-can",
    cls=BrokerCommand,
    examples=("broker policy what-can ana", "broker policy what-can workload:github/acme/train -o json"),
)
@click.argument("principal")
@click.option("--purpose", metavar="TEXT", default="", help="What it would say that it is for.")
@click.pass_obj
def what_can(call: Invocation, principal: str, *, purpose: str) -> None:
    """List what a principal can read.

    Policy is asked about the newest version of every artifact. For auditors; recorded.
    """
    from broker.names import parse_principal

    id = parse_principal(principal)
    rows = _pages(lambda after: call.client.ledger.what_can(id, purpose=purpose, after=after))
    _show(call, rows, "artifacts", _WHAT, empty="nothing")


def _pages(ask: Callable[[str | None], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    after: str | None = None
    while True:
        page = ask(after)
        yield from page.get("principals", page.get("artifacts", []))
        after = page["next_after"]
        if after is None:
            return


def _show(
    call: Invocation, rows: Iterator[Mapping[str, Any]], name: str, members: tuple[str, ...], *, empty: str
) -> None:
    call.out.rows(rows, _columns(members), whole=lambda found: {name: found}, members=members, empty=empty)
