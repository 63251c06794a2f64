"""Tests of policies, written as a table beside them: who, which act, on what, and what must come out.

A test file is TOML: facts first (``[groups]``, ``[principals]``, ``[collections]``), then one
``[[case]]`` for each question. ``docs/policy.md`` has the format.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker import limits, names
from broker.canonical import parse_time
from broker.errors import BrokerError, InvalidRequest, TooLarge
from broker.model import Collection, Group, Principal
from broker.policy.engine import PolicyEngine
from broker.policy.request import (
    Actor,
    AdministrationTarget,
    ArtifactTarget,
    CollectionTarget,
    Context,
    GrantTarget,
    LedgerTarget,
    Mint,
    PolicyRequest,
    Target,
    TokenTarget,
    VersionTarget,
    collect_request,
    new_collection,
)

_FACTS: Final = {"groups", "principals", "collections", "case"}
_CASE: Final = {
    "name",
    "principal",
    "action",
    "resource",
    "kind",
    "labels",
    "owner",
    "context",
    "expect",
    "policies",
}
_PRINCIPAL: Final = {"roles", "groups", "disabled", "attributes"}
_COLLECTION: Final = {"readers", "publishers"}
_CONTEXT: Final = {"time", "purpose", "address", "asked", "opened", "incidents", "approvals", "mint"}
_MINT: Final = {"own_key", "ttl", "max_bytes", "types", "actions", "identifiers"}


@dataclass(frozen=True, kw_only=True)
class PolicyCase:
    """One question and the answer that it must get. ``policies`` None: whichever determine it."""

    name: str
    request: PolicyRequest
    expect: str
    policies: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class PolicyTestResult:
    """What became of one case."""

    file: str
    name: str
    passed: bool
    expected: str
    got: str
    policies: tuple[str, ...]
    """What determined the answer that came."""


def run_policy_tests(engine: PolicyEngine, files: Mapping[str, bytes]) -> list[PolicyTestResult]:
    """Ask the engine every case of the test files, by name of file and in their order there.

    Raises:
        InvalidRequest: A file is not a test file, or holds no case.
        TooLarge: A file is longer than ``limits.MAX_POLICY_TEXT``.
    """
    return [
        _run(engine, name, case) for name in sorted(files) for case in parse_policy_tests(files[name], name)
    ]


def _run(engine: PolicyEngine, file: str, case: PolicyCase) -> PolicyTestResult:
    decision = engine.decide(case.request)
    wanted = case.policies is None or case.policies == decision.policies
    return PolicyTestResult(
        file=file,
        name=case.name,
        passed=decision.effect == case.expect and wanted,
        expected=_show(case.expect, case.policies),
        got=_show(decision.effect, decision.policies),
        policies=decision.policies,
    )


def _show(effect: str, policies: tuple[str, ...] | None) -> str:
    return effect if policies is None else f"{effect} by {', '.join(policies) or 'nothing'}"


def parse_policy_tests(data: bytes, file: str) -> tuple[PolicyCase, ...]:
    """The cases of one test file.

    Raises:
        InvalidRequest: Not TOML of that shape, an unknown member, a name that is not one, no case.
        TooLarge: Longer than ``limits.MAX_POLICY_TEXT``.
    """
    if len(data) > limits.MAX_POLICY_TEXT:
        raise TooLarge(f"{file} is longer than {limits.MAX_POLICY_TEXT} bytes")
    try:
        facts = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as exc:
        raise InvalidRequest(f"{file} is not TOML", why=str(exc)[:200]) from exc
    try:
        world = _parse_world(facts)
        cases = tuple(world.parse_case(case) for case in facts.get("case", []))
    except (BrokerError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidRequest(f"{file} is not a policy test file", why=str(exc)[:200]) from exc
    if not cases:
        raise InvalidRequest(f"{file} holds no case")
    return cases


@dataclass(frozen=True, kw_only=True)
class _World:
    groups: Mapping[str, Group]
    principals: Mapping[str, Principal]
    collections: Mapping[str, Collection]

    def parse_case(self, case: Mapping[str, Any]) -> PolicyCase:
        _only(case, _CASE)
        if case["expect"] not in ("allow", "deny", "needs-approval"):
            raise ValueError("expect is allow, deny or needs-approval")
        request = collect_request(
            principal=self.principals[names.parse_principal(case["principal"])],
            action=case["action"],
            target=self.parse_target(case),
            context=_parse_context(case.get("context", {})),
            find_group=self.groups.get,
        )
        policies = tuple(sorted(_texts(case["policies"]))) if "policies" in case else None
        return PolicyCase(name=case["name"], request=request, expect=case["expect"], policies=policies)

    def parse_target(self, case: Mapping[str, Any]) -> Target:
        what, _, id = case["resource"].partition(":")
        match what:
            case "collection":
                return CollectionTarget(collection=self.collection(id))
            case "artifact":
                collection, name = names.parse_artifact(id)
                return ArtifactTarget(
                    collection=self.collection(collection), name=name, kind=case.get("kind", "checkpoint")
                )
            case "version":
                return self.parse_version(case, id)
            case "ledger":
                return LedgerTarget()
            case "administration":
                return AdministrationTarget(area=id)
            case "grant":
                return GrantTarget(id=id, owner=names.parse_principal(case["owner"]))
            case "token":
                return TokenTarget(id=id, owner=names.parse_principal(case["owner"]))
        raise ValueError(
            "resource is collection:, artifact:, version:, ledger:, administration:, grant:, token:"
        )

    def parse_version(self, case: Mapping[str, Any], id: str) -> VersionTarget:
        ref = names.parse_ref(id)
        if ref.version is None or ref.path is not None:
            raise ValueError("a version is version:collection/name@version")
        return VersionTarget(
            collection=self.collection(ref.collection),
            name=ref.name,
            version=ref.version,
            kind=case.get("kind", "checkpoint"),
            labels=case.get("labels", {"tier": "standard"}),
        )

    def collection(self, name: str) -> Collection:
        """A collection of the file, or the one that a first publish would make."""
        return self.collections.get(name) or new_collection(names.parse_part(name, "collection"))


def _parse_world(facts: Mapping[str, Any]) -> _World:
    _only(facts, _FACTS)
    return _World(
        groups={
            name: Group(name=names.parse_group(name), parents=_texts(parents))
            for name, parents in facts.get("groups", {}).items()
        },
        principals={
            id: _parse_principal(id, row)
            for id, row in ((names.parse_principal(k), v) for k, v in facts.get("principals", {}).items())
        },
        collections={
            name: _parse_collection(name, row) for name, row in facts.get("collections", {}).items()
        },
    )


def _parse_principal(id: str, row: Mapping[str, Any]) -> Principal:
    _only(row, _PRINCIPAL)
    return Actor(
        id=id,
        roles=_texts(row.get("roles", [])),
        groups=_texts(row.get("groups", [])),
        disabled=row.get("disabled", False),
        created=0,
        attributes=dict(row.get("attributes", {})),
    )


def _parse_collection(name: str, row: Mapping[str, Any]) -> Collection:
    _only(row, _COLLECTION)
    return Collection(
        name=names.parse_part(name, "collection"),
        readers=_texts(row.get("readers", [])),
        publishers=_texts(row.get("publishers", [])),
    )


def _parse_context(row: Mapping[str, Any]) -> Context:
    _only(row, _CONTEXT)
    return Context(
        now=parse_time(row.get("time", "2030-01-01T12:00:00.000Z")),
        purpose=row.get("purpose", ""),
        address=row.get("address"),
        asked_bytes=row.get("asked", 0),
        opened_bytes=row.get("opened", 0),
        incidents=row.get("incidents", 0),
        approvals=_texts(row.get("approvals", [])),
        mint=_parse_mint(row["mint"]) if "mint" in row else None,
    )


def _parse_mint(row: Mapping[str, Any]) -> Mint:
    _only(row, _MINT)
    return Mint(
        own_key=row.get("own_key", True),
        ttl=row.get("ttl", limits.ACCESS_TOKEN_TTL),
        max_bytes=row.get("max_bytes", 0),
        types=_texts(row.get("types", ["artifact_access"])),
        actions=_texts(row.get("actions", ["read"])),
        identifiers=_texts(row.get("identifiers", ["*"])),
    )


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of texts is expected")
    return tuple(value)


def _only(row: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(row) - known):
        raise ValueError(f"unknown member {unknown[0][:80]!a}")
