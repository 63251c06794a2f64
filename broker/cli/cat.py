"""``cat``: one file of a version, or a range of its bytes, to stdout."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Final

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import purpose_option, range_of, read_range
from broker.cli.output import to_bytes_stream

_MOST_IN_JSON: Final = 64 * 1024 * 1024


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker cat acme/llama-7b@step-1000/config.json",
        "broker cat acme/llama-7b/model.safetensors --range 0-1023 | xxd",
        "broker cat acme/web-text@2026-11/part-0.jsonl --range -4096",
    ),
)
@click.argument("ref", metavar="REF/PATH")
@click.option("--range", "wanted", callback=read_range, metavar="A-B", help="Bytes A to B, both included.")
@purpose_option
@click.pass_obj
def cat(
    call: Invocation, ref: str, *, wanted: tuple[int | None, int | None] | None, purpose: str | None
) -> None:
    """Write one file of a version to stdout; every byte is verified before it is written.

    A range fetches only what it needs: A-B, A- to the end, -N the last N bytes. The bytes come as they
    are; -o json, jsonl or csv wraps them as base64url (at most 64 MiB).
    """
    from broker.errors import InvalidRequest
    from broker.names import parse_ref

    parsed = parse_ref(ref)
    if parsed.path is None:
        raise InvalidRequest(
            "this needs one file: collection/name[@version]/path", next=f"broker ls {parsed}@VERSION"
        )
    with closing(call.client.library(purpose=purpose)) as library:
        reader = library.reader(library.version(parsed.collection, parsed.name, parsed.version))
        start, stop = range_of(wanted, reader.size(parsed.path))
        pieces = reader.iterate(parsed.path, start, stop)
        if call.out.format == "text" or not _format_is_flag():
            sink = to_bytes_stream()
            for piece in pieces:
                sink.write(piece)
            sink.flush()
            return
        call.out.record(_record(str(parsed), pieces, start, stop), ())


def _format_is_flag() -> bool:
    # BROKER_OUTPUT is about lists and records; bytes become text only when the command line says so.
    ctx = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    return given in (ctx.get_parameter_source("output"), ctx.get_parameter_source("as_json"))


def _record(ref: str, pieces: Iterable[memoryview], start: int, stop: int) -> dict[str, object]:
    from broker.canonical import b64url
    from broker.errors import UsageError

    if stop - start > _MOST_IN_JSON:
        raise UsageError(
            "this is too much to be wrapped",
            why="at most 64 MiB",
            next="leave -o out for the bytes themselves",
        )
    data = b"".join(pieces)
    return {"ref": ref, "offset": start, "bytes": len(data), "data": b64url(data)}
