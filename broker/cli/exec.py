"""``exec``: a command with an agent beside it, for as long as it runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from broker.cli.command import HELP_NAMES, BrokerCommand, Invocation
from broker.cli.options import jobs_option, purpose_option

if TYPE_CHECKING:
    from broker.client.agent.running import Agent


@click.command(
    "exec",
    cls=BrokerCommand,
    context_settings={**HELP_NAMES, "allow_interspersed_args": False},
    examples=(
        "broker exec -- python train.py --model acme/llama-7b",
        "broker exec --purpose 'run 42' -- torchrun --nproc-per-node 8 train.py",
        "broker exec -- aws s3 cp --recursive s3://acme/llama-7b@step-1000/ ./ckpt",
        "broker exec -- hf download acme/llama-7b --revision step-1000",
    ),
)
@purpose_option
@jobs_option
@click.argument("command", metavar="-- CMD [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(call: Invocation, *, command: tuple[str, ...], purpose: str | None, jobs: int | None) -> None:
    """Run CMD with an agent beside it: S3 and Hugging Face tools in it read what you may read.

    CMD gets the variables that lead tools to the agent (broker agent --help), and none of yours that would
    lead them elsewhere. Its exit status is passed on, 128 + n when signal n ended it; 127 when there is no
    such command, 126 when it cannot be executed. Signals are passed on to it. It ends when the agent ends.
    """
    from broker.client.agent import lifecycle
    from broker.client.agent.environment import child_environment
    from broker.client.agent.running import Address, agent_of

    core = lifecycle.forbid_core_dumps()
    # The login is first: a missing profile, or a refused login, is told before the command starts.
    with agent_of(call.client, s3=Address(), hf=Address(), purpose=purpose, jobs=jobs) as running:
        env = child_environment(
            os.environ, removed=running.removed(os.environ), exported=running.environment(os.environ)
        )
        with lifecycle.held_signals():
            try:
                status = _run(running, command, env, core)
            except lifecycle.CommandNotStarted as exc:
                status = exc.status
                _tell(f"{command[0]}: {exc.what}", status, why=exc.why, next=exc.next)
            finally:
                running.close()
    if status:
        raise click.exceptions.Exit(status)


def _run(running: Agent, command: tuple[str, ...], env: dict[str, str], core: tuple[int, int]) -> int:
    from broker.client.agent import lifecycle

    child = lifecycle.start_child(command, env=env, core=core)
    try:
        running.start()
        status = lifecycle.await_child(child, lambda: running.is_running)
    finally:
        lifecycle.end_child(child)
    if not running.is_running:
        _tell("the command was ended", status, why="an endpoint of the agent failed")
    return status


def _tell(what: str, status: int, *, why: str | None, next: str | None = None) -> None:
    from broker.cli.root import error_text

    sys.stderr.write(error_text(what, status, why=why, next=next))
    sys.stderr.flush()
