"""``admin keys``: the broker's own key files, made on the server."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.command import BrokerGroup, Invocation
from broker.cli.output import safe
from broker.cli.server_side import needs_server


@click.group(
    cls=BrokerGroup,
    examples=(
        "broker admin keys create /etc/broker/keys --without-kek",
        "broker admin keys create-log /etc/broker/keys/log-2.json",
    ),
)
def keys() -> None:
    """Make and change the broker's own keys. Runs on the server."""


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


@keys.command("create-log", examples=("broker admin keys create-log /etc/broker/keys/log-2.json",))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
@needs_server
def create_log(call: Invocation, file: Path) -> None:
    """Make the key that the log is to go on under.

    FILE gets mode 0600 and is never replaced. Nothing uses it yet: put it into keys.log_also of every
    broker, start them again, and then: broker admin keys rotate-log.
    """
    from broker import wiring
    from broker.config import load_settings

    vkey = wiring.create_log_key(file, origin=load_settings().log_origin)
    call.out.record(
        {"file": str(file), "vkey": vkey},
        [
            safe(f"made    {file}"),
            safe(f"key     {vkey}"),
            safe(f'next    every broker: keys.log_also = ["{file}"], and start it again'),
            "then    broker admin keys rotate-log",
        ],
    )


@keys.command("rotate-log", examples=("broker admin keys rotate-log",))
@click.pass_obj
@needs_server
def rotate_log(call: Invocation) -> None:
    """Go on under the log key in keys.log_also.

    Only when every broker has it there: clients follow to the new key as soon as they see it, and then
    refuse a head that it did not sign. The entry that this appends is signed by both keys. Running it
    again is fine. Afterwards, in the settings, the two keys change places; the old one stays in
    keys.log_also until every client has asked the broker once.
    """
    from broker import wiring
    from broker.config import load_settings

    found = wiring.rotate_log_key(load_settings())
    call.out.record(
        found,
        [
            safe(f"entry   {found['index']}"),
            safe(f"key     {found['vkey']}"),
            safe(f"before  {found['previous']}"),
            "next    every broker: the new key in keys.log, the old one in keys.log_also",
        ],
    )
