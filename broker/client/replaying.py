"""Recorded decisions made again, page by page, and what all pages come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from broker.canonical import Json, drop_absent
from broker.client.session import Session

MAX_KEPT: Final = 10_000
"""Flips and findings, each, that are kept; all are counted."""
ALLOWED: Final = "newly_allowed"
DENIED: Final = "newly_denied"


def replay_decisions(
    session: Session,
    *,
    files: Mapping[str, str] | None = None,
    query: str = "",
    since: str | None = None,
    until: str | None = None,
    on_progress: Callable[[int, int], Any] | None = None,
) -> Json:
    """Every matching decision, made again by the bundle that made it, or by a candidate.

    Args:
        session: The auditor's.
        files: The candidate's files by name; None for the same bundles.
        query: As for a search.
        since: From this time on.
        until: Before this time.
        on_progress: Told (index reached, entries in all).

    Returns:
        ``ok`` (no findings), ``bundle``, ``counts``, ``newly_allowed`` and ``newly_denied``, ``by_principal``
        and ``by_artifact`` (name -> both numbers), ``flips`` and ``findings`` (at most 10,000 each).

    Raises:
        BrokerError: The server's refusal.
    """
    asked = {"files": None if files is None else dict(files), "q": query, "since": since, "until": until}
    found: Json = {"bundle": None, "flips": [], "findings": []}
    counts: Counter[str] = Counter()
    by: dict[str, dict[str, Counter[str]]] = {"principal": {}, "artifact": {}}
    after: int | None = None
    while True:
        page = session.write("POST", "/v1/policies/replay", drop_absent({**asked, "after": after}))
        found["bundle"] = page["bundle"]
        counts.update(page["counts"])
        counts["findings"] += len(page["findings"])
        for name in ("flips", "findings"):
            found[name] += page[name][: MAX_KEPT - len(found[name])]
        for flip in page["flips"]:
            _count(flip, counts, by)
        after = page["next_after"]
        if on_progress is not None:
            on_progress(page["size"] if after is None else after, page["size"])
        if after is None:
            break
    ways = {way: counts.pop(way, 0) for way in (ALLOWED, DENIED)}
    return {
        "ok": not counts["findings"],
        "bundle": found["bundle"],
        "counts": dict(counts),
        **ways,
        "by_principal": _both(by["principal"]),
        "by_artifact": _both(by["artifact"]),
        "flips": found["flips"],
        "findings": found["findings"],
    }


def _count(flip: Json, counts: Counter[str], by: Mapping[str, dict[str, Counter[str]]]) -> None:
    way = ALLOWED if flip["now"]["effect"] == "allow" else DENIED
    counts[way] += 1
    for name, found in by.items():
        if flip.get(name) is not None:
            found.setdefault(flip[name], Counter())[way] += 1


def _both(found: Mapping[str, Counter[str]]) -> Json:
    return {name: {ALLOWED: one[ALLOWED], DENIED: one[DENIED]} for name, one in sorted(found.items())}
