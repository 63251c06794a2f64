"""The default set, by its own table, and that the table leaves no policy and no word untested."""

from __future__ import annotations

from pathlib import Path

import cedarpy
import pytest

from broker.policy import request
from broker.policy.bundle import Bundle
from broker.policy.cases import parse_policy_tests, run_policy_tests
from broker.policy.engine import PolicyEngine

ROOT = Path(__file__).parents[3]
TESTS = {path.name: path.read_bytes() for path in sorted((ROOT / "policies" / "tests").glob("*.toml"))}


def test_every_case_of_the_table_holds(engine: PolicyEngine) -> None:
    results = run_policy_tests(engine, TESTS)
    assert len(results) > 40
    assert [result for result in results if not result.passed] == []


def test_every_policy_determines_some_case_and_every_action_is_asked(engine: PolicyEngine) -> None:
    determined = {id for result in run_policy_tests(engine, TESTS) for id in result.policies}
    assert determined == {policy.id for policy in engine.policies}
    asked = {case.request.action for file in TESTS for case in parse_policy_tests(TESTS[file], file)}
    assert asked >= set(request.ACTIONS)


@pytest.mark.parametrize(
    "gone", ["collections.cedar", "principals.cedar", "roles.cedar", "tiers.cedar", "tokens.cedar"]
)
def test_the_table_notices_when_a_policy_is_gone(default_files: dict[str, bytes], gone: str) -> None:
    from broker.policy.bundle import build_bundle

    rest = {name: text for name, text in default_files.items() if name != gone}
    results = run_policy_tests(PolicyEngine(build_bundle(rest)), TESTS)
    assert any(not result.passed for result in results)


def test_the_default_set_is_formatted(default_bundle: Bundle) -> None:
    for name in default_bundle.policy_files:
        text = default_bundle.files[name]
        assert cedarpy.format_policies(text, 80, 2).rstrip("\n") + "\n" == text, name


def test_every_forbid_of_the_default_set_rests_on_a_positive_fact(default_bundle: Bundle) -> None:
    import json

    for name in default_bundle.policy_files:
        parsed = json.loads(cedarpy.policies_to_json_str(default_bundle.files[name]))
        for policy in parsed["staticPolicies"].values():
            if policy["effect"] == "forbid":
                assert [clause["kind"] for clause in policy["conditions"]] == ["unless"]


def test_the_document_names_every_policy_action_area_and_entity(engine: PolicyEngine) -> None:
    text = (ROOT / "docs" / "policy.md").read_text()
    words = [policy.id for policy in engine.policies] + list(request.ACTIONS) + list(request.AREAS)
    words += ["Broker::User", "Broker::Workload", "Broker::Group", "Broker::Role", "Broker::Collection"]
    words += ["Broker::Artifact", "Broker::Version", "Broker::Ledger", "Broker::Administration"]
    words += ["Broker::Grant", "Broker::Token"]
    assert [word for word in words if f"`{word}`" not in text] == []
