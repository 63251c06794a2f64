"""``policy replay``: recorded decisions made again, by the same policies or by a candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from broker.cli.bars import counting
from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import since_option, until_option
from broker.cli.output import Column, counted, plain, safe, table, time_text
from broker.errors import IntegrityFailure

_SHOWN: Final = 50
"""Flips that the text output lists; -o json has them all."""
_FLIPS: Final = (
    Column(name="index", title="INDEX", right=True),
    Column(name="time", title="TIME", show=time_text),
    Column(name="principal", title="WHO", shrink=True, show=lambda who: plain(who).removeprefix("user:")),
    Column(name="action", title="ACTION"),
    Column(name="artifact", title="ARTIFACT", shrink=True),
    Column(name="change", title="CHANGE"),
    Column(name="policies", title="POLICIES", shrink=True),
)
_BY: Final = (
    Column(name="name", title="NAME", shrink=True),
    Column(name="newly_allowed", title="NEWLY ALLOWED", right=True),
    Column(name="newly_denied", title="NEWLY DENIED", right=True),
)
_WHY: Final = {
    "not_policy": "were refused before policy was asked",
    "no_inputs": "were recorded without what policy was shown",
    "erased": "cannot be repeated: their evidence was erased",
}


@click.command(
    "replay",
    cls=BrokerCommand,
    examples=(
        "broker policy replay --since 30d",
        "broker policy replay policies --since 30d",
        "broker policy replay policies 'artifact:acme/llama-7b' --since 7d -o json",
    ),
)
@click.argument("folder", required=False, metavar="[DIR]", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1)
@since_option
@until_option
@click.pass_obj
def replay(
    call: Invocation,
    *,
    folder: Path | None,
    query: tuple[str, ...],
    since: str | None,
    until: str | None,
) -> None:
    """Decide what was decided again.

    With DIR: what its policies would have allowed and denied that was decided otherwise. Without: the
    policies that were in force decide again, on what they were shown then; any other answer means that a
    bundle, the evidence or the engine was changed, and is exit 6. Nothing is changed or released.
    QUERY is that of ledger search. For auditors; recorded.
    """
    from broker.cli.policy import read_folder

    files = None if folder is None else _texts(read_folder(folder), folder)
    with counting(call.out, "deciding again", unit="entries") as told:
        found = call.client.ledger.replay(
            files, query=" ".join(query), since=since, until=until, on_progress=told
        )
    call.out.record(found, _lines(found))
    if not found["ok"]:
        first = found["findings"][0]
        raise IntegrityFailure(
            f"{counted(found['counts']['findings'], 'decision')} cannot be repeated as recorded",
            why=f"entry {first['index']}: {first['problem']}",
            next="broker ledger verify --full",
        )


def _texts(files: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    from broker.errors import InvalidRequest

    try:
        return {name: data.decode("utf-8") for name, data in files.items()}
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"a policy file of {folder} is not UTF-8") from exc


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    counts = found["counts"]
    yield f"{counted(counts['decisions'], 'decision')}, {counts['same']} the same again"
    for name, why in _WHY.items():
        if counts[name]:
            yield f"{counts[name]} {why}"
    if found["bundle"] is not None:
        yield f"{found['newly_allowed']} newly allowed, {found['newly_denied']} newly denied"
    for title, name in (("by principal", "by_principal"), ("by artifact", "by_artifact")):
        if found[name]:
            yield ""
            yield title
            yield from table([{"name": key, **row} for key, row in found[name].items()], _BY)
    if found["flips"]:
        yield ""
        yield from table([_flip(row) for row in found["flips"][:_SHOWN]], _FLIPS)
    if len(found["flips"]) > _SHOWN:
        yield f"and {len(found['flips']) - _SHOWN} more (-o json has them)"
    for finding in found["findings"][:_SHOWN]:
        yield safe(f"entry {finding['index']}: {finding['problem']}")


def _flip(row: Mapping[str, Any]) -> dict[str, Any]:
    version = f"@{row['version']}" if row.get("version") else ""
    return {
        **row,
        "artifact": f"{row.get('artifact') or '-'}{version}",
        "change": f"{row['was']['effect']} -> {row['now']['effect']}",
        "policies": ", ".join(row["now"]["policies"] or row["was"]["policies"]),
    }
