"""Evidence kits: entries taken home with all that proves them, and what checks it without us.

A kit is a folder: the entries that answer a query, their records and evidence, receipts under one
checkpoint, the policies that decided, the entries that bound the keys, a verifier in one file and a
page to read. See ``docs/formats/kit.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker import limits
from broker.canonical import (
    Json,
    b64url,
    canonical_bytes,
    format_time,
    parse_b64url,
    parse_json_object,
    parse_time,
    sha256_digest,
)
from broker.client import kit_page, kit_verifier
from broker.client.static_log import open_folder, write_new
from broker.errors import IntegrityFailure, NotFound, TooLarge, Unreachable
from broker.ledger import entry as entries
from broker.ledger import merkle, note, receipt, tiles
from broker.ledger.nodes import NodeCache

if TYPE_CHECKING:
    from broker.client.ledger import LedgerClient
    from broker.client.session import Session
    from broker.client.trust import LogMemory

MOST_ENTRIES: Final = 10_000
"""Entries that one kit answers with: every one of them is a read of evidence, and on record as such."""
_SESSION_MS: Final = limits.MAX_SUBJECT_TTL * 1000
_VERIFIER: Final = Path(kit_verifier.__file__)

Progress = Callable[[int, int], None]
"""Told (entries fetched, entries in all)."""
Record = Callable[[Json], str]
"""Puts an export on record; gives its receipt."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of a kit. What it does not have, or what was erased, is None."""

    index: int
    data: bytes
    entry: Json
    record: bytes | None = None
    evidence: bytes | None = None
    salt: bytes | None = field(default=None, repr=False)
    erased_by: int | None = None


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What was written.

    Attributes:
        origin: Name of the log.
        size: Entries of the log under the kit's checkpoint.
        entries: Entries that answer the query.
        support: Further entries: those that bound keys, activated policies, erased evidence.
        erased: Entries whose evidence was erased.
        digest: Digest of the manifest, which the ledger has on record.
    """

    origin: str
    size: int
    entries: int
    support: int
    erased: int
    digest: str


def write_kit(
    ledger: LedgerClient,
    session: Session,
    log: LogMemory,
    folder: Path,
    *,
    vkey: str,
    query: str,
    record: Record,
    on_progress: Progress | None = None,
) -> Kit:
    """Write the kit of the entries that match, verify it with its own verifier, and put it on record.

    Args:
        ledger: The ledger as an auditor reads it.
        session: The same auditor's session.
        log: What this profile knows of the log.
        folder: Empty, or not there yet.
        vkey: The pinned verifier key.
        query: As for a search.
        record: Puts the manifest's digest on record.
        on_progress: Told after each entry.

    Raises:
        IntegrityFailure: What the server sends is not what it signed.
        TooLarge: More than :data:`MOST_ENTRIES` match.
        NotFound: Nothing matches.
        UsageError, DiskFull: The folder is not empty, or cannot be written.
    """
    open_folder(folder)
    reader = _Reader(ledger, session, log)
    wanted = [row["index"] for row in ledger.iter_search(query, limit=MOST_ENTRIES + 1)]
    if len(wanted) > MOST_ENTRIES:
        raise TooLarge(f"more than {MOST_ENTRIES} entries match", next="narrow the query, or its times")
    if not wanted:
        raise NotFound("no entry matches", next="broker ledger search ...")
    items = {}
    for done, index in enumerate(wanted, 1):
        items[index] = reader.item(index)
        if on_progress is not None:
            on_progress(done, len(wanted))
    chosen = list(items.values())
    for index in _supporting(reader, chosen):
        items.setdefault(index, reader.bare(index))
    bundles = {digest: reader.bundle(digest) for digest in sorted(_bundles(chosen))}
    text = reader.checkpoint(max(items))
    written = _Writer(folder, head_note=text, vkey=vkey, query=query)
    written.add_items(session, items)
    return written.finish(wanted, items, bundles, record)


def _bundles(items: list[Item]) -> set[str]:
    named = {item.entry.get("decision", {}).get("bundle") for item in items}
    named |= {item.entry.get("bundle") for item in items}
    return {digest for digest in named if digest is not None}


# -- what else a kit needs ------------------------------------------------------------------------------


def _supporting(reader: _Reader, items: list[Item]) -> Iterator[int]:
    """Indices of the entries that the others rest on."""
    yield 0
    for kind in ("key-rotation", "origin"):
        if kind in entries.TYPES:
            yield from reader.search(f"type:{kind}")
    yield from {item.erased_by for item in items if item.erased_by is not None}
    bound: dict[tuple[str, str], int] = {}
    for item in items:
        who, jkt = kit_verifier.asker(item.entry)
        if item.evidence is None or who is None or jkt is None or _is_refused_token(item):
            continue
        if (who, jkt) not in bound or bound[who, jkt] > item.index:
            bound[who, jkt] = _find_binding(reader, item, who, jkt)
    yield from bound.values()
    policies = reader.search("type:policy")
    latest = max(item.index for item in items)
    yield from (index for index in policies if index <= latest)


def _is_refused_token(item: Item) -> bool:
    """Whether somebody asked for a token and got none: that key may be bound to nobody."""
    if item.entry["type"] != "denial" or item.evidence is None:
        return False
    return str(parse_json_object(item.evidence).get("path")).startswith("/oauth/")


def _find_binding(reader: _Reader, item: Item, who: str, jkt: str) -> int:
    """The entry that bound a key to its principal: its enrolment, else the token that named the key."""
    for index in reader.search(f"type:enrolment key:{jkt}"):
        entry = reader.bare(index).entry
        if index <= item.index and entry["principal"] == who and entry["key"]["jkt"] == jkt:
            return index
    time = parse_time(item.entry["time"])
    # A token lives for minutes: the one that a request came under was issued shortly before.
    span = f"since:{format_time(max(0, time - _SESSION_MS))} until:{format_time(time + 1)}"
    for index in reversed(reader.search(f"type:token key:{jkt} {span}")):
        if index <= item.index and reader.bare(index).entry["principal"] == who:
            return index
    raise IntegrityFailure(f"no entry binds the key that asked for entry {item.index} to {who}")


class _Reader:
    """What the server says; nothing of it counts before its proof is made."""

    def __init__(self, ledger: LedgerClient, session: Session, log: LogMemory) -> None:
        self._ledger, self._session, self._log = ledger, session, log
        self.search = lru_cache(maxsize=None)(self._search)
        self.bare = lru_cache(maxsize=None)(self._bare)

    def _search(self, query: str) -> list[int]:
        return [row["index"] for row in self._ledger.iter_search(query, limit=MOST_ENTRIES)]

    def item(self, index: int) -> Item:
        """An entry with its record and evidence, checked against it."""
        answer = self._session.get(f"/v1/ledger/evidence/{index}")
        data, record, evidence, salt = (
            None if answer.get(name) is None else parse_b64url(answer[name])
            for name in ("data", "record", "evidence", "salt")
        )
        if data is None:
            raise Unreachable("the server's answer holds no entry")
        item = Item(
            index=index,
            data=data,
            entry=entries.parse_entry(data),
            record=record,
            evidence=evidence,
            salt=salt,
            erased_by=answer.get("erased_by"),
        )
        _check_item(item)
        return item

    def _bare(self, index: int) -> Item:
        for data in self._ledger.read_entries(index, index + 1):
            return Item(index=index, data=data, entry=entries.parse_entry(data))
        raise IntegrityFailure(f"the ledger does not show entry {index}")

    def bundle(self, digest: str) -> bytes:
        """The exact bytes of a policy bundle."""
        body = parse_b64url(self._session.get(f"/v1/ledger/bundles/{digest}").get("bundle") or "")
        if sha256_digest(body) != digest:
            raise IntegrityFailure("a policy bundle is not what its digest names")
        return body

    def checkpoint(self, index: int) -> str:
        """A signed tree head that covers an entry: one that witnesses cosigned, where there is one."""
        newest = self._ledger.checkpoint()
        try:
            cosigned = self._session.get_public("/ledger/cosigned").text()
        except NotFound:
            return newest
        return cosigned if self._log.observe(cosigned).size > index else newest


def _check_item(item: Item) -> None:
    entry = item.entry
    if "selection" in entry and (
        item.record is None or sha256_digest(item.record) != entry["selection"]["digest"]
    ):
        raise IntegrityFailure(f"the record of entry {item.index} is not what the entry commits to")
    if "evidence" not in entry or type(item.erased_by) is int:
        return
    if item.evidence is None or item.salt is None or len(item.salt) != entries.EVIDENCE_SALT_SIZE:
        raise IntegrityFailure(f"the evidence of entry {item.index} is missing")
    if entries.evidence_commitment(item.salt, item.evidence) != entry["evidence"]:
        raise IntegrityFailure(f"the evidence of entry {item.index} is not what the entry commits to")


# -- the folder -----------------------------------------------------------------------------------------


class _Writer:
    """Writes the files of a kit. Crash here: without its last file, the receipt, it is no kit."""

    def __init__(self, folder: Path, *, head_note: str, vkey: str, query: str) -> None:
        self._folder, self._note, self._vkey, self._query = folder, head_note, vkey, query
        self._head = note.open_head(head_note, vkey)
        self._digests: dict[str, str] = {}

    def _put(self, name: str, data: bytes) -> None:
        write_new(self._folder / name, data)
        self._digests[name] = sha256_digest(data)

    def add_items(self, session: Session, items: dict[int, Item]) -> None:
        """The entries, each with its receipt and with what it commits to."""
        size = self._head.size

        @lru_cache(maxsize=4096)
        def fetch(tile: tiles.Tile) -> bytes:
            return session.get_public(f"/ledger/{tiles.tile_path(tile)}").body

        read, nodes = tiles.read_tiles(fetch, size), NodeCache()
        for index, item in sorted(items.items()):
            stem = f"{index:08d}"
            proof = merkle.inclusion_proof(index, size, read, nodes=nodes)
            merkle.verify_inclusion(merkle.leaf_hash(item.data), index, size, proof, self._head.root)
            self._put(f"entries/{stem}.json", item.data)
            made = receipt.build_receipt(item.data, index, proof, self._note)
            self._put(f"receipts/{stem}.tlog-proof", made.encode())
            if item.record is not None:
                self._put(f"records/{stem}.json", item.record)
            if item.evidence is not None and item.salt is not None:
                self._put(f"evidence/{stem}.json", item.evidence)
                self._put(f"evidence/{stem}.salt", f"{b64url(item.salt)}\n".encode())

    def finish(
        self, wanted: list[int], items: dict[int, Item], bundles: dict[str, bytes], record: Record
    ) -> Kit:
        """The rest, the manifest over all of it, and the receipt of the entry that records the manifest."""
        erased = {str(i): items[i].erased_by for i in wanted if items[i].erased_by is not None}
        for digest, body in bundles.items():
            self._put(f"policies/{digest.removeprefix('sha256:')}.json", body)
        self._put("checkpoint", self._note.encode())
        self._put("verify.py", _VERIFIER.read_bytes())
        self._put("README.txt", kit_page.readme(self._head, query=self._query).encode())
        page = kit_page.render(self._head, query=self._query, items=[items[i] for i in wanted])
        self._put("index.html", page.encode())
        head = self._head
        manifest: dict[str, Any] = {
            "schema": kit_verifier.SCHEMA,
            "origin": head.origin,
            "vkey": self._vkey,
            "size": head.size,
            "root": b64url(head.root),
            "query": self._query,
            "entries": wanted,
            "erased": erased,
            "files": dict(self._digests),
        }
        data = canonical_bytes(manifest)
        write_new(self._folder / kit_verifier.MANIFEST, data)
        made = record({"format": "kit", "size": head.size, "digest": sha256_digest(data)})
        write_new(self._folder / kit_verifier.RECEIPT, _by_the_log_alone(made, self._vkey).encode())
        verify_kit(self._folder, self._vkey)
        return Kit(
            origin=head.origin,
            size=head.size,
            entries=len(wanted),
            support=len(items) - len(wanted),
            erased=len(erased),
            digest=sha256_digest(data),
        )


def _by_the_log_alone(text: str, vkey: str) -> str:
    """A receipt whose tree head carries the pinned key's signature and no other line."""
    parts = receipt.parse_receipt(text)
    key = note.parse_vkey(vkey)
    body, _ = note.split_note(parts.note)
    lines = parts.note[len(body) + 1 :].splitlines()
    mine = [line for line in lines if _signed_by(line, key)]
    return receipt.build_receipt(parts.entry_bytes, parts.index, parts.proof, "\n".join([body, *mine, ""]))


def _signed_by(line: str, key: note.Verifier) -> bool:
    name, blob = note.parse_signature_line(line)
    return name == key.name and blob[:4] == key.key_id


def verify_kit(folder: Path, vkey: str, *, witnesses: tuple[str, ...] = ()) -> Json:
    """Verify a kit offline, with the verifier that is installed and not the one in the kit.

    Args:
        folder: The kit.
        vkey: The log's verifier key, from somebody other than the kit's maker.
        witnesses: Verifier keys of witnesses that must have cosigned its checkpoint.

    Returns:
        ``origin``, ``size``, ``entries``, ``requests``, ``evidence``, ``erased``.

    Raises:
        IntegrityFailure: The first thing that does not hold.
    """
    try:
        return kit_verifier.verify_kit(folder, vkey, witnesses)
    except kit_verifier.KitError as exc:
        raise IntegrityFailure(f"the evidence kit does not hold: {exc}") from exc
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise IntegrityFailure("the evidence kit is not of the expected form") from exc
