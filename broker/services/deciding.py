"""Step 4: ask policy, on the same snapshot that everything else of the decision comes from."""

from __future__ import annotations

from dataclasses import dataclass

from broker.canonical import Json
from broker.errors import ApprovalNeeded, BrokerError, Denied, IntegrityFailure
from broker.model import ActiveBundle, BundleRow, Group, Principal
from broker.policy import request as ask
from broker.policy.bundle import parse_bundle
from broker.policy.engine import PolicyEngine
from broker.policy.entities import build_slice
from broker.policy.explain import explain_decision
from broker.ports import View
from broker.services.house import House


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A decision, why it came out so, what to do next, and the inputs that history replays it from."""

    decision: ask.PolicyDecision
    why: str
    next: str | None
    inputs: Json

    @property
    def allowed(self) -> bool:
        """Whether policy says yes."""
        return self.decision.effect == "allow"

    def refusal(self, what: str) -> BrokerError:
        """The error that tells the caller no."""
        if self.decision.effect == "needs-approval":
            return ApprovalNeeded(f"{what} needs an approval", why=self.why, next=self.next)
        return Denied(f"{what} is denied", why=self.why, next=self.next, policies=self.decision.policies)


def active_engine(house: House, view: View) -> PolicyEngine:
    """The engine of the bundle that is active in this snapshot.

    Raises:
        IntegrityFailure: There is none, or its text is not what its digest names: nothing is decided.
    """
    active = view.find(ActiveBundle, "active")
    if active is None:
        raise IntegrityFailure("no policy bundle is active", next="broker policy apply DIR")
    engine = house.engines.get(active.digest)
    if engine is None:
        row = view.find(BundleRow, active.digest)
        if row is None:
            raise IntegrityFailure("the active policy bundle is missing")
        bundle = parse_bundle(row.body)
        if bundle.digest != active.digest:
            raise IntegrityFailure("the active policy bundle is not what its digest names")
        engine = house.engines.setdefault(active.digest, PolicyEngine(bundle, stored=True))
    return engine


def decide(
    house: House,
    view: View,
    principal: Principal,
    action: str,
    target: ask.Target,
    *,
    purpose: str = "",
    network: str = "",
    asked_bytes: int = 0,
    mint: ask.Mint | None = None,
) -> Answer:
    """Policy's answer to one question. Never raises for a deny; raises only when it cannot decide.

    Raises:
        IntegrityFailure: The active bundle, or a row that the answer depends on, is not the broker's.
    """
    engine = active_engine(house, view)
    question = ask.collect_request(
        principal=principal,
        action=action,
        target=target,
        context=ask.Context(
            now=view.now,
            purpose=purpose,
            address=network or None,
            asked_bytes=asked_bytes,
            opened_bytes=view.meter(principal.id),
            incidents=0,
            approvals=(),
            mint=mint,
        ),
        find_group=lambda name: view.find(Group, name),
    )
    slice = build_slice(question)
    decision = engine.decide_slice(slice)
    told = explain_decision(decision, engine)
    return Answer(decision=decision, why=told.why, next=told.next, inputs=slice.as_json())
