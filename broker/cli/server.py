"""``serve``, ``dev``, ``demo``: the server, and a whole broker on one machine."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.server_side import needs_server

_DEFAULT_HOME = Path("broker-dev")


@click.command(
    cls=BrokerCommand,
    examples=("BROKER_CONFIG=/etc/broker/broker.toml broker serve",),
)
@click.pass_obj
@needs_server
def serve(call: Invocation) -> None:
    """Run the production server in the foreground. SIGTERM drains: requests under way are answered.

    Settings come from the environment and from the TOML file that BROKER_CONFIG names. The database is
    migrated before (broker admin migrate).
    """
    from broker.config import load_settings
    from broker.web.server import run_server

    settings = load_settings()
    call.out.say(f"serving on {settings.host}:{settings.port}")
    run_server(settings)


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker dev --home ./broker-dev",
        "BROKER_PROFILE_DIR=./broker-dev/profiles/admin broker whoami",
    ),
)
@click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DEFAULT_HOME,
    show_default=True,
    help="Where everything is kept; a second start finds it all again.",
)
@click.option(
    "--port", metavar="N", type=click.IntRange(1, 65535), help="Of the HTTP server; else kept or free."
)
@click.option(
    "--workers", metavar="N", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes."
)
@click.option("--database-url", metavar="URL", help="PostgreSQL instead of SQLite in DIR.")
@click.pass_obj
@needs_server
def dev(call: Invocation, *, home: Path, port: int | None, workers: int, database_url: str | None) -> None:
    """Run a whole broker on this machine, on loopback only: an S3 server, a database, keys, an admin.

    When it accepts requests it writes DIR/ready.json and prints the same line. DIR/profiles/admin is a
    ready profile. SIGTERM or Ctrl-C stops everything. Not for production.
    """
    from broker.dev.stack import run_dev

    call.out.say(f"starting in {home}; Ctrl-C stops it")
    run_dev(home, port=port, workers=workers, database_url=database_url)


@click.command(cls=BrokerCommand, examples=("broker demo", "broker demo --keep"))
@click.option("--keep", is_flag=True, help="Leave the working folder (about 1 GB) behind.")
@click.pass_obj
@needs_server
def demo(call: Invocation, *, keep: bool) -> None:
    """Tell the whole story with a real checkpoint: publish, fetch, refuse, audit, tamper, notice.

    Everything runs on this machine, in a folder of its own. The exit status is 0 only if every step held.
    """
    from broker.dev.demo import run_demo

    del call
    if status := run_demo(keep=keep):
        raise click.exceptions.Exit(status)
