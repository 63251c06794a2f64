"""``verify``: are these local files what the publisher signed?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.output import counted, safe, size_text

if TYPE_CHECKING:
    from broker.client.verify import Comparison


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker verify ./llama-7b acme/llama-7b@step-1000",
        "broker verify ./config.json acme/llama-7b@step-1000/config.json",
    ),
)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("ref")
@click.pass_obj
def verify(call: Invocation, path: Path, ref: str) -> None:
    """Compare local files with a version, byte for byte by digest; nothing is fetched.

    The exit status is 6 when a file differs or is missing. Files that the version does not have are
    named, and are no failure.
    """
    from broker.client.verify import check_same

    found = call.client.verify(path, ref)
    call.out.record(_record(found), _lines(found))
    check_same(found)


def _record(found: Comparison) -> dict[str, Any]:
    return {
        "ok": found.same,
        "artifact": found.artifact,
        "version": found.version,
        "manifest": found.manifest,
        "files": found.files,
        "bytes": found.bytes,
        "differing": list(found.differing),
        "missing": list(found.missing),
        "extra": list(found.extra),
    }


def _lines(found: Comparison) -> Iterator[str]:
    for word, paths in (("differs", found.differing), ("missing", found.missing), ("extra", found.extra)):
        for path in paths:
            yield f"{word:<8} {safe(path)}"
    if found.same:
        yield (
            f"ok: {counted(found.files, 'file')}, {size_text(found.bytes)}, "
            f"as signed in {found.artifact}@{found.version}"
        )
