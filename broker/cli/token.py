"""``token``: get and mint access tokens, look at them, revoke them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from broker.cli.access import identity_lines, scope_lines
from broker.cli.command import BrokerGroup, Invocation
from broker.cli.mint import mint
from broker.cli.output import fields, plain, safe, size_text


@click.group(
    cls=BrokerGroup,
    examples=(
        "broker token mint --scope acme/llama-7b@step-1000 --ttl 10m --for-key JKT",
        "broker token inspect",
        "broker token revoke t_...",
    ),
)
def token() -> None:
    """Get and mint access tokens, look at them, and revoke them."""


token.add_command(mint)


@token.command(
    examples=("broker token key --out rank0.jwk", "broker token key --out ranks/0/key.jwk -o json")
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    required=True,
    help="Where the private key goes; its folder must be there.",
)
@click.pass_obj
def key(call: Invocation, out: Path) -> None:
    """Make a key for a rank, and print its thumbprint.

    The launcher mints a token for it: broker token mint --for-key THUMBPRINT. The private key stays in
    FILE (mode 0600); one that is there is kept. It is enrolled nowhere, and opens nothing by itself.
    """
    from broker.client import workload

    made = workload.find_key(out) or workload.make_key(out)
    call.out.record({"jkt": made.jkt, "file": str(out)}, [made.jkt])


@token.command(
    examples=(
        "broker token exchange --token-file /var/run/secrets/broker/token",
        "broker token exchange --scope acme/llama-7b -o json",
    )
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The workload's own token; BROKER_TOKEN_FILE, or GitHub Actions, unless given.",
)
@click.option("--scope", metavar="REF", multiple=True, help="As for mint; everything unless given.")
@click.pass_obj
def exchange(call: Invocation, token_file: Path | None, *, scope: tuple[str, ...]) -> None:
    """Exchange a workload's identity for an access token.

    Every command in a job does this by itself. The token goes to stdout. It is bound to the job's key,
    which the commands of this job share; -o json says where that is.
    """
    from broker.client.sdk import Client

    with Client.from_profile(call.profile, token_file=token_file) as client:
        found = client.exchange(*scope)
        where = None if client.profile.state is None else str(client.profile.state)
        answer = {**found, "jkt": client.profile.key.jkt, "state": where}
    call.out.record(answer, [safe(found["access_token"])])
    call.out.say(
        safe(f"{found.get('token_id')} of {found.get('principal')}, good for {found['expires_in']} s")
    )


@token.command(examples=("broker token inspect", "broker token inspect - < token.txt"))
@click.argument("text", metavar="[TOKEN]", required=False)
@click.pass_obj
def inspect(call: Invocation, text: str | None) -> None:
    """Show what one of your own tokens says.

    Without TOKEN it is the profile's current one; - reads it from stdin, which keeps it out of the
    list of processes.
    """
    given = sys.stdin.readline().strip() if text == "-" else text
    found = call.client.admin.inspect_token(given)
    if not found.get("active"):
        call.out.record(found, ["not active: expired, revoked, or not one of yours"])
        return
    from broker.canonical import format_time

    lines = fields(
        [
            ("token", found.get("jti")),
            ("principal", found.get("sub")),
            ("issuer", found.get("iss")),
            ("key", found.get("cnf", {}).get("jkt")),
            ("issued", format_time(found["iat"] * 1000)),
            ("expires", format_time(found["exp"] * 1000)),
            ("chain", found.get("chain") or None),
        ]
    )
    lines += identity_lines(found.get("identity"))
    lines += [f"scope      {safe(line)}" for line in scope_lines(found.get("limits", []))]
    lines += [f"effective  {safe(line)}" for line in effective_lines(found)]
    call.out.record(found, lines)


def effective_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What a token's levels come to, and what is left of its ceilings; nothing for a single level's scope."""
    for detail in found.get("effective") or []:
        ceilings = detail.get("ceilings", [])
        if not found.get("chain") and not ceilings:
            continue
        text = f"{detail.get('type')}: {plain(detail.get('actions', []))}"
        text += f" on {' and '.join(detail['identifiers'])}" if detail.get("identifiers") else ""
        bounds = [f"paths {plain(paths)}" for paths in detail.get("paths", [])]
        bounds += [f"purpose {detail['purpose']}"] if "purpose" in detail else []
        bounds += [
            f"{size_text(each['left'])} of {size_text(each['max_bytes'])} left of {each['token']}"
            for each in ceilings
        ]
        yield text + (f" ({'; '.join(bounds)})" if bounds else "")
    if found.get("effective_complete") is False:
        yield "and more"


@token.command(examples=("broker token revoke t_...", "broker token revoke - < token.txt"))
@click.argument("id")
@click.pass_obj
def revoke(call: Invocation, id: str) -> None:
    """End a token from the next request on.

    ID is a token's id (broker whoami shows the current one), or the token itself; - reads it from
    stdin. Tokens of other people are ended by an administrator, who gives their id.
    """
    named = sys.stdin.readline().strip() if id == "-" else id
    ended = revoke_token(call, named)
    call.out.record({"revoked": {"kind": "token", "id": ended}}, [safe(f"revoked {ended}")])


def revoke_token(call: Invocation, named: str) -> str:
    """Revoke by id or by text; the id, as far as it is known, else the word ``token``.

    Raises:
        Denied: The id is of another token, and the caller does not administer revocations.
    """
    client = call.client
    if "." in named:
        found = client.admin.inspect_token(named)
        client.admin.revoke_token(named)
        return str(found.get("jti", "token"))
    current = client.whoami()["token"]["id"]
    if named == current:
        client.admin.revoke_token()
    else:
        client.admin.revoke("token", named)
    return named
