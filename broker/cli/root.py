"""The root of the command line, and what becomes of each way in which a command can end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from broker import __version__
from broker.cli.command import HELP_NAMES, LazyGroup, Place
from broker.cli.output import is_terminal, safe
from broker.errors import EXIT_CODE, BrokerError

PROGRAM: Final = "broker"
COMPLETE_VARIABLE: Final = "_BROKER_COMPLETE"
_STATUS_COLUMN: Final = 84
"""Where ``(exit N)`` stands in the first line of an error, when the line has room."""
_INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141
"""What the shell gives a command that writes to a reader who left (128 + SIGPIPE)."""

_DATA, _ACCESS, _LEDGER, _ADMIN, _SERVER, _SHELL = (
    "Models and datasets",
    "Who you are, what you may",
    "The record",
    "Administration",
    "Server",
    "Shell",
)

PLACES: Final[dict[str, Place]] = {
    "ls": Place(
        target="broker.cli.catalogue:ls",
        help="List artifacts, versions, or files of a version.",
        section=_DATA,
    ),
    "info": Place(
        target="broker.cli.catalogue:info", help="Show a version, its trust path verified.", section=_DATA
    ),
    "get": Place(target="broker.cli.get:get", help="Fetch a version, or some files of it.", section=_DATA),
    "put": Place(
        target="broker.cli.put:put", help="Publish a file or folder as a new version.", section=_DATA
    ),
    "cat": Place(
        target="broker.cli.cat:cat", help="Write one file, or a range of it, to stdout.", section=_DATA
    ),
    "verify": Place(
        target="broker.cli.verify:verify", help="Compare local files with what was published.", section=_DATA
    ),
    "exec": Place(
        target="broker.cli.exec:exec_",
        help="Run a command whose S3 and Hugging Face tools read through the broker.",
        section=_DATA,
    ),
    "agent": Place(
        target="broker.cli.agent:agent",
        help="Serve what you may read to S3 and Hugging Face tools, on loopback.",
        section=_DATA,
    ),
    "login": Place(
        target="broker.cli.access:login",
        help="Enrol this machine's key with a one-time code.",
        section=_ACCESS,
    ),
    "whoami": Place(
        target="broker.cli.access:whoami", help="Show principal, keys, groups and token.", section=_ACCESS
    ),
    "can": Place(
        target="broker.cli.access:can", help="Ask whether something is allowed, and why.", section=_ACCESS
    ),
    "token": Place(
        target="broker.cli.token:token", help="Get, mint, inspect and revoke access tokens.", section=_ACCESS
    ),
    "ledger": Place(
        target="broker.cli.ledger:ledger", help="Search, show, prove and verify the ledger.", section=_LEDGER
    ),
    "policy": Place(
        target="broker.cli.policy:policy", help="Check, test, show and apply policies.", section=_ADMIN
    ),
    "admin": Place(
        target="broker.cli.admin:admin", help="Principals, issuers, revocations, upkeep.", section=_ADMIN
    ),
    "witness": Place(
        target="broker.cli.witness:witness", help="Run a witness for somebody else's log.", section=_SERVER
    ),
    "serve": Place(target="broker.cli.server:serve", help="Run the production server.", section=_SERVER),
    "forward": Place(
        target="broker.cli.forward:forward", help="Bring every entry to SIEMs and webhooks.", section=_SERVER
    ),
    "dev": Place(target="broker.cli.server:dev", help="Run a whole broker on this machine.", section=_SERVER),
    "demo": Place(
        target="broker.cli.server:demo", help="Tell the whole story with a real checkpoint.", section=_SERVER
    ),
    "completion": Place(
        target="broker.cli.completion:completion", help="Print the shell completion script.", section=_SHELL
    ),
}
"""Every command: where it lives, and the line about it."""


@click.group(
    PROGRAM,
    cls=LazyGroup,
    places=PLACES,
    context_settings=dict(HELP_NAMES),
    examples=(
        "broker login --server https://broker.example --code bke1.abc...",
        "broker get acme/llama-7b@step-1000 ./ckpt",
        "broker put ./ckpt acme/llama-7b@step-2000",
        "broker COMMAND --help",
    ),
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """Model weights and datasets: asked for, decided, recorded, then served.

    A REF is [broker://]collection/name[@version][/path]; without a version it is the newest one.
    """


def run(command: click.Command, args: Sequence[str]) -> int:
    """Run one command line; the exit status. Never raises for what a command can run into.

    Args:
        command: The root.
        args: The words after ``broker``.
    """
    _be_lenient_with_encodings()
    if (instruction := os.environ.get(COMPLETE_VARIABLE)) is not None:
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, PROGRAM, COMPLETE_VARIABLE, instruction)
    try:
        try:
            with command.make_context(PROGRAM, list(args)) as ctx:
                command.invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            return _leave_quietly()
        return 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.exceptions.NoArgsIsHelpError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return exc.exit_code
    except click.ClickException as exc:
        return _tell_usage(exc)
    except (KeyboardInterrupt, click.Abort):
        _tell("interrupted", _INTERRUPTED, why=None, next="the same command again is safe")
        return _INTERRUPTED
    except BrokerError as exc:
        return tell_error(exc, verbose=_asks_for_more(args))
    except Exception as exc:
        return _tell_bug(exc, verbose=_asks_for_more(args))


def _be_lenient_with_encodings() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _asks_for_more(args: Sequence[str]) -> bool:
    return "-v" in args or "--verbose" in args


def _leave_quietly() -> int:
    # The reader left. The interpreter flushes stdout once more at its end: let that go nowhere.
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    return _BROKEN_PIPE


# -- errors -----------------------------------------------------------------------------------------------


def tell_error(error: BrokerError, *, verbose: bool = False) -> int:
    """Tell what failed, why, and what to do next; the exit status of its code."""
    status = EXIT_CODE[error.code]
    why = error.why
    if verbose:
        why = f"{why or error.what} [{error.code}]"
    _tell(error.what, status, why=why, next=error.next)
    return status


def _tell_usage(exc: click.ClickException) -> int:
    ctx = getattr(exc, "ctx", None)
    path = PROGRAM if ctx is None else ctx.command_path
    message = exc.format_message().rstrip(".")
    _tell(message[:1].lower() + message[1:], exc.exit_code, why=None, next=f"{path} --help")
    return exc.exit_code


def _tell_bug(exc: Exception, *, verbose: bool) -> int:
    from broker.cli.faults import record_fault

    fault = record_fault(exc)
    _tell(
        f"this is a bug in broker ({type(exc).__name__}), id {fault.id}",
        EXIT_CODE["internal"],
        why=None,
        next=f"report it with {fault.path}" if fault.path else "run it again with -v and report what it says",
    )
    if verbose:
        sys.stderr.write(fault.text)
    return EXIT_CODE["internal"]


def _tell(what: str, status: int, *, why: str | None, next: str | None) -> None:
    sys.stderr.write(error_text(what, status, why=why, next=next, color=_use_color()))
    sys.stderr.flush()


def _use_color() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return is_terminal(sys.stderr) and not plain


def error_text(what: str, status: int, *, why: str | None, next: str | None, color: bool = False) -> str:
    """An error as it is told: up to three lines, nothing in them that a terminal would obey."""
    head = f"error: {safe(what)}"
    blank = " " * max(2, _STATUS_COLUMN - len(head))
    if color:
        head = f"\x1b[1;31merror:\x1b[0m {safe(what)}"
    lines = [f"{head}{blank}(exit {status})"]
    lines += _labelled("why:  ", why) + _labelled("next: ", next)
    return "\n".join(lines) + "\n"


def _labelled(label: str, text: str | None) -> list[str]:
    # Further lines stand below the text, so that none of them can pass for a line of ours.
    told = [safe(line) for line in text.split("\n")] if text else []
    return [f"  {label if at == 0 else ' ' * len(label)}{line}" for at, line in enumerate(told)]
