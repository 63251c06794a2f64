"""``token``: look at access tokens, revoke them."""

from __future__ import annotations

import sys

import click

from broker.cli.access import scope_lines
from broker.cli.command import BrokerGroup, Invocation
from broker.cli.output import fields, safe


@click.group(cls=BrokerGroup, examples=("broker token inspect", "broker token revoke t_..."))
def token() -> None:
    """Look at access tokens, and revoke them."""


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
    lines += [f"scope      {safe(line)}" for line in scope_lines(found.get("limits", []))]
    call.out.record(found, lines)


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
