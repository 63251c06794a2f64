"""The page of every command, made from their own help: ``python -m broker.cli.reference > docs/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from broker.cli.command import HELP_NAMES, plain_help
from broker.cli.root import PROGRAM, cli
from broker.errors import EXIT_CODE

_HEAD = """# The command line

This page is made from the commands' own help (`python -m broker.cli.reference > docs/cli.md`); a test
compares the two.

Data goes to stdout, talk and bars to stderr. After any command stand `-o text|json|jsonl|csv` (`--json`
is `-o json`), `-q`, `-v` and `--profile NAME`. Bars are drawn only where stderr is a terminal; elsewhere
a long transfer says a short line every few seconds. Nothing that came from elsewhere (file names,
purposes, entries) reaches a terminal as it is: control characters and bidirectional overrides are shown
as escapes. In CSV, text that a spreadsheet would run as a formula has a quote (`'`) before it.

Settings are taken from the flag, else from the environment (`BROKER_OUTPUT`, `BROKER_PURPOSE`,
`BROKER_JOBS`, `BROKER_PROFILE_DIR`, `BROKER_URL`, `BROKER_LOG_VKEY`, `BROKER_TOKEN_FILE`, `NO_COLOR`), else
from the profile, else the default. In a job, the identity is found as
[integrations/training-jobs.md](integrations/training-jobs.md) says.

## Exit status
"""
_MEANING = {
    0: "done",
    1: "a bug; its id, and where the traceback is, are printed",
    2: "usage or configuration, a conflict, a policy test that fails",
    3: "denied by policy",
    4: "not authenticated, or expired",
    5: "not found, or not visible",
    6: "**integrity failure**: a digest, signature, proof, or a ledger that was rolled back",
    7: "waiting for an approval",
    8: "over a limit or budget",
    9: "unreachable after retries",
    10: "partly done; the same command again resumes",
    130: "interrupted; what was verified is kept",
    141: "the reader of stdout left",
}
_ERRORS = """
An error says what, why, and what to do next:

```
error: read of acme/llama-7b@step-1000 is denied                                    (exit 3)
  why:  policy "critical-needs-approval" (policies/tiers.cedar)
  next: ask an administrator: a critical version is never read on one person's word
```

`broker can` and `broker get --dry-run` end with 3 when the answer is deny, and with 7 when an approval is
needed; the data is on stdout all the same.
"""


def render_reference() -> str:
    """The whole page, ending in a newline."""
    codes: dict[int, list[str]] = {}
    for code, status in EXIT_CODE.items():
        codes.setdefault(status, []).append(f"`{code}`")
    rows = [f"| {n} | {text} | {', '.join(codes.get(n, []))} |" for n, text in _MEANING.items()]
    table = ["| status | meaning | error codes |", "|---|---|---|", *rows]
    pages = [f"## {path}\n\n```text\n{text}\n```" for path, text in iter_help(cli)]
    return "\n".join([_HEAD, *table, _ERRORS, "\n\n".join(pages)]) + "\n"


def iter_help(root: click.Group) -> Iterator[tuple[str, str]]:
    """(path, plain help) of every command, groups before what is in them."""
    yield from _walk(root, click.Context(root, info_name=PROGRAM, **HELP_NAMES))


def _walk(command: click.Command, ctx: click.Context) -> Iterator[tuple[str, str]]:
    yield ctx.command_path, plain_help(command, ctx)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            if found is not None:
                yield from _walk(found, click.Context(found, info_name=name, parent=ctx))


if __name__ == "__main__":
    sys.stdout.write(render_reference())
