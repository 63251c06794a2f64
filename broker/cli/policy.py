"""``policy``: check, test, format, show and apply policies."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli.command import BrokerGroup, Invocation
from broker.cli.options import read_file
from broker.cli.output import Column, counted, safe, safe_lines
from broker.cli.policy_reach import what_can, who_can
from broker.cli.policy_replay import replay
from broker.cli.server_side import needs_server

if TYPE_CHECKING:
    from broker.policy.sandbox import BundleReport

_SCHEMA_FILE: Final = "schema.cedarschema"
_SUFFIX: Final = ".cedar"
_TESTS: Final = "tests"

_POLICIES: Final = (
    Column(name="id", title="POLICY"),
    Column(name="effect", title="EFFECT"),
    Column(name="file", title="FILE", shrink=True),
    Column(name="next", title="ADVICE", shrink=True),
)
_RESULTS: Final = (
    Column(name="passed", title="OK"),
    Column(name="file", title="FILE", shrink=True),
    Column(name="name", title="CASE", shrink=True),
    Column(name="got", title="ANSWER", shrink=True),
)
folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.group(
    cls=BrokerGroup,
    examples=(
        "broker policy validate policies",
        "broker policy test policies",
        "broker policy apply policies",
    ),
)
def policy() -> None:
    """Policies in Cedar: a folder of NAME.cedar files and schema.cedarschema, tests below tests/."""


policy.add_command(replay)
policy.add_command(who_can)
policy.add_command(what_can)


@policy.command(examples=("broker policy validate policies", "broker policy validate policies -o json"))
@folder_argument
@click.pass_obj
@needs_server
def validate(call: Invocation, folder: Path) -> None:
    """Check a folder of policies as the server will.

    Each parses, fits the schema, has an @id of its own, and depends on nothing beyond the request.
    """
    report = check_folder(folder)
    rows = [{"id": p.id, "effect": p.effect, "file": p.file, "next": p.next} for p in report.policies]
    call.out.rows(
        rows,
        _POLICIES,
        whole=lambda found: {"ok": True, "bundle": report.bundle, "policies": found},
        members=("id", "effect", "file", "next"),
        empty="",
    )
    call.out.say(f"ok: bundle {report.bundle}; next: broker policy test {safe(folder)}")


def check_folder(folder: Path) -> BundleReport:
    """The report on a folder's bundle, parsed and validated in a capped child process.

    Raises:
        InvalidRequest: It is not valid.
        UsageError: It cannot be read.
    """
    from broker import limits, sandbox
    from broker.policy import sandbox as check
    from broker.policy.bundle import build_bundle, bundle_bytes

    bundle = build_bundle(read_folder(folder))
    answer = sandbox.run_capped(
        check.MODULE,
        bundle_bytes(bundle),
        seconds=limits.POLICY_PARSE_SECONDS,
        memory=limits.POLICY_PARSE_MEMORY,
    )
    return check.parse_report(answer, bundle)


def read_folder(folder: Path) -> dict[str, bytes]:
    """The bundle's files of a folder by name: every ``*.cedar``, and the schema.

    Raises:
        UsageError: The folder or a file cannot be read, or there is no policy.
    """
    from broker.errors import UsageError

    found = {
        path.name: read_file(path)
        for path in _list(folder)
        if path.suffix == _SUFFIX or path.name == _SCHEMA_FILE
    }
    if not any(name.endswith(_SUFFIX) for name in found):
        raise UsageError(f"there is no policy (NAME.cedar) in {folder}")
    return found


def _list(folder: Path) -> list[Path]:
    from broker.errors import UsageError

    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as exc:
        raise UsageError(f"cannot read the folder {folder}", why=exc.strerror) from exc


@policy.command(examples=("broker policy test", "broker policy test policies -o json"))
@click.argument(
    "folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=Path("policies")
)
@click.pass_obj
@needs_server
def test(call: Invocation, folder: Path) -> None:
    """Run the test cases of a folder of policies.

    The cases are in DIR/tests/*.toml; DIR is ./policies unless given. The exit status is 2 when a case fails.
    """
    from broker.errors import ConfigurationError, UsageError
    from broker.policy.bundle import build_bundle
    from broker.policy.cases import run_policy_tests
    from broker.policy.engine import PolicyEngine

    check_folder(folder)
    tests = {path.name: read_file(path) for path in _list(folder / _TESTS) if path.suffix == ".toml"}
    if not tests:
        raise UsageError(f"there is no test file (NAME.toml) in {folder / _TESTS}")
    results = run_policy_tests(PolicyEngine(build_bundle(read_folder(folder))), tests)
    failed = [result for result in results if not result.passed]
    shown = failed if call.out.format == "text" and not call.out.verbose else results
    rows = [{**vars(result), "policies": list(result.policies)} for result in shown]
    if rows or call.out.format != "text":
        call.out.rows(
            rows,
            _RESULTS,
            whole=lambda found: {"ok": not failed, "cases": found},
            members=("file", "name", "passed", "expected", "got", "policies"),
            empty="",
        )
    if failed:
        first = failed[0]
        raise ConfigurationError(
            f"{len(failed)} of {len(results)} policy cases fail",
            why=f'{first.file}: "{first.name}" expects {first.expected}, got {first.got}',
        )
    call.out.say(f"ok: {len(results)} cases")


@policy.command(examples=("broker policy fmt policies", "broker policy fmt policies --check"))
@folder_argument
@click.option("--check", "check_only", is_flag=True, help="Change nothing; exit with 2 if something would.")
@click.pass_obj
@needs_server
def fmt(call: Invocation, folder: Path, *, check_only: bool) -> None:
    """Lay policies out in Cedar's own style.

    Prints the files that change.
    """
    from broker.errors import ConfigurationError
    from broker.policy.layout import format_policies

    check_folder(folder)
    changed = []
    for name, data in read_folder(folder).items():
        text = data.decode("utf-8")
        laid_out = format_policies(text) if name.endswith(_SUFFIX) else text
        if laid_out != text:
            changed.append(name)
            if not check_only:
                _replace(folder / name, laid_out)
    call.out.record({"changed": changed, "written": not check_only}, map(safe, changed))
    if changed and check_only:
        raise ConfigurationError(
            f"not in Cedar's style: {counted(len(changed), 'policy file')}",
            next=f"broker policy fmt {folder}",
        )
    call.out.say(f"{counted(len(changed), 'file')} changed")


def _replace(path: Path, text: str) -> None:
    from broker.errors import UsageError

    # By rename: a crash leaves the old file or the new one.
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            os.chmod(name, path.stat().st_mode & 0o777)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as exc:
        raise UsageError(f"cannot write {path}", why=exc.strerror) from exc


@policy.command(examples=("broker policy show", "broker policy show -o json"))
@click.pass_obj
def show(call: Invocation) -> None:
    """Show the policies that decide now (administrators)."""
    found = call.client.admin.show_policies()
    call.out.record(found, _bundle_lines(found))


def _bundle_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"// bundle {safe(found['bundle'])}"
    for name, text in found["files"].items():
        yield f"\n// file {safe(name)}"
        yield safe_lines(str(text).rstrip("\n"))


@policy.command(examples=("broker policy apply policies",))
@folder_argument
@click.pass_obj
def apply(call: Invocation, folder: Path) -> None:
    """Make the policies of DIR decide (administrators).

    They hold from the next request on; the change is recorded.
    """
    from broker.errors import InvalidRequest

    try:
        files = {name: data.decode("utf-8") for name, data in read_folder(folder).items()}
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"a policy file of {folder} is not UTF-8") from exc
    answer = call.client.admin.apply_policies(files)
    found = {"bundle": answer["bundle"], "previous": answer.get("previous")}
    call.out.record(found, [safe(answer["bundle"])])
    call.out.say(f"applied; before it was {safe(answer.get('previous') or 'none')}; next: broker policy show")
