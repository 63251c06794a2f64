"""Reach: who can act on a version, and what a principal can act on, asked of policy for each in turn.

The answers are those of the engine over complete slices of one snapshot, not of a second reading of the
policies. They hold for what is stored: a workload's token may bring further groups and attributes
under its issuer's mapping, and a policy may look at purpose, network, time or usage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from broker import limits
from broker.canonical import Json
from broker.errors import InvalidRequest
from broker.model import Artifact, Collection, Principal
from broker.policy import request as policy
from broker.ports import View
from broker.services import auditing, authn, deciding, lookup, people
from broker.services.house import House

ACTIONS: Final = ("describe", "read")
"""What may be asked about a version that is there."""


def who_can(
    house: House,
    request: authn.SignedRequest,
    *,
    collection: str,
    name: str,
    version: str | None,
    action: str,
    purpose: str = "",
    after: str | None = None,
    limit: int = limits.DEFAULT_PAGE,
) -> Json:
    """One page of the principals whom policy would not refuse; an auditor's question, and recorded.

    Args:
        house: The broker.
        request: The signed request.
        collection: Collection of the artifact.
        name: Its name.
        version: Version by name or manifest digest; None means the newest.
        action: One of :data:`ACTIONS`.
        purpose: What they would say that it is for.
        after: Id of the last principal of the page before.
        limit: Principals that one page asks about, 1 to 1,000.

    Returns:
        ``artifact``, ``version``, ``action``, ``principals`` (``principal``, ``effect``, ``policies``),
        ``asked`` (how many this page asked about) and ``next_after``, null at the end.

    Raises:
        NotFound: There is no such version.
        InvalidRequest: Another action or limit.
    """
    _check(action, limit)
    shown = f"{collection}/{name}" + (f"@{version}" if version else "")
    auditing.authorize(house, request, "search", f"who-can {action} {shown}")
    with house.ledger.view() as view:
        row = lookup.resolve_version(view, collection, name, version)
        home = view.find(Collection, collection)
        if row is None or home is None:
            raise lookup.not_found(f"{collection}/{name}", version)
        target = lookup.version_target(home, row)
        everybody = sorted(view.list(Principal), key=lambda one: one.id)
        page = [one for one in everybody if after is None or one.id > after][:limit]
        found = [
            {"principal": one.id, **answer}
            for one in page
            if (answer := _answer(house, view, one, action, target, purpose)) is not None
        ]
    return {
        "artifact": f"{collection}/{name}",
        "version": row.version,
        "action": action,
        "principals": found,
        "asked": len(page),
        "next_after": _next([one.id for one in page], [one.id for one in everybody]),
    }


def what_can(
    house: House,
    request: authn.SignedRequest,
    *,
    principal: str,
    purpose: str = "",
    after: str | None = None,
    limit: int = limits.DEFAULT_PAGE,
) -> Json:
    """One page of the artifacts whose newest version a principal may describe or read; recorded.

    Args:
        house: The broker.
        request: The signed request.
        principal: Its id.
        purpose: What it would say that it is for.
        after: The last artifact of the page before.
        limit: Artifacts that one page asks about, 1 to 1,000.

    Returns:
        ``principal``, ``artifacts`` (``artifact``, ``version``, ``action``, ``effect``, ``policies``, a row
        for each action that is not refused), ``asked`` and ``next_after``, null at the end.

    Raises:
        NotFound: There is no such principal.
        InvalidRequest: Another limit.
    """
    _check(ACTIONS[0], limit)
    auditing.authorize(house, request, "search", f"what-can {principal}")
    with house.ledger.view() as view:
        one = people.find_principal(view, principal)
        all_names = sorted(f"{row.collection}/{row.name}" for row in view.list(Artifact))
        page = [artifact for artifact in all_names if after is None or artifact > after][:limit]
        found = [row for artifact in page for row in _reach(house, view, one, artifact, purpose)]
    return {
        "principal": principal,
        "artifacts": found,
        "asked": len(page),
        "next_after": _next(page, all_names),
    }


def _reach(house: House, view: View, one: Principal, artifact: str, purpose: str) -> Iterable[Json]:
    collection, _, name = artifact.partition("/")
    row = lookup.resolve_version(view, collection, name, None)
    home = view.find(Collection, collection)
    # An artifact whose first upload was not committed has no version yet, and nothing to reach.
    if row is None or home is None:
        return
    target = lookup.version_target(home, row)
    for action in ACTIONS:
        answer = _answer(house, view, one, action, target, purpose)
        if answer is not None:
            yield {"artifact": artifact, "version": row.version, "action": action, **answer}


def _answer(
    house: House, view: View, one: Principal, action: str, target: policy.Target, purpose: str
) -> Json | None:
    decision = deciding.decide(house, view, one, action, target, purpose=purpose).decision
    if decision.effect == "deny":
        return None
    return {"effect": decision.effect, "policies": list(decision.policies)}


def _next(page: Sequence[str], everything: Sequence[str]) -> str | None:
    return page[-1] if page and page[-1] != everything[-1] else None


def _check(action: str, limit: int) -> None:
    if action not in ACTIONS:
        raise InvalidRequest(f"the action is one of {', '.join(ACTIONS)}")
    if not 1 <= limit <= limits.MAX_PAGE:
        raise InvalidRequest(f"limit is from 1 to {limits.MAX_PAGE}")
