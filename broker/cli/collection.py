"""``admin collection``: who may read and publish where."""

from __future__ import annotations

from typing import Final

import click

from broker.cli.command import BrokerGroup, Invocation
from broker.cli.options import split_groups
from broker.cli.output import Column, fields

_COLLECTIONS: Final = (
    Column(name="name", title="COLLECTION"),
    Column(name="readers", title="READERS", shrink=True),
    Column(name="publishers", title="PUBLISHERS", shrink=True),
)
_MEMBERS: Final = ("name", "readers", "publishers")


@click.group(
    cls=BrokerGroup,
    examples=("broker admin collection ls", "broker admin collection set acme --readers nlp"),
)
def collection() -> None:
    """Collections, and the groups that may read and publish in them."""


@collection.command(examples=("broker admin collection ls", "broker admin collection ls -o json"))
@click.pass_obj
def ls(call: Invocation) -> None:
    """List every collection."""
    call.out.rows(
        call.client.admin.list_collections(),
        _COLLECTIONS,
        whole=lambda rows: {"collections": rows},
        members=_MEMBERS,
        empty="no collection yet: the first publish makes one",
    )


@collection.command(
    "set",
    examples=(
        "broker admin collection set acme --readers nlp,vision",
        "broker admin collection set acme --readers nlp --publishers acme-release",
        "broker admin collection set acme --readers ''",
    ),
)
@click.argument("name")
@click.option("--readers", metavar="G", multiple=True, help="Groups that may read; repeated, or with commas.")
@click.option(
    "--publishers", metavar="G", multiple=True, help="Groups that may publish; repeated, or with commas."
)
@click.pass_obj
def set_(call: Invocation, name: str, *, readers: tuple[str, ...], publishers: tuple[str, ...]) -> None:
    """Say who may read and publish in a collection.

    What is given replaces the list, what is not given stays. A collection that is not there is
    made. An empty group clears the list.
    """
    if not readers and not publishers:
        raise click.UsageError("give --readers or --publishers", click.get_current_context())
    answer = call.client.admin.set_collection(
        name, readers=split_groups(readers), publishers=split_groups(publishers)
    )
    found = {name: answer[name] for name in _MEMBERS}
    call.out.record(
        found,
        fields(
            [
                ("collection", found["name"]),
                ("readers", found["readers"] or "none"),
                ("publishers", found["publishers"] or "none"),
            ]
        ),
    )
