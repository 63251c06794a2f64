"""Commands and groups of the command line: the options that each of them has, its examples, lazy loading."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

import click

from broker.cli.output import FORMATS, WIDTH, Format, Output, is_terminal

if TYPE_CHECKING:
    from broker.client.sdk import Client

HELP_NAMES: Final[Mapping[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


@dataclass(frozen=True)
class Invocation:
    """One command as it was called.

    Attributes:
        out: Where data and talk go.
        profile: ``--profile``, if given.
    """

    out: Output
    profile: str | None

    @cached_property
    def client(self) -> Client:
        """What the profile can do; made when a command first needs it.

        Raises:
            ConfigurationError: There is no such profile, or it is not valid.
        """
        from broker.client.sdk import Client

        client = Client.from_profile(self.profile)
        if (ctx := click.get_current_context(silent=True)) is not None:
            ctx.call_on_close(client.close)
        return client


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(FORMATS),
            envvar="BROKER_OUTPUT",
            help="Form of the data on stdout; text unless BROKER_OUTPUT says otherwise.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="The same as -o json."),
        click.Option(["-q", "--quiet"], is_flag=True, help="No talk and no bars on stderr."),
        click.Option(["-v", "--verbose"], is_flag=True, help="More talk on stderr."),
        click.Option(
            ["--profile"],
            metavar="NAME",
            help="Profile under $XDG_CONFIG_HOME/broker/profiles; else the folder BROKER_PROFILE_DIR.",
        ),
    ]


class BrokerCommand(click.Command):
    """A command with ``-o``, ``--json``, ``-q``, ``-v``, ``--profile`` and examples in its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", dict(HELP_NAMES))
        kwargs.setdefault("epilog", examples_text(examples))
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_common_options()]

    def invoke(self, ctx: click.Context) -> Any:
        """Take the common options out of the way, so that functions see only their own."""
        as_json = ctx.params.pop("as_json")
        chosen = ctx.params.pop("output")
        if as_json and chosen not in (None, "json") and _given(ctx, "output"):
            raise click.UsageError("--json and another --output contradict each other", ctx)
        found = cast(Format, "json" if as_json else chosen or "text")
        out = Output(format=found, quiet=ctx.params.pop("quiet"), verbose=ctx.params.pop("verbose"))
        ctx.obj = Invocation(out=out, profile=ctx.params.pop("profile"))
        return super().invoke(ctx)

    def get_help(self, ctx: click.Context) -> str:
        """Help as plain text; as rich text for somebody at a terminal."""
        return _rich_help(self, ctx) or super().get_help(ctx)


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def examples_text(examples: Sequence[str]) -> str | None:
    """The epilog of a command: its examples, one a line, never re-wrapped."""
    if not examples:
        return None
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


class BrokerGroup(click.Group):
    """A noun with verbs below it."""

    command_class = BrokerCommand
    group_class = type

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", dict(HELP_NAMES))
        kwargs.setdefault("epilog", examples_text(examples))
        super().__init__(*args, **kwargs)

    def get_help(self, ctx: click.Context) -> str:
        """Help as plain text; as rich text for somebody at a terminal."""
        return _rich_help(self, ctx) or super().get_help(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run one command line and leave with its exit status; used by test runners and completion."""
        from broker.cli.root import run

        words = kwargs.get("args") if "args" in kwargs else args[0] if args else None
        raise SystemExit(run(self, sys.argv[1:] if words is None else list(words)))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a command lives, and the line about it: known without importing it."""

    target: str
    help: str
    section: str


class LazyGroup(BrokerGroup):
    """A group that imports a command only when it is called, or asked for help."""

    def __init__(self, *args: Any, places: Mapping[str, Place], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        del ctx
        place = self.places.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.target.partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, without importing any."""
        del ctx
        sections = dict.fromkeys(place.section for place in self.places.values())
        for section in sections:
            with formatter.section(section):
                formatter.write_dl(
                    [(name, place.help) for name, place in self.places.items() if place.section == section],
                    col_max=12,
                )


def plain_help(command: click.Command, ctx: click.Context) -> str:
    """The help of a command as plain text, 80 columns wide, whatever the terminal."""
    formatter = click.HelpFormatter(width=80)
    command.format_help(ctx, formatter)
    return "\n".join(line.rstrip() for line in formatter.getvalue().rstrip("\n").split("\n"))


def _rich_help(command: click.Command, ctx: click.Context) -> str | None:
    if not is_terminal(sys.stdout) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return None
    from broker.cli.rich_help import render_help

    return render_help(command, ctx)
