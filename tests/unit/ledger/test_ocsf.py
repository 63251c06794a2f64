"""Events against the schema of OCSF 1.8.0 itself, as an implementation that is not ours derives it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from broker.canonical import MAX_SAFE_INTEGER, canonical_bytes, parse_time
from broker.ledger import ocsf
from broker.ledger.entry import TYPES, build_entry, parse_entry
from broker.ledger.members import COMMON
from tests.unit.ledger.samples import JKT, NOW, ORIGIN, SAMPLES, digest

VECTORS = Path(__file__).parents[3] / "docs" / "formats" / "vectors" / "entry.json"
ENTRIES = [json.loads(each["text"]) for each in json.loads(VECTORS.read_text())["entries"]]
CLASSES = {6005: "datastore_activity", 6003: "api_activity"}


@cache
def schema() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(version=ocsf.VERSION))


@cache
def validator(class_uid: int) -> Any:
    # The schema of the class is closed: a member that it does not know is an error.
    return jsonschema.Draft202012Validator(schema().get_class_schema(CLASSES[class_uid]))


def made(type: str, **changes: Any) -> dict[str, Any]:
    entry = parse_entry(build_entry(type=type, salt=bytes(16), time=NOW, **{**SAMPLES[type], **changes}))
    return ocsf.event(7, entry, origin=ORIGIN)


@pytest.mark.parametrize("number", range(len(ENTRIES)))
def test_every_kind_of_entry_is_a_valid_event(number: int) -> None:
    event = ocsf.event(number, ENTRIES[number], origin=ORIGIN, product_version="1.0.0")
    errors = [f"{list(e.path)}: {e.message}" for e in validator(event["class_uid"]).iter_errors(event)]
    assert not errors
    assert event["metadata"]["product"]["version"] == "1.0.0"


def test_the_samples_are_of_every_type() -> None:
    assert {entry["type"] for entry in ENTRIES} == set(SAMPLES)


def test_the_vectors_are_what_the_entries_give() -> None:
    found = json.loads((VECTORS.parent / "ocsf.json").read_text())
    assert found["version"] == ocsf.VERSION
    assert len(found["events"]) >= 6
    for each in found["events"]:
        entry = ENTRIES[each["entry"]]
        assert ocsf.event(each["entry"], entry, origin=found["origin"]) == each["event"]
        assert validator(each["event"]["class_uid"]).is_valid(each["event"])


@pytest.mark.parametrize("class_uid", CLASSES)
def test_captions_are_those_of_the_schema(class_uid: int) -> None:
    raw = get_ocsf_schema(version=ocsf.VERSION)["classes"][CLASSES[class_uid]]["attributes"]
    activities = {int(uid): each["caption"] for uid, each in raw["activity_id"]["enum"].items()}
    for number, entry in enumerate(ENTRIES):
        event = ocsf.event(number, entry, origin=ORIGIN)
        if event["class_uid"] == class_uid and event["activity_id"] != 99:
            assert event["activity_name"] == activities[event["activity_id"]]
        assert event["severity"] == raw["severity_id"]["enum"][str(event["severity_id"])]["caption"]


def test_a_schema_that_is_not_met_is_seen() -> None:
    event = made("grant")
    del event["src_endpoint"]
    assert not validator(6005).is_valid(event)
    assert not validator(6005).is_valid({**made("grant"), "nonsense": 1})
    assert not validator(6005).is_valid({**made("grant"), "severity_id": 77})


def test_reads_are_datastore_activity() -> None:
    for type in ("grant", "lease", "completion"):
        event = made(type)
        assert (event["class_uid"], event["type_uid"], event["status"]) == (6005, 600501, "Success")
    grant = made("grant")
    assert grant["databucket"]["uid"] == "nlp/minilm"
    assert grant["actor"]["user"] == {
        "uid": "user:ana",
        "name": "ana",
        "type_id": 1,
        "type": "User",
        "credential_uid": JKT,
    }
    assert grant["actor"]["authorizations"] == [
        {"decision": "allow", "policy": {"uid": "readers-by-group", "version": digest("bundle")}}
    ]
    assert grant["unmapped"]["bytes"] == 91_650_000
    assert grant["message"] == "user:ana: grant nlp/minilm@v1"


def test_a_refused_read_is_a_failure() -> None:
    event = made("denial")
    assert (event["class_uid"], event["status_id"], event["status_code"]) == (6005, 2, "deny")
    assert event["severity"] == "Medium"
    publish = made("denial", action="publish")
    assert (publish["class_uid"], publish["activity_name"], publish["status_id"]) == (6003, "Create", 2)
    other = made("denial", action="administer")
    assert (other["activity_id"], other["activity_name"]) == (99, "administer")
    assert not list(validator(6003).iter_errors(other))


def test_a_denial_that_names_nobody_and_nothing_is_valid() -> None:
    decision = {"effect": "deny", "policies": []}
    entry = parse_entry(build_entry(type="denial", salt=bytes(16), time=NOW, decision=decision))
    event = ocsf.event(0, entry, origin=ORIGIN)
    assert not list(validator(event["class_uid"]).iter_errors(event))
    assert event["actor"] == {"app_name": ocsf.PRODUCT, "authorizations": [{"decision": "deny"}]}
    assert event["src_endpoint"] == {"svc_name": ORIGIN}


def test_a_summary_says_how_many() -> None:
    event = made("denial-summary")
    assert event["count"] == 61
    entry = SAMPLES["denial-summary"]
    assert (event["start_time"], event["end_time"]) == (
        parse_time(entry["since"]),
        parse_time(entry["until"]),
    )
    most = made("denial-summary", counts={f"c{number}": MAX_SAFE_INTEGER for number in range(3)})
    assert most["count"] == MAX_SAFE_INTEGER
    canonical_bytes(most)


def test_an_event_leads_back_to_its_entry() -> None:
    entry = ENTRIES[4]
    event = ocsf.event(4, entry, origin=ORIGIN)
    assert event["metadata"]["uid"] == f"{ORIGIN}/4"
    assert event["raw_data_hash"]["value"] == digest(canonical_bytes(entry).decode()).removeprefix("sha256:")
    assert event["raw_data_size"] == len(canonical_bytes(entry))


def kept(entry: dict[str, Any]) -> None:
    """All that the entry says is a value of the event, but for the salt; a read is the activity."""
    event = ocsf.event(0, entry, origin=ORIGIN)
    said = leaves(event)
    for member in set(entry) - {"salt", "action"}:
        for leaf in leaves(entry[member]):
            assert leaf in said, member
    if entry.get("action", "read") != "read":
        assert entry["action"] in said
    assert entry["salt"] not in canonical_bytes(event).decode()
    assert not list(validator(event["class_uid"]).iter_errors(event))


@pytest.mark.parametrize("number", range(len(ENTRIES)))
def test_nothing_that_an_entry_says_is_lost(number: int) -> None:
    kept(ENTRIES[number])


ANY = {name: value for each in SAMPLES.values() for name, value in each.items() if name in COMMON}
"""A value of each member that an entry of any type may have."""


@given(
    st.sampled_from(sorted(SAMPLES)),
    st.sets(st.sampled_from(sorted(ANY))),
    st.sets(st.sampled_from(sorted(COMMON))),
    st.sampled_from(["read", "publish", "administer", "x"]),
)
def test_any_entry_is_a_valid_event_that_loses_nothing(
    type: str, more: set[str], fewer: set[str], action: str
) -> None:
    members = {**{name: ANY[name] for name in more}, **SAMPLES[type]}
    for name in fewer - TYPES[type].required:
        members.pop(name, None)
    if "action" in members:
        members["action"] = action
    if type == "denial":
        members["decision"] = {"effect": "deny", "policies": [], "bundle": digest("b"), "reason": "frozen"}
    kept(parse_entry(build_entry(type=type, salt=b"\xff" * 16, time=NOW, **members)))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def test_the_same_entry_gives_the_same_bytes() -> None:
    for number, entry in enumerate(ENTRIES):
        one = canonical_bytes(ocsf.event(number, entry, origin=ORIGIN))
        assert one == canonical_bytes(ocsf.event(number, parse_entry(canonical_bytes(entry)), origin=ORIGIN))
