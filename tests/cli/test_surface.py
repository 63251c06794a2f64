"""Every command: there, helped, with examples, and with the options that all of them have."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest

from broker.cli import completion as _  # noqa: F401  (a command module imports on its own)
from broker.cli.command import BrokerCommand, plain_help
from broker.cli.reference import iter_help
from broker.cli.root import PLACES, PROGRAM, cli
from tests.cli.served import run

COMMON = {"--output", "-o", "--json", "--quiet", "-q", "--verbose", "-v", "--profile"}
CONTRACT = """
login whoami ls info put get cat verify exec agent can serve forward dev demo completion
witness:key witness:serve
token:inspect token:revoke token:mint token:key token:exchange
ledger:search ledger:count ledger:show ledger:verify ledger:prove ledger:checkpoint ledger:verify-receipt
ledger:export ledger:verify-export ledger:kit ledger:verify-kit ledger:audit ledger:pin ledger:query
policy:validate policy:fmt policy:show policy:apply policy:test policy:who-can policy:what-can policy:replay
admin:principal:add admin:principal:set admin:principal:code admin:principal:ls
admin:principal:disable admin:principal:enable
admin:issuer:add admin:issuer:ls admin:issuer:show admin:issuer:rm admin:issuer:test
admin:collection:ls admin:collection:set admin:keys:create admin:keys:create-log admin:keys:rotate-log
admin:revoke admin:doctor admin:migrate
admin:new-origin admin:evidence:erase admin:evidence:sweep
"""


def walk(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from walk(found, (*path, name))
    else:
        yield path, command


LEAVES = dict(walk(cli))
IDS = [" ".join(path) for path in LEAVES]


def test_the_commands_are_those_that_are_built() -> None:
    assert {":".join(path) for path in LEAVES} == set(CONTRACT.split())


@pytest.mark.parametrize("path", LEAVES, ids=IDS)
def test_each_command_has_the_common_options(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    assert isinstance(command, BrokerCommand)
    found = {name for param in command.params for name in param.opts}
    assert found >= COMMON
    own = [name for param in command.params for name in param.opts]
    assert len(own) == len(set(own)), "an option is there twice"


@pytest.mark.parametrize(("path", "text"), list(iter_help(cli)), ids=lambda v: v if len(v) < 60 else "")
def test_each_help_has_examples_that_parse(path: str, text: str) -> None:
    assert "Examples:" in text
    examples = text.partition("Examples:\n")[2].splitlines()
    assert examples
    for example in examples:
        assert "broker" in example
        check_example(example.strip())
    assert all(len(line) <= 100 for line in text.splitlines())


def check_example(example: str) -> None:
    """The words after ``broker`` parse as a command line of ours, up to the shell's own words."""
    if "COMMAND" in example or example.startswith("eval"):
        return
    words = shlex.split(example)
    words = words[words.index("broker") + 1 :]
    for stop in ("|", ">", "<"):
        if stop in words:
            words = words[: words.index(stop)]
    command: click.Command = cli
    ctx = click.Context(cli, info_name=PROGRAM)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(ctx, name)
        assert found is not None, example
        command = found
    command.make_context(command.name, words, parent=ctx, resilient_parsing=False)


@pytest.mark.parametrize("path", LEAVES, ids=IDS)
@pytest.mark.parametrize(
    "format", [("-o", "jsonl"), ("--json",), ("-o", "csv", "-q"), ("-v", "--profile", "p")]
)
def test_common_options_are_taken_after_any_command(path: tuple[str, ...], format: tuple[str, ...]) -> None:
    done = run(*path, *format, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: broker {' '.join(path)}")


def test_the_line_about_a_command_is_its_own() -> None:
    done = run("--help")
    assert done.exit_code == 0
    for name, place in PLACES.items():
        assert f"  {name}" in done.stdout
        assert place.help in done.stdout


@pytest.mark.parametrize("path", [path for path in LEAVES if len(path) > 1], ids=" ".join)
def test_the_first_sentence_of_a_help_fits_a_list(path: tuple[str, ...]) -> None:
    assert not LEAVES[path].get_short_help_str(60).endswith("...")


def test_version() -> None:
    from broker import __version__

    assert run("--version").stdout == f"broker {__version__}\n"


@pytest.mark.parametrize("words", [(), ("ledger",), ("admin", "principal")])
def test_a_group_alone_shows_its_help_and_ends_with_2(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: broker")


@pytest.mark.parametrize("words", [("frob",), ("ledger", "frob"), ("request", "new"), ("admin", "freeze")])
def test_what_is_not_built_does_not_exist(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert "no such command" in done.stderr


def test_output_is_one_of_the_formats() -> None:
    assert run("completion", "bash", "-o", "xml").exit_code == 2
    assert run("completion", "bash", env={"BROKER_OUTPUT": "xml"}).exit_code == 2
    assert run("completion", "bash", "--json", "-o", "csv").exit_code == 2
    assert run("completion", "bash", "--json", "-o", "json").exit_code == 0


def test_the_flag_is_above_the_environment() -> None:
    env = {"BROKER_OUTPUT": "json"}
    assert run("completion", "bash", env=env).stdout.startswith("{")
    assert not run("completion", "bash", "-o", "text", env=env).stdout.startswith("{")
    assert run("completion", "bash", "--json", env={"BROKER_OUTPUT": "csv"}).stdout.startswith("{")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert "_BROKER_COMPLETE" in done.stdout


def test_completion_completes() -> None:
    env = {"_BROKER_COMPLETE": "bash_complete", "COMP_WORDS": "broker ledger ver", "COMP_CWORD": "2"}
    done = run(env=env)
    names = ("verify", "verify-export", "verify-kit", "verify-receipt")
    assert done.stdout.splitlines() == [f"plain,{name}" for name in names]


def test_help_at_a_terminal_says_the_same() -> None:
    from broker.cli.rich_help import render_help

    for path, text in iter_help(cli):
        words = path.split()[1:]
        command: click.Command = cli
        ctx = click.Context(cli, info_name=PROGRAM)
        for word in words:
            assert isinstance(command, click.Group)
            found = command.get_command(ctx, word)
            assert found is not None
            command, ctx = found, click.Context(found, info_name=word, parent=ctx)
        drawn = click.unstyle(render_help(command, ctx))
        assert f"Usage: {path}" in drawn
        assert text.partition("Examples:\n")[2].strip() in drawn
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.opts[-1] in drawn


def test_plain_help_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    first = dict(iter_help(cli))
    monkeypatch.setenv("COLUMNS", "40")
    assert dict(iter_help(cli)) == first
    assert plain_help(cli, click.Context(cli, info_name=PROGRAM)).startswith("Usage: broker [OPTIONS]")
