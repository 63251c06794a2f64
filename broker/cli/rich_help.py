"""Help for somebody at a terminal, drawn by rich-click. Imported only when help is shown there."""

from __future__ import annotations

from textwrap import indent
from typing import Any, Final

import click
from rich_click import RichCommand, RichContext, RichGroup

from broker.cli.command import LazyGroup

_CONFIG: Final[dict[str, Any]] = {
    "text_markup": None,
    "max_width": 100,
    "style_option": "bold cyan",
    "style_commands_table_column_width_ratio": (1, 4),
}


class _OrderedGroup(RichGroup):
    """A group whose commands stand in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added."""
        del ctx
        return list(self.commands)


def render_help(command: click.Command, ctx: click.Context) -> str:
    """The same help that click writes, with panels and colour.

    The command itself stays a plain click command; what is drawn is a copy of its names and texts.
    """
    copy = _copy(command, ctx)
    parent = RichContext(RichGroup(name="broker"), info_name=_parent_path(ctx)) if ctx.parent else None
    rich_ctx = RichContext(copy, info_name=ctx.info_name, parent=parent, rich_help_config=_CONFIG)
    examples = (command.epilog or "").removeprefix("\b\n")
    # rich-click would re-wrap them.
    return f"{copy.get_help(rich_ctx)}\n{indent(examples, '  ')}\n"


def _parent_path(ctx: click.Context) -> str:
    return ctx.parent.command_path if ctx.parent else ""


def _copy(command: click.Command, ctx: click.Context) -> RichCommand:
    shared: dict[str, Any] = {
        "name": command.name,
        "params": command.params,
        "help": command.help,
        "context_settings": command.context_settings,
    }
    if not isinstance(command, click.Group):
        return RichCommand(**shared)
    group = _OrderedGroup(**shared)
    for name in command.list_commands(ctx):
        help, section = _about(command, ctx, name)
        group.add_command(click.Command(name, short_help=help), name, panel=section)
    return group


def _about(group: click.Group, ctx: click.Context, name: str) -> tuple[str, str | None]:
    if isinstance(group, LazyGroup):
        return group.places[name].help, group.places[name].section
    found = group.get_command(ctx, name)
    return "" if found is None else found.get_short_help_str(80), None
