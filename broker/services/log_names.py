"""What the log says of itself: its name, and the keys that sign it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker import limits
from broker.errors import IntegrityFailure
from broker.ledger import entry as entries
from broker.ledger import lineage, note
from broker.ledger.note import Verifier
from broker.model import Query
from broker.ports import View
from broker.services.house import House

ORIGIN: Final = "origin"
"""Type of the entry with which a log goes on under another name."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """What the log says that it is called: by its genesis, or by the newest entry of type ``origin``."""

    index: int
    origin: str
    vkey: str


def current_name(view: View) -> Named:
    """The name under which the log goes on.

    Raises:
        IntegrityFailure: An entry that should say so does not.
    """
    index = 0
    after: int | None = -1
    while after is not None:
        page = view.search(Query(type=ORIGIN), after=after, limit=limits.MAX_PAGE)
        index = page[-1][0] if page else index
        after = page[-1][0] if len(page) == limits.MAX_PAGE else None
    found = entries.parse_entry(view.entry(index))
    if found["type"] not in (ORIGIN, "genesis"):
        raise IntegrityFailure("the search index names an entry that does not name the log")
    return Named(index=index, origin=found["origin"], vkey=found["vkey"])


@dataclass(frozen=True, kw_only=True)
class NamedKey:
    """A key that the log names: by its genesis or new origin, or by a change of its key.

    Attributes:
        index: The entry that names it.
        vkey: The key.
    """

    index: int
    vkey: str


def named_keys(view: View) -> tuple[NamedKey, ...]:
    """The keys of the log under its present name, oldest first: at least one.

    Raises:
        IntegrityFailure: An entry that should name one does not.
    """
    first = current_name(view)
    found = [NamedKey(index=first.index, vkey=first.vkey)]
    after: int | None = first.index
    while after is not None:
        page = view.search(Query(type=lineage.TYPE), after=after, limit=limits.MAX_PAGE)
        for index, _ in page:
            entry = entries.parse_entry(view.entry(index))
            if entry["type"] != lineage.TYPE:
                raise IntegrityFailure("the search index names an entry that does not change a key")
            if entry["use"] == lineage.USE:
                found.append(NamedKey(index=index, vkey=entry["vkey"]))
        after = page[-1][0] if len(page) == limits.MAX_PAGE else None
    return tuple(found)


def own_verifiers(house: House, view: View) -> tuple[Verifier, ...]:
    """Every key whose heads are this log's: those that sign now, and those that did."""
    named = (note.parse_vkey(each.vkey) for each in named_keys(view))
    return tuple(dict.fromkeys((*house.verifiers(), *named)))
