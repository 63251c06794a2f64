"""``completion``: the script that makes a shell complete ``broker``."""

from __future__ import annotations

import click

from broker.cli.command import BrokerCommand, Invocation


@click.command(
    cls=BrokerCommand,
    examples=(
        'eval "$(broker completion bash)"',
        "broker completion zsh > ~/.zfunc/_broker",
        "broker completion fish > ~/.config/fish/completions/broker.fish",
    ),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_obj
def completion(call: Invocation, shell: str) -> None:
    """Print the completion script of a shell; put it where that shell looks, or eval it."""
    from click.shell_completion import get_completion_class

    from broker.cli.root import COMPLETE_VARIABLE, PROGRAM, cli
    from broker.errors import InternalError

    made = get_completion_class(shell)
    if made is None:
        raise InternalError(f"there is no completion for {shell}")
    script = made(cli, {}, PROGRAM, COMPLETE_VARIABLE).source()
    call.out.record({"shell": shell, "script": script}, script.rstrip("\n").split("\n"))
