"""The ledger as an auditor reads it: search, show, prove, and the whole log verified locally."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from broker import limits
from broker.canonical import Json, b64url, drop_absent, parse_b64url, parse_json_object
from broker.client import export, kit
from broker.client.cosigned import find_cosigned
from broker.client.following import follow_rows
from broker.client.replaying import replay_decisions
from broker.client.session import Session
from broker.client.settings import Profile
from broker.client.static_log import write_new
from broker.client.trust import LogMemory, check_entry
from broker.errors import (
    BrokerError,
    IntegrityFailure,
    MalformedRequest,
    NotFound,
    Unreachable,
    UsageError,
)
from broker.ledger import note
from broker.ledger.audit import Auditor, Verdict
from broker.ledger.certificate import Sample
from broker.ledger.note import TreeHead
from broker.ledger.query import parse_query
from broker.model import IndexRow
from broker.names import Ref

PAGE: Final = 5000
"""Rows that one request for leaves asks for."""
_LONGEST_LINE: Final = 4 * limits.MAX_ENTRY


@dataclass(frozen=True, kw_only=True)
class LedgerVerdict:
    """What a verification of the whole log found.

    Attributes:
        ok: The stored log is what was signed, and extends what this profile has seen.
        size: Entries that were read.
        root: Root over them, base64url.
        first_bad_index: The first entry that is wrong, where one can be named.
        first_bad_interval: Else the sizes of the two signed tree heads between which it lies.
        problems: One line each.
    """

    ok: bool
    size: int
    root: str
    first_bad_index: int | None
    first_bad_interval: tuple[int, int] | None
    problems: tuple[str, ...]

    def as_json(self) -> Json:
        """The shape of ``broker ledger verify -o json``: absent members are left out."""
        found: Json = {"ok": self.ok, "size": self.size, "root": self.root}
        if self.first_bad_index is not None:
            found["first_bad_index"] = self.first_bad_index
        if self.first_bad_interval is not None:
            found["first_bad_interval"] = list(self.first_bad_interval)
        if self.problems:
            found["problems"] = list(self.problems)
        return found


class LedgerClient:
    """Questions to the ledger. All but :meth:`checkpoint` need the auditor role and are recorded."""

    def __init__(self, session: Session, log: LogMemory, profile: Profile) -> None:
        self._session = session
        self._log = log
        self._profile = profile

    def search(
        self,
        query: str = "",
        *,
        since: str | None = None,
        until: str | None = None,
        after: int | None = None,
        limit: int = limits.DEFAULT_PAGE,
    ) -> Json:
        """One page of matching rows: ``{"entries", "next_after", "size"}``, ascending by index."""
        members = {"q": query or None, "since": since, "until": until, "after": after, "limit": limit}
        return self._session.get("/v1/ledger/entries", members)

    def iter_search(
        self, query: str = "", *, since: str | None = None, until: str | None = None, limit: int | None = None
    ) -> Iterator[Json]:
        """Every matching row, page by page; at most ``limit`` of them."""
        after, left = None, limit
        while left is None or left > 0:
            size = limits.MAX_PAGE if left is None else min(left, limits.MAX_PAGE)
            page = self.search(query, since=since, until=until, after=after, limit=size)
            yield from page["entries"]
            left = None if left is None else left - len(page["entries"])
            after = page["next_after"]
            if after is None:
                return

    def follow(
        self,
        query: str = "",
        *,
        since: str | None = None,
        after: int | None = None,
        on_trouble: Callable[[BrokerError], Any] = lambda _: None,
    ) -> Iterator[Json]:
        """Every matching row, and those that are appended, for ever: see :func:`follow_rows`."""
        return follow_rows(
            lambda at, limit: self.search(query, since=since, after=at, limit=limit),
            after=after,
            wait=threading.Event().wait,
            on_trouble=on_trouble,
        )

    def count(
        self,
        query: str = "",
        *,
        by: Literal["decision", "type", "principal", "artifact", "hour", "day"] = "decision",
        since: str | None = None,
        until: str | None = None,
        top: int = limits.DEFAULT_PAGE,
    ) -> Json:
        """All matching entries in groups: ``{"by", "total", "groups", "rest", "size"}``."""
        members = {"q": query or None, "since": since, "until": until, "by": by, "top": top}
        return self._session.get("/v1/ledger/counts", members)

    def show(self, index: int) -> Json:
        """One entry, its record, and its receipt, which is verified before it is returned.

        Raises:
            IntegrityFailure: What is shown is not what the log holds.
        """
        answer = self._session.get(f"/v1/ledger/entries/{index}")
        verified = self._log.accept(answer.get("receipt"))
        if verified.index != index or verified.entry != answer.get("entry"):
            raise IntegrityFailure("the entry that is shown is not the one that its receipt proves")
        return answer

    def who_can(self, ref: Ref, *, action: str = "read", purpose: str = "", after: str | None = None) -> Json:
        """One page of the principals whom policy would not refuse a version; see ``docs/http.md``."""
        members = {"artifact": ref.artifact, "version": ref.version, "action": action, "after": after}
        return self._session.get("/v1/policies/who-can", {**members, "purpose": purpose or None})

    def what_can(self, principal: str, *, purpose: str = "", after: str | None = None) -> Json:
        """One page of the artifacts whose newest version policy would not refuse a principal."""
        members = {"principal": principal, "purpose": purpose or None, "after": after}
        return self._session.get("/v1/policies/what-can", members)

    def replay(self, files: Mapping[str, str] | None = None, **which: Any) -> Json:
        """Recorded decisions made again: see :func:`~broker.client.replaying.replay_decisions`."""
        return replay_decisions(self._session, files=files, **which)

    def prove(self, index: int) -> str:
        """A receipt of one entry: a ``tlog-proof`` text that verifies offline.

        Raises:
            IntegrityFailure: It does not verify.
        """
        answer = self._session.get(f"/v1/ledger/proof/inclusion/{index}")
        if self._log.accept(answer.get("receipt")).index != index:
            raise IntegrityFailure("the receipt is for another entry")
        return str(answer["receipt"])

    def checkpoint(self) -> str:
        """The newest signed tree head, once it is known to extend what this profile has seen."""
        text = self._session.get_public("/ledger/checkpoint").text()
        self._log.observe(text)
        return text

    # -- exports ----------------------------------------------------------------------------------------

    def export(
        self,
        folder: Path,
        *,
        format: Literal["tiles", "jsonl", "csv", "ocsf", "parquet"] = "tiles",
        query: str = "",
        sample: Sample | None = None,
        on_progress: export.Progress | None = None,
    ) -> export.Verified:
        """Take the whole log home, and what a query gives over it; it is recorded that this was done.

        Everything is verified while it is written. The certificate comes last, and after it the receipt
        of the entry that records the export.

        Args:
            folder: Empty, or not there yet.
            format: ``tiles`` for the log alone; else also a file of the rows that match.
            query: As for :meth:`search`; durations count back from now.
            sample: Only so many of the rows that match, drawn by a seed.
            on_progress: Told (entries read, entries in all).

        Raises:
            IntegrityFailure: What the server sends is not what it signed.
            UsageError: The folder is not empty, or a query or sample is asked for without rows.
            DiskFull: The folder cannot hold it.
        """
        parsed = parse_query(query, now=self._session.clock.now())
        if format == "tiles" and (query or sample is not None):
            raise UsageError("an export of tiles is the whole log", next="choose another --format")
        text = self.checkpoint()
        head = self._log.open(text)
        export.write_log(folder, self._entries(head.size), text, head, on_progress=on_progress)
        made, digest = None, hashlib.sha256(text.encode()).hexdigest()
        if format != "tiles":
            made = export.write_rows(folder, self._log.vkey, query=parsed, format=format, sample=sample)
            digest = hashlib.sha256(made.to_bytes()).hexdigest()
        members = {"format": format, "size": head.size, "digest": f"sha256:{digest}"}
        write_new(folder / export.RECEIPT, self._record_export(members).encode())
        return export.Verified(head=head, certificate=made)

    def _entries(self, size: int) -> Iterator[list[bytes]]:
        for start in range(0, size, PAGE):
            yield self.read_entries(start, min(start + PAGE, size))

    def read_entries(self, start: int, stop: int) -> list[bytes]:
        """Entries [start, stop), at most :data:`PAGE`, as the server shows them: nothing is proven yet."""
        members = {"start": start, "stop": stop}
        lines = self._session.lines("/v1/ledger/leaves", members, longest=_LONGEST_LINE)
        return [_bytes(_parse_row(line).get("e")) for line in lines if line]

    def write_kit(self, folder: Path, query: str = "", *, on_progress: kit.Progress | None = None) -> kit.Kit:
        """Take what matches home with all that proves it: see :func:`broker.client.kit.write_kit`."""
        return kit.write_kit(
            self,
            self._session,
            self._log,
            folder,
            vkey=self._log.vkey,
            query=query,
            record=self._record_export,
            on_progress=on_progress,
        )

    def _record_export(self, members: Json) -> str:
        have = self._log.have()
        body = drop_absent({**members, "request_id": self._session.request_id(), "have": have})
        answer = self._session.write("POST", "/v1/ledger/exports", body)
        verified = self._log.accept(
            answer.get("receipt"), have=have, consistency=answer.get("consistency", [])
        )
        check_entry(verified.entry, {"type": "export", "digest": members["digest"]})
        return str(answer["receipt"])

    # -- the whole log ----------------------------------------------------------------------------------

    def verify(self, *, full: bool = False) -> LedgerVerdict:
        """Read the whole log and verify it against every tree head that is known.

        The heads are those that the server kept, its newest, and the one that this profile remembers: a
        log that was cut back or rewritten contradicts one of them.

        Args:
            full: Also parse every entry, re-derive the search index, and compare stored interior hashes.

        Raises:
            BrokerError: The log could not be read. What is wrong *with* the log is in the verdict.
        """
        remembered = self._log.have()
        newest = self._session.get_public("/ledger/checkpoint").text()
        cosigned, missing = find_cosigned(self._session, self.read_entries, self._log.witnesses, newest)
        heads, problems = self._heads([newest, *cosigned, *([] if remembered is None else [remembered])])
        problems += missing
        auditor = Auditor(heads=heads, stored_hashes=self._hashes if full else None, full=full)
        size = max((head.size for head in heads), default=0)
        start, more = 0, True
        # Past the signed size too: rows that nobody signed are a finding, not something to skip.
        while more or start < size:
            fed = self._feed(auditor, start, start + PAGE, full=full)
            more, start = fed > 0, start + PAGE
        verdict = self._check_end(auditor.finish())
        if verdict.ok and not problems and verdict.size >= self._log.open(newest).size:
            # Every head agrees with one and the same list of rows, so each extends the smaller ones.
            self._log.learn(newest)
        return _summary(verdict, problems)

    def _check_end(self, verdict: Verdict) -> Verdict:
        """The rows beyond the heads that the auditor was given, against the head that is signed by now.

        Every row that was read and that the broker wrote was in its log before, so this head covers it.
        """
        head = self._log.open(self._session.get_public("/ledger/checkpoint").text())
        if head.size < verdict.size:
            index = verdict.first_bad_index
            return replace(
                verdict,
                ok=False,
                first_bad_index=head.size if index is None else min(index, head.size),
                problems=(*verdict.problems, f"entry {head.size} and what follows it were never signed"),
            )
        if verdict.ok and head.size == verdict.size and head.root != verdict.root:
            return replace(
                verdict,
                ok=False,
                first_bad_interval=(verdict.covered, head.size),
                problems=(f"the rows do not give the root that was signed at size {head.size}",),
            )
        return verdict

    def _heads(self, known: Sequence[str]) -> tuple[list[TreeHead], list[str]]:
        answer = self._session.get("/v1/ledger/heads")
        kept = [str(item.get("note")) for item in answer.get("heads") or [] if isinstance(item, dict)]
        heads, problems = [], []
        for texts, keys in ((known, self._log.own_keys(known[0])), (kept, self._log.named_keys())):
            for text in texts:
                if text.partition("\n")[0] != self._profile.origin:
                    continue  # of the time before the log went on under this name, or nothing of ours
                try:
                    heads.append(note.open_head(text, keys))
                except IntegrityFailure as exc:
                    problems.append(f"a kept tree head is not signed by a key of the log: {exc.what}")
        return heads, problems

    def _feed(self, auditor: Auditor, start: int, stop: int, *, full: bool) -> int:
        members = {"start": start, "stop": stop, "index": 1 if full else None}
        lines = self._session.lines("/v1/ledger/leaves", members, longest=_LONGEST_LINE)
        rows, search = [], []
        for line in lines:
            if not line:
                continue
            found = _parse_row(line)
            index = found["i"]
            if "e" in found:
                rows.append((index, _bytes(found["e"]), _bytes(found.get("h"))))
            if found.get("x") is not None:
                search.append((index, _index_row(found["x"])))
        auditor.feed(rows, index_rows=search if full else None)
        return len(rows) + len(search)

    def _hashes(self, level: int, start: int, stop: int) -> list[bytes]:
        try:
            answer = self._session.get("/v1/ledger/hashes", {"level": level, "start": start, "stop": stop})
            return [parse_b64url(item) for item in answer["hashes"]]
        except (NotFound, KeyError, MalformedRequest) as exc:
            raise IntegrityFailure("a stored hash is missing") from exc


def _parse_row(line: bytes) -> Json:
    try:
        found = parse_json_object(line)
    except MalformedRequest as exc:
        raise Unreachable("the server's answer is not a list of ledger rows") from exc
    if type(found.get("i")) is not int:
        raise Unreachable("the server's answer is not a list of ledger rows")
    return found


def _bytes(value: Any) -> bytes:
    try:
        return parse_b64url(value)
    except BrokerError:
        # Whatever it is, it is not what was hashed: the auditor names the row.
        return b""


def _index_row(value: Json) -> IndexRow:
    try:
        return IndexRow(**{**value, "policies": tuple(value.get("policies") or ())})
    except TypeError as exc:
        raise IntegrityFailure("a search row has other columns than it must have") from exc


def _summary(verdict: Verdict, problems: list[str]) -> LedgerVerdict:
    return LedgerVerdict(
        ok=verdict.ok and not problems,
        size=verdict.size,
        root=b64url(verdict.root),
        first_bad_index=verdict.first_bad_index,
        first_bad_interval=verdict.first_bad_interval,
        problems=(*verdict.problems, *problems),
    )


def check_verdict(verdict: LedgerVerdict) -> None:
    """The ledger is what was signed.

    Raises:
        IntegrityFailure: It is not; the message names the entry or the interval.
    """
    if verdict.ok:
        return
    where = "the ledger is not what was signed"
    if verdict.first_bad_index is not None:
        where += f": first at entry {verdict.first_bad_index}"
    elif verdict.first_bad_interval is not None:
        start, stop = verdict.first_bad_interval
        where += f": first between entries {start} and {stop}"
    raise IntegrityFailure(where, why="; ".join(verdict.problems[:5]) or None)
