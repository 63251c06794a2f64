"""``agent``: the endpoints on loopback, in the foreground, and the variables that lead to them."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Final

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import jobs_option, purpose_option

if TYPE_CHECKING:
    from broker.client.agent.running import Address, Agent

OFF: Final = "off"


def read_address(ctx: click.Context, param: click.Parameter, value: str | None) -> Address | None:
    """Where an endpoint listens: a free port unless the value says otherwise; None for ``off``.

    Raises:
        BadParameter: It is neither ``127.0.0.1:PORT``, ``[::1]:PORT`` nor ``off``.
    """
    from broker.client.agent.running import Address, parse_address
    from broker.errors import UsageError

    if value == OFF:
        return None
    try:
        return Address() if value is None else parse_address(value)
    except UsageError as exc:
        raise click.BadParameter(f"{exc.what}, or {OFF}", ctx, param) from exc


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker agent",
        "broker agent --s3 127.0.0.1:9000 --hf off",
        "broker agent -o json --purpose 'nightly evaluation' > agent.json",
    ),
)
@click.option(
    "--s3",
    metavar="ADDR",
    callback=read_address,
    help="Of the S3 endpoint: 127.0.0.1:PORT or [::1]:PORT; 'off' for none.",
)
@click.option(
    "--hf", metavar="ADDR", callback=read_address, help="Of the Hugging Face Hub endpoint, likewise."
)
@purpose_option
@jobs_option
@click.pass_obj
def agent(
    call: Invocation, *, s3: Address | None, hf: Address | None, purpose: str | None, jobs: int | None
) -> None:
    """Serve what you may read to unmodified tools, on loopback, until SIGTERM or Ctrl-C.

    One endpoint speaks S3 (collection = bucket), one the Hugging Face Hub API (collection/name = repository);
    each on a free port unless ADDR says otherwise. The variables to export are printed as lines for a shell,
    as soon as requests are taken. They hold secrets, made for this start: whoever has them reads as you.
    """
    from broker.client.agent import lifecycle
    from broker.client.agent.running import agent_of
    from broker.errors import InternalError, UsageError

    if s3 is None and hf is None:
        raise UsageError("there is nothing to serve", why="both endpoints are off")
    lifecycle.forbid_core_dumps()
    with (
        agent_of(call.client, s3=s3, hf=hf, purpose=purpose, jobs=jobs) as running,
        lifecycle.held_signals(),
    ):
        running.start()
        _tell(call, running)
        well = lifecycle.await_end(lambda: running.is_running)
        running.close()
    if not well:
        raise InternalError("an endpoint of the agent failed")


def _tell(call: Invocation, running: Agent) -> None:
    from broker.cli.output import safe

    exported = running.environment(os.environ)
    unset = running.removed(os.environ)
    urls = {name: endpoint.url for name, endpoint in running.endpoints.items()}
    if call.out.format == "text":
        lines = [f"unset {name}" for name in unset]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
        call.out.write_text("".join(f"{line}\n" for line in lines))
    else:
        call.out.record({"pid": os.getpid(), "endpoints": urls, "export": exported, "unset": unset}, ())
    shown = ", ".join(f"{name} {url}" for name, url in urls.items())
    call.out.say(f"serving {safe(running.principal)} on {shown}; Ctrl-C stops it")
