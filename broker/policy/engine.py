"""The decision: Cedar's answer, believed only when nothing is missing and nothing went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import cedarpy

from broker.errors import InvalidRequest
from broker.model import ROLES, Collection, Group, Principal
from broker.policy.bundle import Bundle, PolicyInfo, compile_bundle
from broker.policy.entities import Slice, build_slice, find_gap
from broker.policy.request import (
    AREAS,
    Actor,
    AdministrationTarget,
    ArtifactTarget,
    CollectionTarget,
    Context,
    GrantTarget,
    LedgerTarget,
    Mint,
    PolicyDecision,
    PolicyRequest,
    Reason,
    Target,
    TokenTarget,
    VersionTarget,
    target_collection,
)

_MOST_PARSED: Final = 1024
_LARGEST_PARSED: Final = 16 * 1024
"""Sets of entities that are kept parsed, and the characters that one of them may have."""


class PolicyEngine:
    """Decides by one bundle, which it keeps parsed; may be shared between threads.

    Args:
        bundle: What decides. Text that comes from outside goes through
            :mod:`broker.policy.sandbox` in a capped child process first.
        stored: The bundle was applied before, maybe by an older release: its schema may lack the words
            that came since, and what it does not know is denied. A new bundle has to know them all.

    Raises:
        InvalidRequest: The bundle is not valid (see :func:`broker.policy.bundle.compile_bundle`), or
            its schema does not know what the broker asks.
    """

    def __init__(self, bundle: Bundle, *, stored: bool = False) -> None:
        self._compiled = compile_bundle(bundle)
        self._entities: dict[str, cedarpy.Entities] = {}
        self._check_schema(_samples() if stored else [*_samples(), *_newer_samples()])

    @property
    def bundle(self) -> Bundle:
        """The bundle that decides."""
        return self._compiled.bundle

    @property
    def policies(self) -> tuple[PolicyInfo, ...]:
        """Every policy, sorted by ``@id``."""
        return tuple(info for _, info in sorted(self._compiled.catalogue.items()))

    def find_policy(self, id: str) -> PolicyInfo | None:
        """The policy with that ``@id``, or None."""
        return self._compiled.catalogue.get(id)

    def decide(self, request: PolicyRequest) -> PolicyDecision:
        """Whether the request may be. Total: whatever goes wrong is a deny (I13).

        The same request and the same bundle always get the same answer; about 0.2 ms.
        """
        try:
            slice = build_slice(request)
        except (ValueError, TypeError, AttributeError) as exc:
            return self._deny("unfit", detail=type(exc).__name__)
        return self.decide_slice(slice)

    def decide_slice(self, slice: Slice) -> PolicyDecision:
        """The decision on a slice that was built, or kept as evidence, before. Total, as :meth:`decide`."""
        try:
            gap = find_gap(slice)
            if gap is not None:
                return self._deny("incomplete", detail=gap)
            answer = self._ask(slice)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # a panic of the native library is not an Exception
            return self._deny("error", detail=type(exc).__name__)
        return self._judge(answer)

    def _ask(self, slice: Slice) -> cedarpy.AuthzResult:
        inputs = slice.as_json()
        entities = self._parse(inputs.pop("entities"))
        return cedarpy.is_authorized(inputs, self._compiled.policies, entities, self._compiled.schema)

    def _parse(self, entities: list[Any]) -> cedarpy.Entities | list[Any]:
        """The entities, parsed once for each text: the very same entities always come to the same."""
        text = json.dumps(entities)
        known = self._entities.get(text)
        if known is None:
            try:
                known = cedarpy.Entities.from_json_str(text, self._compiled.schema)
            except ValueError:
                # The answer to the question says then what does not fit.
                return entities
            if len(self._entities) >= _MOST_PARSED:
                self._entities.clear()
            if len(text) <= _LARGEST_PARSED:
                self._entities[text] = known
        return known

    def _judge(self, answer: cedarpy.AuthzResult) -> PolicyDecision:
        diagnostics = answer.diagnostics
        policies = tuple(sorted(diagnostics.id_annotations_by_reason.values()))
        if answer.decision is cedarpy.Decision.NoDecision:
            return self._deny("unfit", detail=_first(diagnostics.errors))
        if answer.decision is cedarpy.Decision.Deny and policies:
            return self._deny("forbidden", policies)
        # Cedar skips a policy that errs, and a forbid that was skipped forbids nothing.
        if diagnostics.errors:
            return self._deny("error", detail=_first(diagnostics.errors))
        if answer.decision is not cedarpy.Decision.Allow or not policies:
            return self._deny("not-permitted")
        return PolicyDecision(
            effect="allow", policies=policies, bundle=self.bundle.digest, reason="permitted"
        )

    def _deny(self, reason: Reason, policies: tuple[str, ...] = (), *, detail: str = "") -> PolicyDecision:
        return PolicyDecision(
            effect="deny", policies=policies, bundle=self.bundle.digest, reason=reason, detail=detail
        )

    def _check_schema(self, samples: list[PolicyRequest]) -> None:
        # A schema that lacks a word which the broker uses would turn every such request into a deny:
        # better found when a bundle is made than when nobody can administer any more.
        for request in samples:
            decision = self.decide(request)
            if decision.reason == "unfit":
                raise InvalidRequest(
                    f"the schema does not fit what the broker asks: {request.action}", why=decision.detail
                )


_MAX_DETAIL: Final = 300


def _first(errors: list[str]) -> str:
    """Cedar's own words, without the entities that it may quote on further lines."""
    lines = errors[0].splitlines() if errors else [""]
    shown = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1].rpartition(']:')[2].strip()}"
    return "".join(ch if ch.isprintable() else "?" for ch in shown[:_MAX_DETAIL])


_COLLECTION: Final = Collection(name="sample", readers=("sample",), publishers=("sample",))
_ARTIFACT: Final = ArtifactTarget(collection=_COLLECTION, name="sample", kind="checkpoint")
_VERSION: Final = VersionTarget(
    collection=_COLLECTION, name="sample", version="v1", kind="dataset", labels={"tier": "standard"}
)
_TARGETS: Final[dict[str, tuple[Target, ...]]] = {
    "describe": (CollectionTarget(collection=_COLLECTION), _ARTIFACT, _VERSION),
    "read": (_VERSION,),
    "publish": (_VERSION,),
    "create-collection": (CollectionTarget(collection=_COLLECTION),),
    "audit": (LedgerTarget(),),
    "administer": tuple(AdministrationTarget(area=area) for area in AREAS),
    "revoke-own": (GrantTarget(id="g_sample", owner="user:sample"), TokenTarget(id="t_sample", owner="")),
}
_CONTEXT: Final = Context(
    now=0, purpose="", address="::1", asked_bytes=0, opened_bytes=0, incidents=0, approvals=("user:b",)
)


def _samples() -> list[PolicyRequest]:
    """One request of every form that the broker has put together since its first release."""
    return [
        _sample(_sample_principal(id), action, target)
        for id in ("user:sample", "workload:sample")
        for action in _TARGETS
        for target in _TARGETS[action]
    ]


def _newer_samples() -> list[PolicyRequest]:
    """One request of every form that came later: ``mint``, and workloads with tags."""
    mint = Mint(own_key=True, ttl=1, max_bytes=0, types=("t",), actions=("a",), identifiers=("*",))
    target = TokenTarget(id="t_sample", owner="user:sample")
    minting = [
        _sample(_sample_principal(id), "mint", target, mint) for id in ("user:sample", "workload:sample")
    ]
    return [*minting, _sample(_sample_actor(), "read", _VERSION)]


def _sample(principal: Principal, action: str, target: Target, mint: Mint | None = None) -> PolicyRequest:
    group = Group(name="sample", parents=())
    return PolicyRequest(
        principal=principal,
        memberships=(group,),
        action=action,
        target=target,
        audience=(group,) if target_collection(target) is not None else (),
        context=replace(_CONTEXT, mint=mint),
    )


def _sample_principal(id: str) -> Principal:
    return Principal(id=id, roles=ROLES, groups=("sample",), disabled=False, created=0)


def _sample_actor() -> Actor:
    row = _sample_principal("workload:sample")
    return Actor(
        id=row.id,
        roles=row.roles,
        groups=row.groups,
        disabled=False,
        created=0,
        attributes={"issuer": "sample"},
    )
