"""A decision in words: the "why" and "next" lines of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.policy.bundle import FOLDER
from broker.policy.engine import PolicyEngine
from broker.policy.request import PolicyDecision, Reason

_WHY: Final[dict[Reason, str]] = {
    "permitted": "permitted",
    "forbidden": "forbidden",
    "not-permitted": "no policy permits it",
    "incomplete": "what policy would need to know is not complete",
    "unfit": "the request does not fit the policy schema",
    "error": "a policy failed, and a policy that fails permits nothing",
}
_NEXT: Final[dict[Reason, str | None]] = {
    "permitted": None,
    "forbidden": "ask an administrator of the broker",
    "not-permitted": "see your roles and groups with: broker whoami",
    "incomplete": "ask an administrator of the broker: a group or an entity is missing",
    "unfit": "ask an administrator of the broker",
    "error": "ask an administrator of the broker",
}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One line each; ``next`` is None when there is nothing to do."""

    why: str
    next: str | None


def explain_decision(decision: PolicyDecision, engine: PolicyEngine) -> Explanation:
    """Which policies determined the decision, where they stand, and what the caller can do.

    Args:
        decision: A decision, of this engine's bundle for file names to be found.
        engine: Knows where each policy stands and what its author advises (``@next``).
    """
    found = [engine.find_policy(id) for id in decision.policies]
    advice = [info.next for info in found if info and info.next]
    named = [
        f'policy "{id}" ({FOLDER}/{info.file})' if info else f'policy "{id}"'
        for id, info in zip(decision.policies, found, strict=True)
    ]
    return Explanation(
        why=", ".join(named) or _WHY[decision.reason],
        next=advice[0] if advice and decision.effect != "allow" else _NEXT[decision.reason],
    )
