"""``admin issuer``: who vouches for workloads, and what their tokens become here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli.command import BrokerGroup, Invocation
from broker.cli.options import read_file
from broker.cli.output import Column, fields, safe, time_text
from broker.model import ISSUER_KINDS

if TYPE_CHECKING:
    from broker.canonical import Json
    from broker.client.issuers import Tried

_ISSUERS: Final = (
    Column(name="name", title="ISSUER"),
    Column(name="kind", title="KIND"),
    Column(name="url", title="URL", shrink=True),
    Column(name="audience", title="AUDIENCE", shrink=True),
    Column(name="rules", title="RULES", right=True),
    Column(name="disabled", title="REMOVED"),
)
_MEMBERS: Final = (
    "name",
    "kind",
    "url",
    "audience",
    "jwks_uri",
    "mapping_digest",
    "disabled",
    "created_at",
    "entry",
)
_file = click.Path(path_type=Path, dir_okay=False)
map_option = click.option("--map", "map_file", type=_file, metavar="FILE", help="The mapping: TOML or JSON.")


@click.group(
    cls=BrokerGroup,
    examples=(
        "broker admin issuer add ci --issuer https://ci.example --map ci.toml",
        "broker admin issuer test ci --token-file token.jwt",
        "broker admin issuer ls",
    ),
)
def issuer() -> None:
    """Issuers of workload identities, and what their tokens become here."""


@issuer.command(
    examples=(
        "broker admin issuer add ci --issuer https://ci.example --map ci.toml",
        "broker admin issuer add prod --issuer URL --kind kubernetes --jwks k.json --map prod.toml",
        "broker admin issuer add mesh --issuer spiffe://prod --kind spiffe --jwks b.json --map m.toml",
    )
)
@click.argument("name")
@click.option("--issuer", "url", metavar="URL", required=True, help="The exact iss of its tokens.")
@click.option(
    "--kind",
    type=click.Choice(ISSUER_KINDS),
    default="oidc",
    show_default=True,
    help="What its claims look like.",
)
@click.option("--audience", metavar="A", help="Our name in its tokens; the broker's issuer unless given.")
@map_option
@click.option("--jwks-uri", metavar="URL", help="Where its keys are, if OIDC discovery does not say.")
@click.option("--jwks", "jwks_file", type=_file, metavar="FILE", help="Its keys, where it cannot be reached.")
@click.option("--ca", "ca_file", type=_file, metavar="FILE", help="Authorities (PEM) for its https.")
@click.pass_obj
def add(
    call: Invocation,
    name: str,
    *,
    url: str,
    kind: str,
    audience: str | None,
    map_file: Path | None,
    jwks_uri: str | None,
    jwks_file: Path | None,
    ca_file: Path | None,
) -> None:
    """Register an issuer, or describe it anew.

    That of GitHub Actions is https://token.actions.githubusercontent.com. The mapping says which of its
    tokens are whom; every principal of the issuer begins with workload:NAME/. What is described
    differently from before ends the access tokens that rest on it.
    Without --map the mapping of an issuer that is registered stays.
    """
    rules = _read_map(map_file, kind) if map_file is not None else _kept_map(call, name)
    found = call.client.admin.set_issuer(
        name,
        url=url,
        kind=kind,
        mapping=rules,
        audience=audience,
        jwks_uri=jwks_uri or "",
        jwks=None if jwks_file is None else _read_json(jwks_file),
        ca="" if ca_file is None else read_file(ca_file).decode("utf-8", "replace"),
    )
    _show(call, found)
    call.out.say(f"registered; next: broker admin issuer test {safe(name)} --token-file FILE")


def _read_map(path: Path, kind: str) -> Json:
    from broker.client.issuers import parse_map
    from broker.errors import InvalidRequest

    try:
        return parse_map(read_file(path), kind=kind)
    except InvalidRequest as exc:
        raise InvalidRequest(f"{path}: {exc.what}", why=exc.why) from exc


def _kept_map(call: Invocation, name: str) -> Json:
    registered = {row["name"]: row["mapping"] for row in call.client.admin.list_issuers()}
    if name not in registered:
        raise click.UsageError("Missing option '--map'", click.get_current_context())
    return dict(registered[name])


def _read_json(path: Path) -> Json:
    from broker.canonical import parse_json_object
    from broker.errors import MalformedRequest, UsageError

    try:
        return parse_json_object(read_file(path))
    except MalformedRequest as exc:
        raise UsageError(f"{path} is not a JSON object", why=exc.what) from exc


@issuer.command(examples=("broker admin issuer ls", "broker admin issuer ls -o csv"))
@click.pass_obj
def ls(call: Invocation) -> None:
    """List every issuer."""
    rows = [{**row, "rules": len(row["mapping"]["rules"])} for row in call.client.admin.list_issuers()]
    call.out.rows(
        rows,
        _ISSUERS,
        whole=lambda found: {"issuers": found},
        members=_MEMBERS,
        empty="no issuer: no workload can prove itself",
    )


@issuer.command(examples=("broker admin issuer show ci", "broker admin issuer show ci -o json"))
@click.argument("name")
@click.pass_obj
def show(call: Invocation, name: str) -> None:
    """Show an issuer, its mapping and its keys.

    The keys are those that the broker has now: it fetches them if it has to.
    """
    found = call.client.admin.issuer_keys(name)
    row, keys = found["issuer"], found["jwks"]["keys"]
    lines = _lines(row)
    lines += [f"key        {safe(_key_text(key))}" for key in keys]
    lines += [safe(f"rule       {_rule_text(rule)}") for rule in row["mapping"]["rules"]]
    call.out.record({**row, "keys": keys}, lines)


@issuer.command(examples=("broker admin issuer rm ci",))
@click.argument("name")
@click.pass_obj
def rm(call: Invocation, name: str) -> None:
    """Remove an issuer, and end what rests on it.

    Its tokens count no more, and every access token that began with one is dead from the next request on.
    """
    _show(call, call.client.admin.remove_issuer(name))


@issuer.command(
    examples=(
        "broker admin issuer test ci --token-file token.jwt",
        "broker admin issuer test ci --token-file - --map new.toml -o json",
    )
)
@click.argument("name")
@click.option(
    "--token-file",
    metavar="FILE",
    required=True,
    help="A token of the issuer; - reads it from stdin.",
)
@map_option
@click.pass_obj
def test(call: Invocation, name: str, *, token_file: str, map_file: Path | None) -> None:
    """Try a workload's token, here on this machine.

    The broker tells the issuer's keys; the token is verified and mapped by the same rules, and never
    leaves the machine. With --map another mapping is tried. The exit status is 4 when it is refused.
    """
    from broker.client.issuers import try_token
    from broker.runtime import SystemClock

    text = _read_token(token_file)
    known = call.client.admin.issuer_keys(name)
    rules = None if map_file is None else _read_map(map_file, known["issuer"]["kind"])
    tried = try_token(text, known, now=SystemClock().now(), rules=rules)
    call.out.record(_tried(tried), fields(list(_tried(tried).items())))
    call.out.say("the token holds; nothing was exchanged")


def _read_token(name: str) -> str:
    import sys

    data = sys.stdin.read() if name == "-" else read_file(Path(name)).decode("ascii", "replace")
    return data.strip()


def _tried(tried: Tried) -> dict[str, Any]:
    from broker.canonical import format_time

    mapped = tried.mapped
    return {
        "issuer": tried.issuer,
        "sub": tried.sub,
        "expires_at": format_time(tried.expires),
        "rule": mapped.rule,
        "principal": mapped.principal,
        "roles": list(mapped.roles),
        "groups": list(mapped.groups),
        "attributes": mapped.attributes,
    }


def _show(call: Invocation, answer: Mapping[str, Any]) -> None:
    found = {name: value for name, value in answer.items() if name not in ("receipt", "consistency")}
    call.out.record(found, _lines(found))


def _lines(row: Mapping[str, Any]) -> list[str]:
    where = row["jwks_uri"] or ("given with it" if row["jwks"] else "OIDC discovery")
    return fields(
        [
            ("issuer", row["name"]),
            ("url", row["url"]),
            ("kind", row["kind"]),
            ("audience", row["audience"]),
            ("keys from", where),
            ("mapping", row["mapping_digest"]),
            ("since", time_text(row["created_at"])),
            ("removed", row["disabled"] or None),
        ]
    )


def _key_text(key: Mapping[str, Any]) -> str:
    kind = key.get("crv") or key.get("kty")
    return f"{key.get('kid', 'without a name')} ({kind}{', ' + key['alg'] if 'alg' in key else ''})"


def _rule_text(rule: Mapping[str, Any]) -> str:
    gives = [*rule.get("roles", []), *(f"group {group}" for group in rule.get("groups", []))]
    return f"{rule['name']}: {json.dumps(rule['match'])} -> {rule['principal']} ({', '.join(gives)})"
