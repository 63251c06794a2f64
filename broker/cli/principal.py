"""``admin principal``: who there is, what they are, and the codes that enrol their machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from broker.cli.command import BrokerGroup, Invocation
from broker.cli.options import split_groups
from broker.cli.output import Column, fields, safe, time_text

_ROLES: Final = ("engineer", "auditor", "admin", "publisher", "workload")
_PRINCIPALS: Final = (
    Column(name="id", title="PRINCIPAL"),
    Column(name="roles", title="ROLES", shrink=True),
    Column(name="groups", title="GROUPS", shrink=True),
    Column(name="disabled", title="DISABLED"),
    Column(
        name="keys",
        title="KEYS",
        right=True,
        show=lambda keys: str(sum(k["status"] == "active" for k in keys)),
    ),
    Column(name="created_at", title="SINCE", show=time_text),
)
_MEMBERS: Final = ("id", "roles", "groups", "disabled", "created_at", "keys")
role_option = click.option(
    "--role", "roles", type=click.Choice(_ROLES), multiple=True, help="A role; may be repeated."
)
group_option = click.option(
    "--group",
    "groups",
    metavar="G",
    multiple=True,
    help="A group; may be repeated, or several with commas. A group exists once it is named.",
)


@click.group(
    cls=BrokerGroup,
    examples=("broker admin principal add ana --group nlp", "broker admin principal ls"),
)
def principal() -> None:
    """People and workloads. A bare ID means user:ID; a workload is workload:ID."""


@principal.command(
    examples=(
        "broker admin principal add ana --group nlp",
        "broker admin principal add pub --role publisher --group acme",
        "broker admin principal add aud --role auditor -o json",
    )
)
@click.argument("id")
@role_option
@group_option
@click.pass_obj
def add(call: Invocation, id: str, *, roles: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Add a principal, and print its enrolment code.

    It is an engineer unless a role is given. The code is shown this once, works once, and for an
    hour. Hand it over in person or by a channel
    that you trust.
    """
    answer = call.client.admin.add_principal(id, roles=roles, groups=split_groups(groups) or ())
    found = {"id": answer["id"], "roles": answer["roles"], "groups": answer["groups"], **_code(call, answer)}
    call.out.record(
        found,
        [
            *fields(
                [("principal", found["id"]), ("roles", found["roles"]), ("groups", found["groups"] or "none")]
            ),
            *code_lines(found),
        ],
    )


@principal.command(examples=("broker admin principal code ana",))
@click.argument("id")
@click.pass_obj
def code(call: Invocation, id: str) -> None:
    """Print another one-time code for a principal.

    Earlier codes that were not used are dead.
    """
    answer = call.client.admin.new_code(id)
    found = {"id": answer["id"], **_code(call, answer)}
    call.out.record(found, [*fields([("principal", found["id"])]), *code_lines(found)])


def _code(call: Invocation, answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "enrolment_code": answer["enrolment_code"],
        "expires_at": answer["expires_at"],
        "login": login_command(call.client.profile.server, answer["enrolment_code"]),
    }


def login_command(server: str, code: str) -> str:
    """What the owner of a code types on their machine."""
    return f"broker login --server {server} --code {code}"


def code_lines(found: Mapping[str, Any]) -> list[str]:
    """The code and the command that uses it, for the person who hands it over."""
    return [
        safe(f"code       {found['enrolment_code']}"),
        safe(
            f"           works once, until {time_text(found['expires_at'])}"
            if found.get("expires_at")
            else ""
        ),
        "on their machine:",
        safe(f"  {found['login']}"),
    ]


@principal.command(
    "set",
    examples=(
        "broker admin principal set ana --role engineer --role publisher",
        "broker admin principal set ana --group nlp,vision",
        "broker admin principal set ana --group ''",
    ),
)
@click.argument("id")
@role_option
@group_option
@click.pass_obj
def set_(call: Invocation, id: str, *, roles: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Replace the roles or the groups of a principal.

    What is not given stays. An empty group clears them.
    """
    if not roles and not groups:
        raise click.UsageError("give --role or --group", click.get_current_context())
    _show(call, call.client.admin.set_principal(id, roles=list(roles) or None, groups=split_groups(groups)))


@principal.command("ls", examples=("broker admin principal ls", "broker admin principal ls -o csv"))
@click.pass_obj
def ls(call: Invocation) -> None:
    """List every principal."""
    call.out.rows(
        call.client.admin.list_principals(),
        _PRINCIPALS,
        whole=lambda rows: {"principals": rows},
        members=_MEMBERS,
        empty="nobody yet",
    )


@principal.command(examples=("broker admin principal disable ana",))
@click.argument("id")
@click.pass_obj
def disable(call: Invocation, id: str) -> None:
    """Stop a principal from the next request on.

    Their keys, grants and tokens stay, and are of no use.
    """
    _show(call, call.client.admin.set_principal(id, disabled=True))


@principal.command(examples=("broker admin principal enable ana",))
@click.argument("id")
@click.pass_obj
def enable(call: Invocation, id: str) -> None:
    """Let a disabled principal work again."""
    _show(call, call.client.admin.set_principal(id, disabled=False))


def _show(call: Invocation, answer: Mapping[str, Any]) -> None:
    found = {name: answer[name] for name in _MEMBERS if name in answer}
    call.out.record(
        found,
        fields(
            [
                ("principal", found["id"]),
                ("roles", found["roles"] or "none"),
                ("groups", found["groups"] or "none"),
                ("disabled", found["disabled"]),
            ]
        ),
    )
