"""``admin keys``: the broker's own key files, made on the server."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.command import BrokerGroup, Invocation
from broker.cli.output import safe
from broker.cli.server_side import needs_server


@click.group(cls=BrokerGroup, examples=("broker admin keys create /etc/broker/keys --without-kek",))
def keys() -> None:
    """Make the broker's own keys. Runs on the server."""


@keys.command(
    examples=(
        "broker admin keys create /etc/broker/keys --without-kek",
        "broker admin keys create ./keys",
    )
)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--without-kek", is_flag=True, help="No key-encryption key: custody is elsewhere.")
@click.pass_obj
@needs_server
def create(call: Invocation, folder: Path, *, without_kek: bool) -> None:
    """Make the key files that FOLDER lacks.

    One file for each use, mode 0600. A file that is there is kept, so running it again is fine. Put the
    folder neither into a home directory nor beside the database, and keep a copy elsewhere.
    """
    from broker import wiring

    made = wiring.create_keys(folder, kek=not without_kek)
    found = {"folder": str(folder), "made": [path.name for path in made]}
    call.out.record(found, [safe(f"made {path}") for path in made] or ["every key is there"])
