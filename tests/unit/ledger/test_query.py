"""Ledger queries: what parses, what is refused with a reason, and what matches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker import limits
from broker.errors import InvalidRequest, TooLarge
from broker.ledger.entry import index_row, parse_entry
from broker.ledger.query import FIELDS, matches, parse_query, parse_when, search_row
from broker.model import IndexRow, Query
from tests.unit.ledger.samples import JKT, NOW, sample

HOUR = 3_600_000
ROW = index_row(parse_entry(sample("grant")))


def parse(text: str) -> Query:
    return parse_query(text, now=NOW)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", Query()),
        ("   ", Query()),
        ("actor:ana", Query(principal="user:ana")),
        ("actor:user:ana", Query(principal="user:ana")),
        ("actor:workload:github/acme/train", Query(principal="workload:github/acme/train")),
        ("artifact:acme/llama-7b", Query(artifact="acme/llama-7b")),
        ("artifact:acme/llama-7b@step-1000", Query(artifact="acme/llama-7b", version="step-1000")),
        ("version:v1 action:read grant:g_1", Query(version="v1", action="read", grant="g_1")),
        ("decision:needs-approval", Query(decision="needs-approval")),
        ("type:lease", Query(type="lease")),
        (f"key:{JKT}", Query(jkt=JKT)),
        ('purpose:"night run"', Query(purpose="night run")),
        ("since:24h", Query(since=NOW - 24 * HOUR)),
        ("since:7d until:30m", Query(since=NOW - 168 * HOUR, until=NOW - HOUR // 2)),
        ("until:2025-01-31T12:00:00Z", Query(until=1_738_324_800_000)),
        ("llama", Query(text=("llama",))),
        ('"free text" more', Query(text=("free text", "more"))),
        (r'"say \"hi\" \\ bye"', Query(text=(r'say "hi" \ bye',))),
        ('"user:ana"', Query(text=("user:ana",))),
        ("100% _ ' ; --", Query(text=("100%", "_", "'", ";", "--"))),
        (
            'actor:ana artifact:acme/llama-7b decision:deny type:lease since:24h "free text"',
            Query(
                principal="user:ana",
                artifact="acme/llama-7b",
                decision="deny",
                type="lease",
                since=NOW - 24 * HOUR,
                text=("free text",),
            ),
        ),
    ],
)
def test_a_query_parses(text, query):
    assert parse(text) == query


@pytest.mark.parametrize(
    "text",
    [
        "user:ana",
        "Actor:ana",
        "sha256:00",
        "12:30",
        "actor:",
        'actor:""',
        '""',
        '"open',
        'a"b',
        '"a"b',
        'actor:"a"b',
        r'"bad \escape"',
        "actor:a;b",
        "actor:'",
        "actor:ana actor:bob",
        "artifact:a/b@v1 version:v2",
        "decision:maybe",
        "type:gift",
        "key:short",
        "since:24",
        "since:0h",
        "since:1y",
        "since:yesterday",
        "since:2025-02-30",
        "since:2025-01-01T00:00:00",
        "since:2025-01-01T00:00:00+25:00",
        "since:1960-01-01",
        "since:99999w",
        "since:1h until:2h",
        "a\nb",
        "a\x00b",
        "a\u202eb",
        "\ud800",
    ],
)
def test_a_query_that_says_something_else_is_refused(text):
    with pytest.raises(InvalidRequest):
        parse(text)


def test_an_unknown_field_is_answered_with_the_known_ones():
    with pytest.raises(InvalidRequest) as caught:
        parse("who:ana")
    assert all(field in (caught.value.why or "") for field in FIELDS)


def test_limits():
    parse("x" * limits.MAX_QUERY)
    parse("x " * limits.MAX_QUERY_TERMS)
    with pytest.raises(TooLarge):
        parse("x" * (limits.MAX_QUERY + 1))
    with pytest.raises(TooLarge):
        parse("x " * (limits.MAX_QUERY_TERMS + 1))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - 90_000),
        ("2w", NOW - 14 * 24 * HOUR),
        ("1970-01-01", 0),
        ("2025-01-31", 1_738_281_600_000),
        ("2025-01-31T12:00:00.123Z", 1_738_324_800_123),
        ("2025-01-31T12:00:00.123456Z", 1_738_324_800_123),
        ("2025-01-31T13:00:00+01:00", 1_738_324_800_000),
    ],
)
def test_moments(text, moment):
    assert parse_when(text, now=NOW) == moment


# -- meaning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "actor:ana artifact:nlp/minilm version:v1 decision:allow type:grant action:read grant:g_1",
        f"key:{JKT} purpose:evaluation",
        "nlp/mini",
        "READERS-by",
        '"user:ana" evalu GROUP',
    ],
)
def test_a_row_that_matches(text):
    assert matches(parse(text), ROW)


@pytest.mark.parametrize(
    "text",
    [
        "actor:an",
        "artifact:nlp/mini",
        "artifact:NLP/MINILM",
        "version:v2",
        "decision:deny",
        "type:lease",
        "action:publish",
        "grant:g_2",
        "purpose:eval",
        "nlp other",
        "g_1",
        "%",
        "nlp_minilm",
        "readers-by-groupuser",
    ],
)
def test_a_row_that_does_not_match(text):
    assert not matches(parse(text), ROW)


def test_since_is_included_and_until_is_not():
    assert matches(Query(since=NOW), ROW)
    assert not matches(Query(since=NOW + 1), ROW)
    assert not matches(Query(until=NOW), ROW)
    assert matches(Query(until=NOW + 1), ROW)


def test_an_absent_column_matches_no_value():
    empty = IndexRow(time=NOW, type="abandon")
    assert matches(Query(), empty)
    for name in ("principal", "artifact", "version", "decision", "action", "grant", "jkt", "purpose"):
        assert not matches(replace(Query(), **{name: "None"}), empty)
    assert not matches(Query(text=("none",)), empty)


def test_a_search_row_always_has_all_members():
    assert search_row(7, ROW) == {
        "index": 7,
        "time": "2025-10-09T08:53:20.123Z",
        "type": "grant",
        "principal": "user:ana",
        "action": "read",
        "artifact": "nlp/minilm",
        "version": "v1",
        "decision": "allow",
        "policies": ["readers-by-group"],
        "bytes": 91_650_000,
        "grant": "g_1",
        "purpose": "evaluation",
    }
    row = search_row(8, IndexRow(time=NOW, type="abandon"))
    assert row.keys() == search_row(7, ROW).keys()
    assert row["policies"] == []
    assert row["principal"] is None
