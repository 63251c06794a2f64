"""``login``, ``whoami``, ``can``: who you are, and what you may."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.output import fields, is_terminal, plain, safe, time_text
from broker.client import private_files
from broker.errors import EXIT_CODE, ConfigurationError

if TYPE_CHECKING:
    from broker.client.settings import Profile

STATUS_OF_EFFECT: Final[Mapping[str, int]] = {
    "allow": 0,
    "deny": EXIT_CODE["denied"],
    "needs-approval": EXIT_CODE["needs_approval"],
}
"""Exit status of a dry run, by the decision that it came to."""


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker login --server https://broker.example --code bke1.abc...",
        "broker login --server http://127.0.0.1:8000 --code - --profile work",
    ),
)
@click.option("--server", metavar="URL", required=True, help="The broker's base URL; https beyond loopback.")
@click.option(
    "--code", metavar="CODE", help="The one-time code; - reads it from stdin. Asked for if left out."
)
@click.option(
    "--witness-policy",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A tlog-policy: which witnesses must have cosigned what the log records. Kept in the profile.",
)
@click.pass_obj
def login(call: Invocation, server: str, code: str | None, witness_policy: Path | None) -> None:
    """Enrol this machine: make a key, and bind it to you with a one-time code from an administrator.

    The code names the log that the broker must keep; another broker is refused before anything secret
    is used. The profile's folder is made, or is empty of a profile.
    """
    from broker.client.sdk import Client

    policy = None if witness_policy is None else _read_policy(witness_policy)
    with Client.login(server, _read_code(code), name=call.profile, witness_policy=policy) as client:
        profile = client.profile
        found = {
            "principal": profile.principal,
            "jkt": profile.key.jkt,
            "server": profile.server,
            "profile": str(profile.folder),
            "log": {"origin": profile.origin, "vkey": profile.vkey},
        }
    call.out.record(
        found,
        fields(
            [
                ("principal", found["principal"]),
                ("key", found["jkt"]),
                ("server", found["server"]),
                ("log", profile.origin),
                ("profile", found["profile"]),
            ]
        ),
    )
    call.out.say("enrolled; next: broker whoami")


def _read_policy(path: Path) -> bytes:
    found = private_files.find_file(path, follow=True)
    if found is None:
        raise ConfigurationError(f"there is no file {path}")
    return found


def _read_code(code: str | None) -> str:
    if code is None:
        if not is_terminal(sys.stdin):
            raise click.UsageError("Missing option '--code'", click.get_current_context())
        return str(click.prompt("One-time code", hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip() if code == "-" else code


@click.command(cls=BrokerCommand, examples=("broker whoami", "broker whoami -o json"))
@click.pass_obj
def whoami(call: Invocation) -> None:
    """Show your principal, groups, token scope and expiry, and every key that is bound to you.

    A key in the list that is not yours means that somebody enrolled in your name: tell an administrator.
    """
    client = call.client
    found = client.whoami()
    who, token = found["principal"], found["token"]
    lines = fields(
        [
            ("principal", who["id"]),
            ("roles", who["roles"] or "none"),
            ("groups", who["groups"] or "none"),
            ("key", found["jkt"]),
            ("server", client.profile.server),
            ("profile", _place(client.profile)),
            ("token", f"{token['id']} until {time_text(token['expires_at'])}"),
        ]
    )
    lines += identity_lines(token.get("identity"))
    lines += [f"scope      {safe(text)}" for text in scope_lines(token["authorization_details"])]
    for key in found["keys"]:
        this = ", this one" if key["jkt"] == found["jkt"] else ""
        lines.append(safe(f"bound key  {key['jkt']} ({key['status']}, entry {key['entry']}{this})"))
    call.out.record(found, lines)


def _place(profile: Profile) -> str:
    """The profile's folder; for a job also where its token comes from, and where its key is."""
    if profile.source is None:
        return str(profile.folder)
    kept = "this process" if profile.state is None else str(profile.state)
    return f"job with the token in {profile.source.where}; kept in {kept}"


def identity_lines(found: Mapping[str, Any] | None) -> list[str]:
    """What a workload's own token said of it; nothing for a person."""
    if not found:
        return []
    until = time_text(found["subject_expires_at"])
    lines = [safe(f"identity   issuer {found['issuer']}, rule {found['rule']}; vouched for until {until}")]
    return [*lines, safe(f"attributes {plain(found['attributes'])}")] if found["attributes"] else lines


def scope_lines(levels: Any) -> list[str]:
    """A token's scope in words, one line a detail; each further level narrows the ones before."""
    return [
        f"{'' if depth == 0 else f'narrowed {depth}: '}{_detail(detail)}"
        for depth, level in enumerate(levels)
        for detail in level
    ]


def _detail(detail: Mapping[str, Any]) -> str:
    more = {name: value for name, value in detail.items() if name not in ("type", "actions", "identifier")}
    on = f" on {detail['identifier']}" if "identifier" in detail else ""
    rest = f" ({plain(more)})" if more else ""
    return f"{detail.get('type')}: {plain(detail.get('actions', []))}{on}{rest}"


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker can acme/llama-7b@step-1000",
        "broker can acme/llama-7b@step-2000 --action publish",
        "broker can acme/llama-7b --as ana -o json",
    ),
)
@click.argument("ref")
@click.option(
    "--action",
    type=click.Choice(("read", "describe", "publish")),
    default="read",
    show_default=True,
    help="The act that is asked about.",
)
@click.option("--as", "principal", metavar="PRINCIPAL", help="Ask about somebody else (auditors and admins).")
@click.pass_obj
def can(call: Invocation, ref: str, *, action: str, principal: str | None) -> None:
    """Ask whether something is allowed, and by which policies. Nothing is released; the question is recorded.

    The exit status is 0 for allow, 3 for deny, 7 when an approval is needed.
    """
    found = decision_record(call.client.can(ref, action=action, principal=principal))
    decision = found["decision"]
    full = found["artifact"] + (f"@{found['version']}" if found["version"] else "")
    call.out.record(
        found,
        [
            safe(f"{decision['effect']}: {found['principal']} {action} {full}"),
            *(
                f"  {line}"
                for line in fields(
                    [
                        ("policies", decision["policies"] or "none"),
                        ("why", found["why"]),
                        ("next", found["next"]),
                        ("entry", found["entry"]),
                    ]
                )
            ),
        ],
    )
    if status := STATUS_OF_EFFECT[decision["effect"]]:
        raise click.exceptions.Exit(status)


def decision_record(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A dry run's answer as it is shown: without proofs, with the index of its entry."""
    from broker.errors import IntegrityFailure
    from broker.ledger.receipt import parse_receipt

    if answer["decision"].get("effect") not in STATUS_OF_EFFECT:
        raise IntegrityFailure("the broker answered with a decision that is none")
    found = {name: value for name, value in answer.items() if name not in ("receipt", "consistency")}
    return {
        "allowed": answer["decision"]["effect"] == "allow",
        **found,
        "entry": parse_receipt(answer["receipt"]).index,
    }
