"""Options that several commands share, and the readings of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, overload

import click

from broker import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.cli.command import Invocation

_SIZE: Final = re.compile(r"([0-9]{1,15}) ?(?:([KMGT])iB)?", re.IGNORECASE)
_POWER: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_RANGE: Final = re.compile(r"([0-9]{0,16})-([0-9]{0,16})")
_MAX_JOBS: Final = 64


@overload
def read_size(ctx: click.Context, param: click.Parameter, value: str) -> int: ...
@overload
def read_size(ctx: click.Context, param: click.Parameter, value: None) -> None: ...
def read_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of bytes: ``1048576``, ``32MiB``, ``1GiB``; units are powers of 1024.

    Raises:
        BadParameter: It is something else.
    """
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise click.BadParameter("a size is written like 32MiB, 1GiB or 1048576", ctx, param)
    unit: int = 1024 ** _POWER[(found[2] or "").upper()]
    return int(found[1]) * unit


def read_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of seconds: ``90s``, ``10m``, ``1h``.

    Raises:
        BadParameter: It is something else.
    """
    from broker.errors import InvalidRequest
    from broker.ledger.query import parse_duration

    if value is None:
        return None
    try:
        return parse_duration(value) // 1000
    except InvalidRequest as exc:
        raise click.BadParameter("a duration is written like 90s, 10m or 1h", ctx, param) from exc


def read_file(path: Path) -> bytes:
    """The bytes of a small file that somebody names on the command line.

    Raises:
        UsageError: It cannot be read, or has more than 1 MiB.
    """
    from broker.errors import UsageError

    try:
        with open(path, "rb") as file:
            data = file.read(limits.MIB + 1)
    except OSError as exc:
        raise UsageError(f"cannot read {path}", why=exc.strerror) from exc
    if len(data) > limits.MIB:
        raise UsageError(f"{path} is too large: at most 1 MiB is read")
    return data


def read_range(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int | None, int | None] | None:
    """Bytes of a file as HTTP counts them: ``A-B`` (both included), ``A-`` to the end, ``-N`` the last N.

    Returns:
        (first, last), None where the text has none; None when no range is given.

    Raises:
        BadParameter: It is something else.
    """
    if value is None:
        return None
    found = _RANGE.fullmatch(value)
    if found is None or not (found[1] or found[2]):
        raise click.BadParameter("a range is A-B (both included), A- or -N", ctx, param)
    first, last = (int(text) if text else None for text in found.groups())
    if first is not None and last is not None and last < first:
        raise click.BadParameter("a range ends where it begins, or after", ctx, param)
    return first, last


def range_of(wanted: tuple[int | None, int | None] | None, size: int) -> tuple[int, int]:
    """(start, stop) of a range in a file of ``size`` bytes; stop is not included.

    Raises:
        UsageError: It begins past the end.
    """
    from broker.errors import UsageError

    if wanted is None:
        return 0, size
    first, last = wanted
    if first is None:
        return max(0, size - (last or 0)), size
    if first >= size:
        raise UsageError(f"the range begins past the end: the file has {size} bytes")
    return first, size if last is None else min(size, last + 1)


def include_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns as typed: one without ``/`` means a name anywhere (``*.json`` is ``**/*.json``)."""
    return tuple(text if "/" in text or text == "**" else f"**/{text}" for text in patterns)


def split_groups(values: tuple[str, ...]) -> list[str] | None:
    """Values of a repeatable option, also separated by commas; an empty one clears, none leaves as it is."""
    if not values:
        return None
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


jobs_option = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, _MAX_JOBS),
    metavar="N",
    envvar="BROKER_JOBS",
    help="Threads that move data; 4 unless BROKER_JOBS says otherwise.",
)
purpose_option = click.option(
    "--purpose",
    metavar="TEXT",
    envvar="BROKER_PURPOSE",
    help=f"Why; recorded, and a matter of policy (at most {limits.MAX_PURPOSE} bytes).",
)

since_option = click.option(
    "--since", metavar="T", help="From this time on: 30m, 24h, 7d, 2w, a date or RFC 3339 time."
)
until_option = click.option("--until", metavar="T", help="Before this time.")


def with_times(query: tuple[str, ...], *, since: str | None, until: str | None) -> str:
    """A question to the ledger as one text, for what keeps it: the times become words of it."""
    times = [f"{name}:{value}" for name, value in (("since", since), ("until", until)) if value]
    return " ".join((*query, *times))


def pinned_key(call: Invocation) -> str:
    """The log key that the profile pins: for commands that need no server."""
    return pinned_keys(call)[0]


def pinned_keys(call: Invocation) -> Sequence[str]:
    """That key, and those before it that led to it: what they signed verifies still."""
    from broker.client.log_key import trusted_keys
    from broker.client.settings import find_profile

    return trusted_keys(find_profile(call.profile))
