"""What the log says that the rows of who may do what must be: the log folded into the tables it made.

A row's MAC proves that the broker once wrote it, not that it is the newest: somebody with the database
alone can put an older row back, or take one away. The log knows better. Each entry that changes rows says
which, and with what in them, so the newest entry about a row tells its content, and between which entries
it was written (I19).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from broker.canonical import Json, b64url, parse_time, sha256_digest
from broker.model import (
    ACTIVE,
    REVOKED,
    ActiveBundle,
    Artifact,
    BundleRow,
    Collection,
    Enrolment,
    Grant,
    Group,
    Issuer,
    Key,
    Lease,
    ManifestRow,
    Principal,
    Row,
    SubjectUse,
    Token,
    Upload,
    Version,
    row_key,
)

_NEVER: Final = -1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A row that is not what the log says.

    Attributes:
        row: Name of the row's class, such as ``Principal``.
        key: Its key, as text.
        problem: What is wrong, one line.
        entry: Index of the newest entry about it; None when no entry is about it.
    """

    row: str
    key: str
    problem: str
    entry: int | None

    def as_json(self) -> Json:
        """The finding as an object."""
        return {"row": self.row, "key": self.key, "problem": self.problem, "entry": self.entry}


@dataclass(kw_only=True)
class _Told:
    """What the log has said of one row so far.

    Attributes:
        members: What must be in it; other members the log does not tell.
        after: The last entry before the row became what it is now.
        last: The newest entry about it. The row was written by an entry in (after, last].
        until: Past this time (ms since 1970) it decides nothing, and may be gone. None: for ever.
    """

    members: Json
    after: int
    last: int
    until: int | None
    seen: bool = field(default=False)


class Fold:
    """Takes the entries in their order, then each stored row; says which rows are not the log's.

    Memory grows with the rows that still decide something: what has run out before ``now`` is dropped.

    Args:
        now: Milliseconds since 1970.
    """

    def __init__(self, *, now: int) -> None:
        self._now = now
        self._told: dict[tuple[type[Any], tuple[Any, ...]], _Told] = {}
        self._keys: dict[str, set[str]] = {}
        self._codes: dict[str, set[str]] = {}

    # -- the entries --------------------------------------------------------------------------------------

    def add(self, index: int, entry: Json) -> None:
        """The next entry, as :func:`broker.ledger.entry.parse_entry` gives it."""
        take = _TAKERS.get(entry["type"])
        if take is not None:
            take(self, index, entry)

    def _tell(
        self,
        index: int,
        row: type[Any],
        key: tuple[Any, ...],
        members: Json,
        *,
        until: int | None = None,
        rewrites: bool = False,
    ) -> None:
        # A pin outlives the token that tells of it: its row may still be there.
        if until is not None and until <= self._now and row is not SubjectUse:
            return
        told = self._told.get((row, key))
        if told is None:
            self._told[row, key] = _Told(members=members, after=_NEVER, last=index, until=until)
        elif rewrites or told.members != members:
            told.members, told.after, told.last, told.until = members, told.last, index, until
        else:
            # Said again and not changed: the row may have been written by either entry.
            told.last = index

    def _change(self, index: int, row: type[Any], key: tuple[Any, ...], **members: Any) -> None:
        told = self._told.get((row, key))
        if told is not None:
            self._tell(index, row, key, {**told.members, **members}, until=told.until)

    def _principal(self, index: int, entry: Json) -> None:
        members = {name: entry[name] for name in ("roles", "groups", "disabled")}
        self._tell(index, Principal, (entry["subject"],), members, rewrites=True)

    def _code(self, index: int, entry: Json) -> None:
        subject, code = entry["subject"], entry["code"]
        # A new code ends the ones before it.
        for older in self._codes.pop(subject, set()):
            self._change(index, Enrolment, (older,), status="superseded")
        until = parse_time(entry["expires_at"])
        self._tell(index, Enrolment, (code,), {"principal": subject, "status": ACTIVE}, until=until)
        self._codes[subject] = {code}

    def _enrolment(self, index: int, entry: Json) -> None:
        principal, key = entry["principal"], entry["key"]
        members = {"principal": principal, "jwk": key["jwk"], "status": ACTIVE}
        if "uses" in entry:
            members["uses"] = entry["uses"]
        self._tell(index, Key, (key["jkt"],), members)
        self._keys.setdefault(principal, set()).add(key["jkt"])
        if "code" in entry:
            self._change(index, Enrolment, (entry["code"],), status="used")
            self._codes.get(principal, set()).discard(entry["code"])

    def _token(self, index: int, entry: Json) -> None:
        until = parse_time(entry["expires_at"])
        members = {
            "principal": entry["principal"],
            "jkt": entry["jkt"],
            "expires": until,
            "status": ACTIVE,
        }
        if "scope" in entry:
            members["scope"] = entry["scope"]
        self._tell(index, Token, (entry["token"],), members, until=until)
        if "subject_digest" in entry and "minter" not in entry:
            pin = {"principal": entry["principal"], "jkt": entry["jkt"], "issuer": entry["issuer"]}
            self._tell(index, SubjectUse, (entry["subject_digest"],), pin, until=until)

    def _grant(self, index: int, entry: Json) -> None:
        expires = entry.get("grant_expires_at", entry.get("expires_at"))
        until = None if expires is None else parse_time(expires)
        names = ("principal", "jkt", "artifact", "version", "manifest", "bytes")
        members = {name: entry[name] for name in names if name in entry}
        if "grant_expires_at" in entry:
            members["expires"] = until
        self._tell(index, Grant, (entry["grant"],), {**members, "status": ACTIVE}, until=until)
        self._lease(index, entry)

    def _lease(self, index: int, entry: Json) -> None:
        until = parse_time(entry["expires_at"])
        members = {"recipient": entry["recipient"], "expires": until}
        self._tell(index, Lease, (entry["grant"], entry["lease"]), members, until=until)

    def _publish(self, index: int, entry: Json) -> None:
        members = {"principal": entry["principal"], "jkt": entry["jkt"], "status": "open"}
        self._tell(index, Upload, (entry["upload"],), members)

    def _abandon(self, index: int, entry: Json) -> None:
        self._change(index, Upload, (entry["upload"],), status="abandoned")

    def _commit(self, index: int, entry: Json) -> None:
        collection, _, name = entry["artifact"].partition("/")
        members = {
            "manifest": entry["manifest"],
            "version_id": entry["version_id"],
            "publisher_jkt": entry["publisher"],
            "binding": entry["publisher_binding"],
            "wrap": entry["wrap"],
            "labels": entry["labels"],
        }
        self._tell(index, Version, (collection, name, entry["version"]), members)
        self._tell(index, Artifact, (collection, name), {"kind": entry["kind"]} if "kind" in entry else {})
        self._tell(index, ManifestRow, (entry["manifest"],), {})
        if "upload" in entry:
            self._change(index, Upload, (entry["upload"],), status="committed")

    def _collection(self, index: int, entry: Json) -> None:
        members = {name: entry[name] for name in ("readers", "publishers")}
        self._tell(index, Collection, (entry["collection"],), members, rewrites=True)

    def _group(self, index: int, entry: Json) -> None:
        self._tell(index, Group, (entry["group"],), {"parents": entry["parents"]})

    def _issuer(self, index: int, entry: Json) -> None:
        members = {
            "url": entry["url"],
            "kind": entry["issuer_kind"],
            "audience": entry["audience"],
            "mapping": entry["mapping"],
            "status": REVOKED if entry["disabled"] else ACTIVE,
        }
        # Its keys and authorities are told by digest only: which entry wrote the row says that it is these.
        self._tell(index, Issuer, (entry["issuer"],), members, rewrites=True)

    def _policy(self, index: int, entry: Json) -> None:
        self._tell(index, ActiveBundle, ("active",), {"digest": entry["bundle"]}, rewrites=True)
        self._tell(index, BundleRow, (entry["bundle"],), {})

    def _revocation(self, index: int, entry: Json) -> None:
        kind, id = entry["target"]["kind"], entry["target"]["id"]
        if kind == "principal":
            for jkt in self._keys.get(id, set()):
                self._change(index, Key, (jkt,), status=REVOKED)
        elif kind in _REVOCABLE:
            self._change(index, _REVOCABLE[kind], (id,), status=REVOKED)

    # -- the rows -----------------------------------------------------------------------------------------

    def check(self, row: Row) -> Finding | None:
        """A stored row whose MAC holds: None when it is what the log says."""
        key = row_key(row)
        told = self._told.get((type(row), key))
        if told is None:
            end = _end(row)
            if end is not None and end <= self._now:
                return None
            return _finding(type(row), key, "no entry of the log is about this row", None)
        told.seen = True
        if not told.after < row.entry <= told.last:
            problem = f"the stored row is of entry {row.entry}, the log's newest word on it of {told.last}"
            return _finding(type(row), key, problem, told.last)
        shown = _shown(row)
        differing = sorted(name for name, value in told.members.items() if shown.get(name) != value)
        if differing:
            problem = f"{', '.join(differing)}: not what entry {told.last} says"
            return _finding(type(row), key, problem, told.last)
        return None

    def missing(self) -> Iterator[Finding]:
        """Rows that should be stored, and were not among those that :meth:`check` was given."""
        for (row, key), told in self._told.items():
            if not told.seen and (told.until is None or told.until > self._now):
                yield _finding(row, key, "the row is missing", told.last)


_TAKERS: Final = {
    "principal": Fold._principal,
    "enrolment-code": Fold._code,
    "enrolment": Fold._enrolment,
    "token": Fold._token,
    "grant": Fold._grant,
    "lease": Fold._lease,
    "publish": Fold._publish,
    "abandon": Fold._abandon,
    "commit": Fold._commit,
    "collection": Fold._collection,
    "group": Fold._group,
    "issuer": Fold._issuer,
    "policy": Fold._policy,
    "revocation": Fold._revocation,
}
_REVOCABLE: Final[dict[str, type[Any]]] = {"grant": Grant, "token": Token, "key": Key}


def _finding(row: type[Any], key: tuple[Any, ...], problem: str, entry: int | None) -> Finding:
    return Finding(row=row.__name__, key="/".join(str(part) for part in key), problem=problem, entry=entry)


def _end(row: Row) -> int | None:
    return row.expires if isinstance(row, Token | Grant | Lease | Enrolment | SubjectUse) else None


def _shown(row: Row) -> Json:
    """The members of a row in the words of entries."""
    shown: Json = {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(row).items()
    }
    match row:
        case Key():
            shown["jwk"] = json.loads(row.jwk)
        case Token():
            shown["scope"] = sha256_digest(row.limits.encode())
        case Issuer():
            shown["mapping"] = sha256_digest(row.mapping.encode())
        case Grant():
            shown["artifact"] = row.artifact
        case Version():
            shown |= {
                "version_id": b64url(row.version_id),
                "labels": json.loads(row.labels),
                "wrap": sha256_digest(row.wrapped_key),
            }
        case _:
            pass
    return shown
