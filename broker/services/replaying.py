"""Recorded decisions made again: by the bundles that made them, or by a candidate.

By the same bundle every answer must be the same: anything else says that a bundle, the evidence or the
engine was changed. By a candidate the answers say what applying it would have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from broker import limits
from broker.canonical import Json, parse_json_object
from broker.errors import BrokerError, IntegrityFailure
from broker.ledger import entry as entries
from broker.ledger.query import parse_query
from broker.model import BundleRow
from broker.policy.bundle import parse_bundle
from broker.policy.engine import PolicyEngine
from broker.policy.entities import Slice
from broker.policy.replay import parse_slice
from broker.policy.request import PolicyDecision
from broker.ports import View
from broker.services import auditing, authn
from broker.services.erasing import find_erasure
from broker.services.evidence import read_evidence
from broker.services.house import House

PAGE_MS: Final = 2000
"""How long one page may take; the next one goes on where it ended."""
_SHOWN: Final = ("type", "principal", "action", "artifact", "version", "purpose")


def replay(
    house: House,
    request: authn.SignedRequest,
    *,
    files: Mapping[str, str] | None,
    q: str,
    since: str | None,
    until: str | None,
    after: int | None,
) -> Json:
    """Decide one page of recorded decisions again; an auditor's question, and recorded.

    Args:
        house: The broker.
        request: The signed request.
        files: A candidate bundle; None means that each decision is made by the bundle that made it.
        q: Which entries, as for a search.
        since: Only entries from this time on.
        until: Only entries before this time.
        after: The last index of the page before.

    Returns:
        ``bundle`` (digest of the candidate, or null), ``counts`` (``decisions``, ``same``, ``not_policy``:
        refused before policy was asked, ``no_inputs``: recorded without them, ``erased``), ``flips``
        (entries whose effect is another: ``was``, ``now``), ``findings`` (entries whose evidence, bundle or
        answer is not what the log commits to), ``next_after``, null at the end, and ``size``.

    Raises:
        InvalidRequest: The query or the candidate is not valid.
    """
    text = auditing.query_text(q, since=since, until=until)
    parse_query(text, now=house.clock.now())
    what = "the same policies" if files is None else "a candidate"
    auditing.authorize(house, request, "search", f"replay under {what} {text}".rstrip())
    # Only now: nobody else makes us parse their text. In a capped child process first (I13).
    checked = (
        None if files is None else house.check_policy({name: one.encode() for name, one in files.items()})
    )
    candidate = None if checked is None else PolicyEngine(checked)
    with house.ledger.view() as view:
        page = _Page(engine_of=_engines(house, view), candidate=candidate)
        next_after = _run(house, view, page, text, -1 if after is None else after)
        size = view.tail().size
    return {
        "bundle": None if checked is None else checked.digest,
        "counts": {name: page.counts[name] for name in _COUNTED},
        "flips": page.flips,
        "findings": page.findings,
        "next_after": next_after,
        "size": size,
    }


_COUNTED: Final = ("decisions", "same", "not_policy", "no_inputs", "erased")


def _run(house: House, view: View, page: _Page, text: str, after: int) -> int | None:
    query = parse_query(text, now=view.now)
    began = house.clock.now()
    while True:
        rows = view.search(query, after=after, limit=limits.DEFAULT_PAGE)
        for index, row in rows:
            after = index
            if row.decision is not None:
                page.decide(view, index)
        if len(rows) < limits.DEFAULT_PAGE:
            return None
        if not 0 <= house.clock.now() - began < PAGE_MS:
            return after


@dataclass(kw_only=True)
class _Page:
    engine_of: Callable[[str], PolicyEngine]
    candidate: PolicyEngine | None
    counts: Counter[str] = field(default_factory=Counter)
    flips: list[Json] = field(default_factory=list)
    findings: list[Json] = field(default_factory=list)

    def decide(self, view: View, index: int) -> None:
        self.counts["decisions"] += 1
        try:
            entry = entries.parse_entry(view.entry(index))
            self._decide(view, index, entry)
        except IntegrityFailure as exc:
            self.findings.append(
                {"index": index, "problem": f"{exc.what} ({exc.why})" if exc.why else exc.what}
            )

    def _decide(self, view: View, index: int, entry: Json) -> None:
        was = entry["decision"]
        if "bundle" not in was:
            self.counts["not_policy"] += 1
            return
        if find_erasure(view, index, entry) is not None:
            self.counts["erased"] += 1
            return
        kept = {} if "evidence" not in entry else parse_json_object(read_evidence(view, index, entry)[1])
        if "inputs" not in kept:
            self.counts["no_inputs"] += 1
            return
        self._compare(index, entry, was, kept["inputs"])

    def _compare(self, index: int, entry: Json, was: Json, inputs: Any) -> None:
        slice = _parse(inputs)
        engine = self.candidate or self.engine_of(was["bundle"])
        now = engine.decide_slice(slice)
        if self.candidate is None and now.as_json() != was:
            problem = f"the same bundle says {_said(now.as_json())} now, and said {_said(was)}"
            self.findings.append({"index": index, "problem": problem})
        elif now.effect != was["effect"]:
            self.flips.append(_flip(index, entry, was, now))
        else:
            self.counts["same"] += 1


def _parse(inputs: Any) -> Slice:
    try:
        return parse_slice(inputs)
    except BrokerError as exc:
        raise IntegrityFailure("what was kept as the inputs of a decision is none", why=exc.why) from exc


def _said(decision: Json) -> str:
    return f"{decision['effect']} ({', '.join(decision['policies']) or 'no policy'})"


def _flip(index: int, entry: Json, was: Json, now: PolicyDecision) -> Json:
    return {
        "index": index,
        "time": entry["time"],
        **{name: entry.get(name) for name in _SHOWN},
        "was": {"effect": was["effect"], "policies": was["policies"]},
        "now": {"effect": now.effect, "policies": list(now.policies)},
    }


def _engines(house: House, view: View) -> Callable[[str], PolicyEngine]:
    def engine_of(digest: str) -> PolicyEngine:
        engine = house.engines.get(digest)
        if engine is None:
            row = view.find(BundleRow, digest)
            bundle = None if row is None else parse_bundle(row.body)
            if bundle is None or bundle.digest != digest:
                raise IntegrityFailure("the bundle that decided is not stored as its digest names it")
            engine = house.engines.setdefault(digest, PolicyEngine(bundle, stored=True))
        return engine

    return engine_of
