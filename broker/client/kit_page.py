"""The page and the notes of an evidence kit: for people, without a server and without a script."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from broker.canonical import Json, b64url, parse_b64url
from broker.errors import BrokerError
from broker.ledger.entry import cut_name
from broker.ledger.note import TreeHead

if TYPE_CHECKING:
    from broker.client.kit import Item

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_LONGEST: Final = 2000
_STYLE: Final = """
:root { color-scheme: light; }
body { font: 16px/1.5 Georgia, 'Times New Roman', serif; color: #1c1c1c; max-width: 58rem; margin: 3rem auto;
  padding: 0 1.5rem; }
h1 { font-size: 1.9rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 0; }
header, footer { color: #444; } code, td.code { font: .82em/1.4 ui-monospace, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
nav table, .card table { border-collapse: collapse; width: 100%; }
nav td, nav th { border-bottom: 1px solid #ddd; padding: .3rem .6rem .3rem 0; text-align: left;
  vertical-align: top; }
.card { border: 1px solid #ccc; border-radius: 6px; padding: 1rem 1.2rem; margin: 1.4rem 0;
  break-inside: avoid; }
.card th { text-align: left; font-weight: normal; color: #555; width: 11rem; vertical-align: top;
  padding: .2rem .8rem .2rem 0; }
.card td { padding: .2rem 0; overflow-wrap: anywhere; }
.allow { color: #17632b; } .deny { color: #9c1c1c; } .needs-approval { color: #8a5a00; }
.erased { background: #fff5dc; padding: .3rem .6rem; } summary { cursor: pointer; color: #555; }
"""
_TITLES: Final = {
    "grant": "Access was granted",
    "lease": "Further keys were released",
    "completion": "What was received was reported",
    "denial": "A request was refused",
    "publish": "A publication was begun",
    "commit": "A version was published",
    "enrolment": "A key was bound to a principal",
    "token": "An access token was issued",
    "policy": "Policies were activated",
    "revocation": "Something was revoked",
    "audit-query": "An auditor read the ledger",
    "export": "An auditor took records home",
    "erasure": "Evidence was erased",
    "decision": "A decision was asked for, without access",
}


def readme(head: TreeHead, *, query: str) -> str:
    """README.txt of a kit."""
    return f"""Evidence kit of the ledger {cut_name(head.origin)}

Question:   {cut_name(query) or "(every entry)"}
Checkpoint: {head.size} entries, root {b64url(head.root)}

index.html          read this: what was asked, decided, released and received
verify.py           checks everything; needs Python 3.9 or later and the package "cryptography":

    python3 -m pip install cryptography
    python3 verify.py --vkey 'KEY'

KEY is the ledger's verifier key. Get it from somebody other than whoever gave you this kit; without
--vkey the key in manifest.json is used, which shows only that the kit holds together. The same goes for
verify.py: "broker ledger verify-kit" runs the same checks from an installation of your own.

entries/            the ledger's entries, byte by byte
receipts/           for each one the proof that it is in the signed ledger (C2SP tlog-proof)
records/            lists that entries commit to by digest
evidence/           signed requests and what decisions were made from, each with the salt of its commitment
policies/           the policies that decided, by digest
checkpoint          the one signed tree head that all receipts are under
manifest.json       what was asked for, and the digest of every file
export.tlog-proof   proof that the making of this kit is itself on record

Evidence may be erased under a retention rule. manifest.json names the entry that erased it; every proof
stays valid. index.html is made from the other files: where they differ, the other files count.
"""


def render(head: TreeHead, *, query: str, items: Sequence[Item]) -> str:
    """index.html of a kit. Everything that comes from the ledger is escaped; nothing is loaded."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width"><title>Evidence kit</title>',
        f"<style>{_STYLE}</style></head><body><header><h1>Evidence kit</h1>",
        f"<p>{len(items)} entries of the ledger <code>{_text(head.origin)}</code>, which had "
        f"{head.size} entries. Question: <code>{_text(query or '(every entry)')}</code></p>",
        "<p>This page is for reading. To check it, run <code>verify.py</code>: see "
        "<code>README.txt</code>.</p></header>",
        "<nav><table><tr><th>Entry</th><th>Time (UTC)</th><th>Who</th><th>What</th><th>Decision</th></tr>",
        *map(_row, items),
        "</table></nav><main>",
        *map(_card, items),
        f"</main><footer><p>Checkpoint: {head.size} entries, root <code>{_text(b64url(head.root))}</code>"
        "</p></footer></body></html>\n",
    ]
    return "\n".join(parts)


def _text(value: Any) -> str:
    """Any value as visible text, cut and escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    shown = "\n".join(cut_name(line, size=_LONGEST) for line in text[: 8 * _LONGEST].split("\n"))
    return html.escape(shown, quote=True)


def _row(item: Item) -> str:
    entry = item.entry
    return (
        f'<tr><td><a href="#e{item.index}">{item.index}</a></td><td>{_text(entry["time"])}</td>'
        f"<td>{_text(entry.get('principal', ''))}</td><td>{_text(_what(entry))}</td>"
        f"<td>{_decision(entry)}</td></tr>"
    )


def _what(entry: Json) -> str:
    title = _TITLES.get(entry["type"], entry["type"])
    artifact = entry.get("artifact")
    version = f"@{entry['version']}" if artifact and "version" in entry else ""
    return f"{title}: {artifact}{version}" if artifact else str(title)


def _decision(entry: Json) -> str:
    effect = entry.get("decision", {}).get("effect", "")
    return f'<span class="{_text(effect)}">{_text(effect)}</span>'


def _card(item: Item) -> str:
    entry, stem = item.entry, f"{item.index:08d}"
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{value}</td></tr>" for name, value in _facts(item))
    files = [f"entries/{stem}.json", f"receipts/{stem}.tlog-proof"]
    files += [f"records/{stem}.json"] if item.record is not None else []
    files += [f"evidence/{stem}.json"] if item.evidence is not None else []
    links = ", ".join(f'<a href="{name}"><code>{name}</code></a>' for name in files)
    return (
        f'<section class="card" id="e{item.index}"><h2>{item.index}. {_text(_what(entry))}</h2>'
        f"<table>{rows}</table>{_erased(item)}<details><summary>The entry in full</summary>"
        f"<code>{_text(entry)}</code></details><p>{links}</p></section>"
    )


def _erased(item: Item) -> str:
    if item.erased_by is None:
        return ""
    return (
        '<p class="erased">The signed request behind this entry was erased under the retention rule, as '
        f"entry {item.erased_by} says. The entry and its proof are untouched.</p>"
    )


def _facts(item: Item) -> Iterator[tuple[str, str]]:
    """(what, HTML) of everything that a reader asks first."""
    entry = item.entry
    yield "Time", _text(entry["time"])
    yield from _plain(
        entry,
        (
            ("Who", "principal"),
            ("Key", "jkt"),
            ("Purpose", "purpose"),
            ("Artifact", "artifact"),
            ("Version", "version"),
            ("Subject", "subject"),
            ("Question", "query"),
            ("Reason", "reason"),
        ),
    )
    yield from _asked(item.evidence)
    decision = entry.get("decision")
    if decision is not None:
        policies = ", ".join(decision.get("policies", ())) or decision.get("reason", "none")
        bundle = f", in the policies <code>{_text(decision['bundle'])}</code>" if "bundle" in decision else ""
        yield "Decided", f"{_decision(entry)} by {_text(policies)}{bundle}"
    if "selection" in entry:
        chosen = entry["selection"]
        size = f", {entry['bytes']:,} bytes" if "bytes" in entry else ""
        yield (
            "Released",
            f"keys to {_counted(chosen['extents'], 'extent')} of {_counted(chosen['files'], 'file')}{size}",
        )
        yield "Until", _text(entry.get("expires_at", ""))
    if "received" in entry:
        got = entry["received"]
        whole = f"{_counted(got['extents'], 'extent')} of {_counted(got['files'], 'file')}"
        yield "Received", f"{whole}, {got['bytes']:,} bytes"
    yield from _plain(entry, (("Grant", "grant"),))


def _plain(entry: Json, members: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for title, name in members:
        if entry.get(name) is not None:
            yield title, _text(entry[name])


def _asked(evidence: bytes | None) -> Iterator[tuple[str, str]]:
    """What the signed request said, as its signer signed it."""
    if evidence is None:
        return
    found = json.loads(evidence)
    target = f"{found.get('method', '')} {found.get('path', '')}"
    if found.get("query"):
        target += f"?{found['query']}"
    yield "Asked", f"<code>{_text(target)}</code> from {_text(found.get('network') or 'an unknown address')}"
    try:
        body = parse_b64url(found.get("body", "")).decode("utf-8")
    except (BrokerError, UnicodeDecodeError):
        body = ""
    if body:
        yield (
            "Signed text",
            f"<details><summary>{len(body):,} characters</summary><code>{_text(body)}</code></details>",
        )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
