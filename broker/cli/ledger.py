"""``ledger``: search, show, prove and verify the record."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from broker import limits
from broker.cli.command import BrokerGroup, Invocation
from broker.cli.ledger_audit import audit
from broker.cli.ledger_count import count
from broker.cli.ledger_export import export, verify_export
from broker.cli.ledger_kit import kit, verify_kit
from broker.cli.ledger_pin import pin
from broker.cli.ledger_query import query
from broker.cli.options import pinned_keys, since_option, until_option
from broker.cli.output import Column, fields, plain, safe, safe_json, size_text, time_text

ROW_MEMBERS: Final = (
    "index",
    "time",
    "type",
    "principal",
    "action",
    "artifact",
    "version",
    "decision",
    "policies",
    "bytes",
    "grant",
    "purpose",
)
_ROWS: Final = (
    Column(name="index", title="INDEX", right=True),
    Column(name="time", title="TIME", show=time_text),
    Column(name="type", title="TYPE", shrink=True),
    Column(name="principal", title="WHO", shrink=True, show=lambda who: plain(who).removeprefix("user:")),
    Column(name="decision", title="DECISION"),
    Column(name="what", title="WHAT", shrink=True),
    Column(name="bytes", title="SIZE", right=True, show=lambda n: "" if n is None else size_text(n)),
    Column(name="reason", title="POLICIES, PURPOSE", shrink=True),
)


@click.group(
    cls=BrokerGroup,
    examples=("broker ledger search actor:ana since:24h", "broker ledger verify", "broker ledger show 7"),
)
def ledger() -> None:
    """The record: who asked for what, what was decided, and proof that nobody changed it.

    Most of it needs the auditor role, and is recorded itself. checkpoint and pin are for everybody;
    verify-receipt, verify-export and verify-kit need no server, and audit runs on it.
    """


ledger.add_command(audit)
ledger.add_command(count)
ledger.add_command(pin)
ledger.add_command(query)
ledger.add_command(export)
ledger.add_command(verify_export)
ledger.add_command(kit)
ledger.add_command(verify_kit)


@ledger.command(
    examples=(
        "broker ledger search",
        "broker ledger search actor:ana artifact:acme/llama-7b --since 24h",
        "broker ledger search 'decision:deny type:denial \"evaluation\"' -o csv",
        "broker ledger search --since 30d -o jsonl > month.jsonl",
        "broker ledger search decision:deny --since 1h --follow",
    )
)
@click.argument("query", nargs=-1)
@since_option
@until_option
@click.option("--after", metavar="INDEX", type=click.IntRange(0), help="Only entries past this index.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    help=f"At most N rows: {limits.DEFAULT_PAGE} unless given, with -o jsonl all of them.",
)
@click.option("--follow", is_flag=True, help="All that match, then new ones as they come, until Ctrl-C.")
@click.pass_obj
def search(
    call: Invocation,
    query: tuple[str, ...],
    *,
    since: str | None,
    until: str | None,
    after: int | None,
    limit: int | None,
    follow: bool,
) -> None:
    """Find entries.

    QUERY: actor: artifact: version: decision: type: action: grant: key: purpose: since: until: and free
    text; all must match. Rows ascend by index; -o jsonl streams every page.
    """
    if follow:
        _follow(call, " ".join(query), since=since, after=after, ends=until is not None or limit is not None)
        return
    pages = _pages(
        call, " ".join(query), since=since, until=until, after=after, limit=_most(call.out.format, limit)
    )
    if call.out.format == "jsonl":
        rows = (row for page in pages for row in page["entries"])
        call.out.rows(rows, _ROWS, whole=lambda found: {"entries": found}, members=ROW_MEMBERS, empty="")
        return
    found = list(pages)
    entries = [row for page in found for row in page["entries"]]
    last = found[-1]
    whole = {"entries": entries, "next_after": last["next_after"], "size": last["size"]}
    shown = entries
    if call.out.format == "text":
        shown = [{**row, "what": _what(row), "reason": _reason(row)} for row in entries]
    call.out.rows(shown, _ROWS, whole=lambda _: whole, members=ROW_MEMBERS, empty="no entry matches")
    if last["next_after"] is not None:
        call.out.say(f"there is more; next: --after {last['next_after']} (or -o jsonl for all)")


def _follow(call: Invocation, text: str, *, since: str | None, after: int | None, ends: bool) -> None:
    from broker.errors import UsageError

    if ends or call.out.format not in ("text", "jsonl"):
        raise UsageError("--follow has no end", next="without --until and --limit, as text or -o jsonl")
    rows = call.client.ledger.follow(
        text,
        since=since,
        after=after,
        on_trouble=lambda exc: call.out.say(f"waiting for the server: {safe(exc.what)}"),
    )
    for row in rows:
        # Each row is flushed by itself: somebody waits for it at the other end of a pipe.
        call.out.write_text(f"{safe_json(row) if call.out.format == 'jsonl' else _followed(row)}\n")


def _followed(row: Mapping[str, Any]) -> str:
    shown = {**row, "what": _what(row), "reason": _reason(row)}
    cells = (safe(column.show(shown.get(column.name))) for column in _ROWS)
    return "  ".join(cell for cell in cells if cell)


def _most(format: str, limit: int | None) -> int | None:
    if limit is None:
        return None if format == "jsonl" else limits.DEFAULT_PAGE
    return limit


def _pages(
    call: Invocation,
    text: str,
    *,
    since: str | None,
    until: str | None,
    after: int | None,
    limit: int | None,
) -> Iterator[Mapping[str, Any]]:
    """One page or more; ``limit`` rows in all, None for every one that matches."""
    left, at = limit, after
    while True:
        size = limits.MAX_PAGE if left is None else min(left, limits.MAX_PAGE)
        page = call.client.ledger.search(text, since=since, until=until, after=at, limit=size)
        yield page
        left = None if left is None else left - len(page["entries"])
        at = page["next_after"]
        if at is None or left == 0:
            return


def _what(row: Mapping[str, Any]) -> str:
    artifact, version = row.get("artifact"), row.get("version")
    return "" if artifact is None else f"{artifact}@{version}" if version else str(artifact)


def _reason(row: Mapping[str, Any]) -> str:
    parts = [plain(row.get("policies")), f'"{row["purpose"]}"' if row.get("purpose") else ""]
    return " ".join(part for part in parts if part)


@ledger.command(examples=("broker ledger show 7", "broker ledger show 7 -o json | jq .entry"))
@click.argument("index", type=click.IntRange(0))
@click.pass_obj
def show(call: Invocation, index: int) -> None:
    """Show one entry and the record behind it.

    Its receipt is verified first.
    """
    found = call.client.ledger.show(index)
    lines = _entry_lines(index, found["entry"], found.get("record"))
    erased_by = found.get("erased_by")
    more = [] if erased_by is None else [safe(f"its evidence was erased by entry {erased_by}")]
    call.out.record(found, itertools.chain(lines, more))


def _entry_lines(index: int, entry: Mapping[str, Any], record: Any) -> Iterator[str]:
    members = ((name, _shown(value)) for name, value in entry.items() if name not in ("schema", "salt"))
    yield from fields([("index", index), *members])
    if record is not None:
        yield "record"
        yield from (f"  {line}" for line in safe_json(record, indent=2).split("\n"))


def _shown(value: Any) -> Any:
    return safe_json(value) if isinstance(value, dict) else value


@ledger.command(examples=("broker ledger verify", "broker ledger verify --full -o json"))
@click.option("--full", is_flag=True, help="Also re-derive the search index and the stored inner hashes.")
@click.pass_obj
def verify(call: Invocation, *, full: bool) -> None:
    """Verify the whole ledger on this machine.

    Every entry is read and compared with every signed tree head that is known. The exit status is 6
    when it is not what was signed; the first bad entry is named, or the interval
    in which it lies.
    """
    from broker.client.ledger import check_verdict

    verdict = call.client.ledger.verify(full=full)
    lines = [f"ok: {verdict.size} entries, root {verdict.root}"] if verdict.ok else list(verdict.problems)
    call.out.record(verdict.as_json(), map(safe, lines))
    check_verdict(verdict)


@ledger.command(
    examples=("broker ledger prove 7 --out grant.tlog-proof", "broker ledger prove 7 > grant.tlog-proof")
)
@click.argument("index", type=click.IntRange(0))
@click.option("--out", "target", metavar="F", type=click.Path(path_type=Path), help="Write it to a new file.")
@click.pass_obj
def prove(call: Invocation, index: int, *, target: Path | None) -> None:
    """Take home the receipt of one entry.

    It is a text that verifies offline, with the log's key alone.
    """
    text = call.client.ledger.prove(index)
    if target is None:
        call.out.record({"index": index, "receipt": text}, text.rstrip("\n").split("\n"))
        return
    _write_new(target, text)
    call.out.record({"index": index, "file": str(target)}, [safe(target)])
    call.out.say(f"next: broker ledger verify-receipt {safe(target)}")


def _write_new(target: Path, text: str) -> None:
    from broker.errors import UsageError

    try:
        with open(target, "x", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as exc:
        raise UsageError(f"cannot write {target}", why=exc.strerror) from exc


@ledger.command(examples=("broker ledger checkpoint", "broker ledger checkpoint -o json"))
@click.pass_obj
def checkpoint(call: Invocation) -> None:
    """Print the newest signed tree head.

    It is printed once it is known to extend what this profile has seen.
    """
    from broker.canonical import b64url
    from broker.ledger.note import parse_head, split_note

    text = call.client.ledger.checkpoint()
    head = parse_head(split_note(text)[0])
    found = {"origin": head.origin, "size": head.size, "root": b64url(head.root), "note": text}
    call.out.record(found, (safe(line) for line in text.rstrip("\n").split("\n")))


@ledger.command(
    "verify-receipt",
    examples=(
        "broker ledger verify-receipt ./ckpt/.broker/receipts/00000007-grant.tlog-proof",
        "broker ledger verify-receipt grant.tlog-proof --vkey 'broker.example/log+...'",
    ),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--vkey", metavar="KEY", help="The log's verifier key; the profile's unless given.")
@click.option(
    "--witness-policy",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A tlog-policy, whose quorum of witnesses must have cosigned the tree head too.",
)
@click.pass_obj
def verify_receipt(call: Invocation, file: Path, *, vkey: str | None, witness_policy: Path | None) -> None:
    """Verify a receipt offline, and show its entry.

    FILE may be - for stdin. It proves that this entry is in the log that signed; it does not say that
    the entry is of your request: look at it. With --witness-policy it also proves that the policy's
    witnesses have seen the log with this entry in it.
    """
    from broker.canonical import b64url
    from broker.client.cosigned import read_policy
    from broker.ledger import receipt

    keys = [vkey] if vkey else pinned_keys(call)
    policy = None if witness_policy is None else read_policy(witness_policy, vkey=keys[0])
    found = receipt.verify_receipt(_read_receipt(file), keys, policy=policy)
    value = {
        "ok": True,
        "index": found.index,
        "entry": found.entry,
        "leaf_hash": b64url(found.leaf_hash),
        "head": {"origin": found.head.origin, "size": found.head.size, "root": b64url(found.head.root)},
    }
    head = f"ok: entry {found.index} of {found.head.origin}, in a signed tree of {found.head.size} entries"
    call.out.record(value, _after(safe(head), _entry_lines(found.index, found.entry, None)))


def _after(first: str, rest: Iterable[str]) -> Iterator[str]:
    return itertools.chain([first], rest)


def _read_receipt(file: Path) -> str:
    from broker.errors import UsageError

    try:
        with click.open_file(str(file), "r", encoding="utf-8") as source:
            return str(source.read(limits.MAX_RECEIPT + 1))
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read {file}", why=getattr(exc, "strerror", None) or "not UTF-8") from exc
