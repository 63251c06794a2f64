"""Entries: one canonical form, a closed vocabulary, and search columns that follow from them."""

from __future__ import annotations

import hashlib
import json

import pytest
import rfc8785

from broker import limits
from broker.canonical import b64url, parse_time
from broker.errors import IntegrityFailure, InternalError, InvalidRequest, TooLarge
from broker.ledger.entry import (
    TYPES,
    build_entry,
    cut_name,
    evidence_commitment,
    index_row,
    parse_entry,
    record_digest,
)
from broker.ledger.members import COMMON, MAX_COUNTERS, MEMBERS
from broker.model import IndexRow
from tests.unit.ledger.samples import JKT, JWK, NOW, SAMPLES, digest, sample


def test_there_is_a_sample_of_every_type():
    assert set(SAMPLES) == set(TYPES)


def test_every_member_of_every_type_has_a_rule():
    named = set(COMMON).union(*(rule.required | rule.optional for rule in TYPES.values()))
    assert named | {"schema", "salt", "time"} == set(MEMBERS)


@pytest.mark.parametrize("type", TYPES)
def test_an_entry_reads_back_as_what_was_written(type):
    data = sample(type)
    entry = parse_entry(data)
    assert entry.pop("schema") == "broker/entry/v1"
    assert len(entry.pop("salt")) == 22
    assert parse_time(entry.pop("time")) == NOW
    assert entry.pop("type") == type
    assert entry == SAMPLES[type]
    assert rfc8785.dumps(json.loads(data)) == data


@pytest.mark.parametrize("type", TYPES)
def test_a_required_member_cannot_be_left_out(type):
    for name in TYPES[type].required:
        with pytest.raises(InvalidRequest, match=name):
            sample(type, **{name: None})
        entry = json.loads(sample(type))
        del entry[name]
        with pytest.raises(IntegrityFailure):
            parse_entry(rfc8785.dumps(entry))


@pytest.mark.parametrize("type", TYPES)
def test_an_unknown_member_is_refused_and_not_repeated_in_the_error(type):
    with pytest.raises(InvalidRequest) as caught:
        sample(type, s3cret=1)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(IntegrityFailure):
        parse_entry(rfc8785.dumps({**json.loads(sample(type)), "s3cret": 1}))


def test_a_member_of_another_type_is_refused():
    with pytest.raises(InvalidRequest, match="wrap"):
        sample("grant", wrap=digest("wrap"))


@pytest.mark.parametrize("name", ["schema", "salt", "time", "type"])
def test_the_members_that_every_entry_has(name):
    entry = json.loads(sample("grant"))
    del entry[name]
    with pytest.raises(IntegrityFailure):
        parse_entry(rfc8785.dumps(entry))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 60_000,
        sample("grant") + b"\n",
        sample("grant").replace(b'":"', b'": "', 1),
        sample("grant").replace(b'"bytes":91650000', b'"bytes":9.165e7'),
        sample("grant").replace(b'"bytes":91650000', b'"bytes":1,"bytes":91650000'),
        sample("grant").replace(b"entry/v1", b"entry/v2"),
        sample("grant").replace(b'"grant","version"', b'"gift","version"'),
        sample("grant").replace(b"evaluation", b"evalu\\u0061tion"),
        sample("grant").replace(b"evaluation", b"evalu\xc3"),
    ],
)
def test_bytes_of_another_form_are_not_an_entry(data):
    with pytest.raises(IntegrityFailure):
        parse_entry(data)


WRONG = {
    "principal": ["ana", "root:ana", "user:a b", "user:..", 7, ""],
    "jkt": ["short", JKT + "=", JKT[:-1] + "5", 7],
    "token": ["", "a b", "t\n", "x" * 129, "_t"],
    "request_id": ["", "a b", "x" * 129],
    "action": ["", "re ad", 1],
    "artifact": ["", "x" * 257, "a\nb", "a\u202eb", "a\ud800", 7],
    "version": ["", "x" * 257, "a\x00"],
    "manifest": ["sha256:00", "md5:" + "0" * 64, digest("x").upper()],
    "selection": [
        {},
        {"digest": digest("x"), "files": 1},
        {"digest": digest("x"), "files": -1, "extents": 0},
        {"digest": digest("x"), "files": 1, "extents": 1, "paths": []},
        [],
    ],
    "bytes": [-1, 2**53, True, "1", 1.5],
    "purpose": ["", "x" * (limits.MAX_PURPOSE + 1), "a\tb"],
    "recipient": ["x", 1],
    "decision": [
        {"effect": "maybe", "policies": []},
        {"effect": "allow"},
        {"effect": "allow", "policies": ["a", "a"]},
        {"effect": "allow", "policies": [1]},
        {"effect": "allow", "policies": [[]]},
        {"effect": "allow", "policies": [], "bundle": "x"},
        {"effect": "allow", "policies": [], "why": "x"},
        {"effect": "deny", "policies": []},
    ],
    "grant": ["", "g 1"],
    "lease": [-1, "0"],
    "expires_at": ["2025-01-01", "2025-13-01T00:00:00.000Z", 7],
    "evidence": ["", "sha256:"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_common_member_against_its_rule_is_refused_and_not_echoed(name):
    for value in WRONG[name]:
        with pytest.raises(InvalidRequest) as caught:
            sample("grant", **{name: value})
        if isinstance(value, str) and len(value) > 100:
            assert value not in f"{caught.value} {caught.value.why}"


@pytest.mark.parametrize(
    ("type", "changes"),
    [
        ("genesis", {"origin": "another.example"}),
        ("genesis", {"vkey": "x"}),
        ("genesis", {"origin": "a b"}),
        ("genesis", {"mode": "test"}),
        ("enrolment", {"key": {"jwk": JWK, "jkt": b64url(bytes(32))}}),
        ("enrolment", {"key": {"jwk": {**JWK, "d": JWK["x"]}, "jkt": JKT}}),
        ("enrolment", {"key": {"jwk": {**JWK, "kid": "1"}, "jkt": JKT}}),
        ("enrolment", {"key": {"jwk": JWK}}),
        ("principal", {"roles": ["root"]}),
        ("principal", {"roles": ["admin", "admin"]}),
        ("principal", {"groups": ["A"]}),
        ("principal", {"groups": [f"g{at}" for at in range(limits.MAX_GROUPS + 1)]}),
        ("principal", {"disabled": 0}),
        ("commit", {"version_id": b64url(bytes(15))}),
        ("commit", {"labels": {"Tier": "x"}}),
        ("commit", {"labels": {f"l{at}": "x" for at in range(limits.MAX_LABELS + 1)}}),
        ("commit", {"publisher_binding": -1}),
        ("publish", {"kind": "model"}),
        ("publish", {"decision": {"effect": "deny", "policies": []}}),
        ("denial", {"decision": {"effect": "allow", "policies": []}}),
        ("revocation", {"target": {"kind": "planet", "id": "x"}}),
        ("revocation", {"target": "g_1"}),
        ("freeze", {"frozen": "yes"}),
        ("audit-query", {"hour": "2025-01-01T00:00:01.000Z"}),
        ("audit-query", {"query": "x" * (limits.MAX_QUERY + 1)}),
        ("audit-query", {"query": "a\nb"}),
        ("junk-summary", {"counts": {f"c{at}": 1 for at in range(MAX_COUNTERS + 1)}}),
        ("junk-summary", {"counts": {"a b": 1}}),
        ("junk-summary", {"counts": {"a": -1}}),
        ("collection", {"collection": "a/b"}),
    ],
)
def test_a_member_of_one_type_against_its_rule_is_refused(type, changes):
    with pytest.raises(InvalidRequest):
        sample(type, **changes)


def test_members_may_be_as_long_as_their_limits():
    sample("grant", purpose="x" * limits.MAX_PURPOSE, artifact="x" * limits.MAX_NAME_IN_LEDGER)
    sample("principal", groups=[f"g{at}" for at in range(limits.MAX_GROUPS)])
    sample("audit-query", query="x" * limits.MAX_QUERY)
    sample("audit-query", query="")
    sample("commit", labels={f"l{at}": "x" for at in range(limits.MAX_LABELS)})
    sample("junk-summary", counts={f"c{at}": 1 for at in range(MAX_COUNTERS)})


def test_an_unknown_type_is_refused():
    for type in ("gift", "", None, ["grant"]):
        with pytest.raises(InvalidRequest):
            build_entry(type=type, time=NOW, salt=bytes(16))  # type: ignore[arg-type]


def entry_of_size(size: int) -> dict[str, object]:
    entry = json.loads(sample("denial", decision={"effect": "deny", "policies": []}))
    full, rest = divmod(size - len(rfc8785.dumps(entry)) + 1, 256 + 3)
    names = [f"{at:0256d}" for at in range(full)] if rest > 3 else [f"{at:0255d}" for at in range(full)]
    entry["decision"]["policies"] = names
    entry["decision"]["policies"].append("p" * (size - len(rfc8785.dumps(entry)) - 3))
    assert len(rfc8785.dumps(entry)) == size
    return entry


def test_an_entry_may_be_as_large_as_the_limit_and_no_larger():
    largest = entry_of_size(limits.MAX_ENTRY)
    assert parse_entry(rfc8785.dumps(largest)) == largest
    with pytest.raises(IntegrityFailure):
        parse_entry(rfc8785.dumps(entry_of_size(limits.MAX_ENTRY + 1)))
    decision = {"effect": "deny", "policies": [f"{at:0256d}" for at in range(256)]}
    with pytest.raises(TooLarge):
        sample("denial", decision=decision)


def test_a_salt_of_another_size_is_a_bug():
    with pytest.raises(InternalError):
        build_entry(type="abandon", time=NOW, salt=bytes(15), upload="u_1")
    with pytest.raises(InternalError):
        build_entry(type="abandon", time=NOW, salt=bytes(16), upload="u_1", schema="x")


def test_two_entries_that_say_the_same_have_different_bytes():
    first, second = (
        build_entry(type="abandon", time=NOW, salt=bytes([at]) * 16, upload="u_1") for at in (1, 2)
    )
    assert first != second


# -- search columns -----------------------------------------------------------------------------------


def test_the_search_row_of_a_grant():
    assert index_row(parse_entry(sample("grant"))) == IndexRow(
        time=NOW,
        type="grant",
        principal="user:ana",
        jkt=JKT,
        action="read",
        artifact="nlp/minilm",
        version="v1",
        decision="allow",
        policies=("readers-by-group",),
        bytes=91_650_000,
        grant="g_1",
        purpose="evaluation",
    )


def test_the_search_row_of_an_entry_that_has_nothing_to_search():
    assert index_row(parse_entry(sample("abandon"))) == IndexRow(time=NOW, type="abandon")


def test_the_key_that_an_enrolment_binds_can_be_searched():
    assert index_row(parse_entry(sample("enrolment"))).jkt == JKT


# -- commitments and names ------------------------------------------------------------------------------


def test_the_evidence_commitment_is_salted():
    salt = bytes(range(32))
    assert evidence_commitment(salt, b"e") == "sha256:" + hashlib.sha256(salt + b"e").hexdigest()
    assert evidence_commitment(salt, b"e") != evidence_commitment(bytes(32), b"e")
    for size in (0, 31, 33):
        with pytest.raises(InternalError):
            evidence_commitment(bytes(size), b"e")


def test_the_record_digest():
    assert record_digest(b"{}") == "sha256:" + hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("nlp/minilm", "nlp/minilm"),
        ("", ""),
        ("a\nb\x00c\u202ed\u2028", "a\\u{a}b\\u{0}c\\u{202e}d\\u{2028}"),
        ("\ud800", "\\u{d800}"),
        ("ä" * 200, "ä" * 128),
        ("x" + "ä" * 200, "x" + "ä" * 127),
        ("x" * 255 + "\n", "x" * 255),
        ("👩‍🚀", "👩\\u{200d}🚀"),
    ],
)
def test_a_name_is_cut_between_characters_and_made_visible(text, cut):
    assert cut_name(text) == cut
    assert cut_name(cut) == cut
    if cut:
        assert parse_entry(sample("denial", artifact=cut))["artifact"] == cut


def test_a_name_is_cut_to_the_size_that_is_asked_for():
    assert cut_name("x" * 600, size=limits.MAX_PURPOSE) == "x" * limits.MAX_PURPOSE
