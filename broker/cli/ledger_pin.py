"""``ledger pin``: another log key in the profile, on purpose."""

from __future__ import annotations

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.output import safe


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker ledger pin 'broker.example/log-2+1c9b3f0d+AYCt...'",
        "broker ledger pin KEY --accept-loss",
    ),
)
@click.argument("key")
@click.option(
    "--accept-loss", is_flag=True, help="Also when the new log lacks entries that this profile has seen."
)
@click.pass_obj
def pin(call: Invocation, key: str, *, accept_loss: bool) -> None:
    """Hold the broker to another log key.

    For a log that goes on under a new name after a loss. Compare KEY with its operator over another channel
    first: whoever has it can show you a log of their own. What the profile saw under the old key is
    compared with the new log, and kept beside it; older receipts verify with --vkey and the old key.
    """
    from broker.client.pinning import pin_log
    from broker.client.settings import find_profile

    made = pin_log(find_profile(call.profile), key, accept_loss=accept_loss)
    found = {
        "origin": made.origin,
        "vkey": made.vkey,
        "former": made.former,
        "size": made.size,
        "lost": made.lost,
    }
    lines = [f"pinned  {made.vkey}", f"before  {made.former}"]
    if made.lost is not None:
        lines.append(f"lost    {made.lost}")
    call.out.record(found, map(safe, lines))
