"""``admin``: principals, collections, issuers, revocations; and upkeep on the server itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from broker.cli.collection import collection
from broker.cli.command import BrokerGroup, Invocation
from broker.cli.evidence import evidence
from broker.cli.issuer import issuer
from broker.cli.keys import keys
from broker.cli.output import Column, safe
from broker.cli.principal import code_lines, login_command, principal
from broker.cli.server_side import needs_server

_CHECKS = (
    Column(name="ok", title="OK"),
    Column(name="check", title="CHECK"),
    Column(name="detail", title="DETAIL", shrink=True),
)
_KINDS = ("grant", "principal", "token", "key")


@click.group(
    cls=BrokerGroup,
    examples=(
        "broker admin principal add ana --group nlp",
        "broker admin revoke --grant g_...",
        "broker admin doctor",
    ),
)
def admin() -> None:
    """Administer principals, collections, issuers, revocations.

    doctor, evidence sweep, keys, migrate and new-origin run on the server, with its settings; the rest from
    anywhere.
    """


admin.add_command(principal)
admin.add_command(collection)
admin.add_command(issuer)
admin.add_command(keys)
admin.add_command(evidence)


@admin.command(
    examples=(
        "broker admin revoke --grant g_...",
        "broker admin revoke --principal ana",
        "broker admin revoke --key THUMBPRINT",
    )
)
@click.option("--grant", metavar="ID", help="End a grant: a transfer under it stops at its next lease.")
@click.option("--principal", metavar="ID", help="Disable somebody, and end all their keys.")
@click.option("--token", metavar="ID", help="End an access token.")
@click.option("--key", metavar="JKT", help="End one enrolled key.")
@click.pass_obj
def revoke(call: Invocation, /, **named: str | None) -> None:
    """End a grant, principal, token or key.

    It holds on every replica from the next request on.
    """
    given = [(kind, id) for kind in _KINDS if (id := named[kind]) is not None]
    if len(given) != 1:
        raise click.UsageError(
            "give exactly one of --grant, --principal, --token, --key", click.get_current_context()
        )
    [(kind, id)] = given
    call.client.admin.revoke(kind, id)
    call.out.record({"revoked": {"kind": kind, "id": id}}, [safe(f"revoked {kind} {id}")])


@admin.command(examples=("broker admin doctor", "BROKER_CONFIG=/etc/broker.toml broker admin doctor -o json"))
@click.pass_obj
@needs_server
def doctor(call: Invocation) -> None:
    """Check the server: settings, database, store.

    Runs on the server, with its settings. The store's contract is tried for real: a URL writes once
    and only what it was signed for, and reads
    only the range it was signed for. Its probes are removed again. Ends with the status of the first
    check that fails.
    """
    from broker.cli.doctor import examine

    findings = list(examine())
    rows = [{"check": found.check, "ok": found.ok, "detail": found.detail} for found in findings]
    call.out.rows(
        rows,
        _CHECKS,
        whole=lambda rows: {"ok": all(found.ok for found in findings), "checks": rows},
        members=("check", "ok", "detail"),
        empty="",
    )
    for found in findings:
        if found.error is not None:
            raise found.error
    call.out.say("ok: the broker can serve")


@admin.command(examples=("broker admin migrate", "broker admin migrate --first-admin ana"))
@click.option("--first-admin", metavar="ID", help="The administrator that a log without principals gets.")
@click.pass_obj
@needs_server
def migrate(call: Invocation, *, first_admin: str | None) -> None:
    """Bring the database to the newest schema.

    A ledger is begun if there is none; doing it again is fine. Runs on the server, with its
    settings and a database role that may change the schema. With
    --first-admin it prints the one-time code that enrols the first administrator.
    """
    from broker import wiring
    from broker.config import load_settings
    from broker.names import parse_principal

    settings = load_settings()
    id = None if first_admin is None else parse_principal(first_admin)
    code = wiring.migrate_and_found(settings, id)
    found: dict[str, Any] = {"migrated": True}
    if code is not None:
        login = login_command(settings.public_urls[0], code)
        found = {**found, "id": id, "enrolment_code": code, "login": login}
    call.out.record(found, _migrate_lines(found))
    if id is not None and code is None:
        call.out.say("there are principals already: no first administrator was added")


@admin.command(
    "new-origin",
    examples=("broker admin new-origin --reason 'database of 2026-11-20 restored, 14 entries lost'",),
)
@click.option("--reason", metavar="TEXT", required=True, help="What happened and what was lost; recorded.")
@click.option("--force", is_flag=True, help="Also when the log contradicts nothing that is known outside.")
@click.pass_obj
@needs_server
def new_origin(call: Invocation, *, reason: str, force: bool) -> None:
    """Let the log go on under a new name, after a loss.

    Runs on the server, with settings in which log_origin is the new name, while no broker runs. For a log
    that can never again extend the tree heads that are known outside. The first entry under the new name
    says what it was called, where it stood, and what is known outside that it does not have any more. Every
    client has to pin the new key: see docs/operations/rollback.md.
    """
    from broker import wiring
    from broker.config import load_settings

    found = wiring.begin_new_origin(load_settings(), reason=reason, force=force)
    former, known = found["former"], found.get("known")
    lines = [
        f"entry {found['index']} begins the log's time as {found['origin']}",
        f"before it was {former['origin']}, of {former['size']} entries",
    ]
    if known is not None:
        lines.append(f"known outside: {known['size']} entries")
    call.out.record(found, [safe(line) for line in [*lines, f"key to pin: {found['vkey']}"]])
    call.out.say("next: start the broker; clients: broker ledger pin KEY")


def _migrate_lines(found: Mapping[str, Any]) -> list[str]:
    lines = ["the database is up to date"]
    return [*lines, safe(f"principal  {found['id']}"), *code_lines(found)] if "login" in found else lines
