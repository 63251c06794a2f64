from __future__ import annotations

import pytest

from broker import limits
from broker.errors import InvalidRequest, TooLarge
from broker.policy.cases import parse_policy_tests, run_policy_tests
from broker.policy.engine import PolicyEngine
from broker.policy.request import VersionTarget

FACTS = """
[groups]
nlp = []
[principals.ana]
roles = ["engineer"]
groups = ["nlp"]
[collections.nlp]
readers = ["nlp"]
"""
CASE = """
[[case]]
name = "reads"
principal = "ana"
action = "read"
resource = "version:nlp/minilm@v1"
expect = "allow"
"""


def test_a_case_passes_or_fails_with_both_answers(engine: PolicyEngine) -> None:
    wrong = CASE.replace('"allow"', '"deny"\npolicies = ["unknown-tier"]')
    good, bad = run_policy_tests(engine, {"t.toml": (FACTS + CASE + wrong).encode()})
    assert (good.file, good.name, good.passed, good.expected) == ("t.toml", "reads", True, "allow")
    assert good.got == "allow by readers-by-group"
    assert (bad.passed, bad.expected) == (False, "deny by unknown-tier")
    assert bad.got == "allow by readers-by-group"


def test_other_policies_than_expected_are_a_failure(engine: PolicyEngine) -> None:
    text = FACTS + CASE + 'policies = ["another"]\n'
    assert [result.passed for result in run_policy_tests(engine, {"t.toml": text.encode()})] == [False]


def test_files_are_asked_by_name_and_cases_in_order(engine: PolicyEngine) -> None:
    second = CASE.replace('"reads"', '"again"')
    files = {"b.toml": (FACTS + CASE).encode(), "a.toml": (FACTS + CASE + second).encode()}
    asked = [(result.file, result.name) for result in run_policy_tests(engine, files)]
    assert asked == [("a.toml", "reads"), ("a.toml", "again"), ("b.toml", "reads")]


def test_a_case_says_the_whole_context() -> None:
    row = 'context = { time = "2026-01-02T03:04:05.006Z", purpose = "p", address = "::1", asked = 1, '
    row += 'opened = 2, incidents = 3, approvals = ["user:bob"] }\n'
    labels = 'labels = { tier = "critical", team = "x" }\nkind = "dataset"\n'
    (case,) = parse_policy_tests((FACTS + CASE + row + labels).encode(), "t.toml")
    context = case.request.context
    assert (context.purpose, context.address, context.approvals) == ("p", "::1", ("user:bob",))
    assert (context.asked_bytes, context.opened_bytes, context.incidents) == (1, 2, 3)
    assert isinstance(case.request.target, VersionTarget)
    assert (case.request.target.kind, case.request.target.labels["team"]) == ("dataset", "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        FACTS,
        "not toml [",
        FACTS + CASE + "extra = 1\n",
        FACTS + CASE + "[other]\n",
        FACTS + CASE.replace('"allow"', '"yes"'),
        FACTS + CASE.replace('principal = "ana"', 'principal = "bob"'),
        FACTS + CASE.replace('principal = "ana"', ""),
        FACTS + CASE.replace("version:nlp/minilm@v1", "nlp/minilm@v1"),
        FACTS + CASE.replace("minilm@v1", "minilm"),
        FACTS + CASE.replace("minilm@v1", "minilm@v1/path"),
        FACTS + CASE.replace("nlp/minilm@v1", "NLP/minilm@v1"),
        FACTS + CASE.replace("version:nlp/minilm@v1", "grant:g_1"),
        FACTS + CASE + 'policies = "readers-by-group"\n',
        FACTS + CASE + 'context = { clock = "x" }\n',
        FACTS + CASE + 'context = { time = "now" }\n',
        FACTS.replace('["engineer"]', '"engineer"') + CASE,
        FACTS.replace("nlp = []", 'nlp = "company"') + CASE,
        FACTS.replace("readers =", "reader =") + CASE,
        FACTS + "[principals.eve]\nrole = []\n" + CASE,
        "case = 1",
        "x = " + "[" * 5000,
    ],
)
def test_another_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_policy_tests(text.encode(), "t.toml")


def test_a_test_file_is_limited() -> None:
    whole = (FACTS + CASE).encode()
    full = whole + b"#" * (limits.MAX_POLICY_TEXT - len(whole))
    assert len(parse_policy_tests(full, "t.toml")) == 1
    with pytest.raises(TooLarge):
        parse_policy_tests(full + b"#", "t.toml")


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        parse_policy_tests(b"\xff", "t.toml")
