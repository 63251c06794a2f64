"""What a fold says of rows, one rule at a time; whole logs are in tests/invariants/test_I19_fold.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.canonical import Json, format_time, sha256_digest
from broker.ledger.fold import Fold
from broker.model import ACTIVE, Enrolment, Group, Principal, Row, SubjectUse, Token

NOW = 1_000_000
LATER, PAST = format_time(NOW + 1), format_time(NOW)
PRINCIPAL: Json = {
    "type": "principal", "subject": "user:ana", "roles": ["engineer"], "groups": [], "disabled": False,
}  # fmt: skip
ANA = Principal(id="user:ana", roles=("engineer",), groups=(), disabled=False, created=1, entry=3)
TOKEN: Json = {
    "type": "token", "principal": "user:ana", "jkt": "k", "token": "t_1", "expires_at": LATER,
    "scope": sha256_digest(b"[]"), "issuer": "ci", "subject_digest": "sha256:00",
}  # fmt: skip
ROW = Token(
    id="t_1",
    principal="user:ana",
    jkt="k",
    limits="[]",
    chain=(),
    issued=1,
    expires=NOW + 1,
    status=ACTIVE,
    entry=0,
)
PIN = SubjectUse(digest="sha256:00", jkt="k", issuer="ci", principal="user:ana", expires=NOW + 1, entry=0)


def folded(*entries: tuple[int, Json]) -> Fold:
    fold = Fold(now=NOW)
    for index, entry in entries:
        fold.add(index, entry)
    return fold


def problem(fold: Fold, row: Row) -> str | None:
    found = fold.check(row)
    return None if found is None else found.problem


@pytest.mark.parametrize(("entry", "fits"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_row_is_of_an_entry_since_the_one_before_and_up_to_the_newest(entry: int, fits: bool) -> None:
    """A draft of several entries writes its rows with the index of the first."""
    fold = folded((1, PRINCIPAL), (3, PRINCIPAL))
    assert (fold.check(replace(ANA, entry=entry)) is None) == fits


@pytest.mark.parametrize("change", [{"roles": ("admin",)}, {"groups": ("nlp",)}, {"disabled": True}])
def test_a_row_says_what_its_entry_says(change: Json) -> None:
    fold = folded((3, PRINCIPAL))
    assert problem(fold, ANA) is None
    [name] = change
    assert problem(fold, replace(ANA, **change)) == f"{name}: not what entry 3 says"


@pytest.mark.parametrize(
    "change", [{"limits": '[{"x":1}]'}, {"jkt": "other"}, {"expires": NOW + 2}, {"status": "x"}]
)
def test_a_token_says_what_its_entry_says(change: Json) -> None:
    fold = folded((0, TOKEN))
    assert problem(fold, ROW) is None
    assert problem(fold, replace(ROW, **change)) is not None


def test_a_row_that_no_entry_speaks_of_is_found() -> None:
    assert problem(folded(), Group(name="nlp", entry=0)) == "no entry of the log is about this row"
    assert problem(folded(), ROW) == "no entry of the log is about this row"
    assert problem(folded(), replace(ROW, expires=NOW)) is None


def test_a_pin_may_be_gone_once_its_token_is_over_and_may_be_there_longer() -> None:
    live, over = folded((0, TOKEN)), folded((0, {**TOKEN, "expires_at": PAST}))
    assert {finding.row for finding in live.missing()} == {"Token", "SubjectUse"}
    assert list(over.missing()) == []
    assert problem(over, PIN) is None
    assert problem(over, replace(PIN, jkt="thief")) is not None


def test_a_new_code_ends_the_older_ones_of_that_principal_only() -> None:
    def code(id: str, principal: str) -> Json:
        return {"type": "enrolment-code", "subject": principal, "code": id, "expires_at": LATER}

    def row(id: str, principal: str, status: str, entry: int) -> Enrolment:
        return Enrolment(
            id=id, principal=principal, secret_hash=b"", expires=NOW + 1, status=status, entry=entry
        )

    fold = folded((0, code("a", "user:ana")), (1, code("b", "user:ben")), (2, code("c", "user:ana")))
    assert problem(fold, row("a", "user:ana", ACTIVE, 0)) is not None
    assert problem(fold, row("a", "user:ana", "superseded", 2)) is None
    assert problem(fold, row("b", "user:ben", ACTIVE, 1)) is None
    assert problem(fold, row("c", "user:ana", ACTIVE, 2)) is None
