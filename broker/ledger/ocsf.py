"""Entries as events of the Open Cybersecurity Schema Framework, for whatever collects security logs.

An event is made from its entry alone, so two exports of one entry are the same bytes. Reads of artifacts
are Datastore Activity, everything else is API Activity. What an entry has and the schema has no place for
is under ``unmapped``; only the salt, which says nothing, is left out.

Source: OCSF 1.8.0, classes 6005 and 6003 (``docs/formats/ocsf.md`` has the mapping).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from broker.canonical import MAX_SAFE_INTEGER, Json, canonical_bytes, drop_absent, parse_time

VERSION: Final = "1.8.0"
PRODUCT: Final = "Model access broker"
DATASTORE: Final = 6005
API: Final = 6003
_CLASSES: Final = {DATASTORE: "Datastore Activity", API: "API Activity"}
_READ_ARTIFACT: Final = 1
_CREATE, _READ, _UPDATE, _DELETE, _OTHER = 1, 2, 3, 4, 99
_ACTIVITIES: Final[Mapping[int, str]] = {
    _CREATE: "Create",
    _READ: "Read",
    _UPDATE: "Update",
    _DELETE: "Delete",
    _OTHER: "Other",
}
"""Activities of API Activity. Source: OCSF 1.8.0, ``api_activity``."""
_OF_TYPE: Final[Mapping[str, int]] = {
    "genesis": _CREATE,
    "origin": _UPDATE,
    "enrolment-code": _CREATE,
    "enrolment": _CREATE,
    "issuer": _UPDATE,
    "token": _CREATE,
    "publish": _CREATE,
    "commit": _CREATE,
    "abandon": _DELETE,
    "collection": _UPDATE,
    "principal": _UPDATE,
    "group": _UPDATE,
    "policy": _UPDATE,
    "approval": _CREATE,
    "revocation": _DELETE,
    "freeze": _UPDATE,
    "key-rotation": _UPDATE,
    "export": _READ,
    "audit-query": _READ,
    "erasure": _DELETE,
    "junk-summary": _OTHER,
    "denial-summary": _OTHER,
}
_OF_ACTION: Final[Mapping[str, int]] = {
    "describe": _READ,
    "read": _READ,
    "audit": _READ,
    "publish": _CREATE,
    "create-collection": _CREATE,
    "mint": _CREATE,
    "exchange": _CREATE,
    "revoke-own": _DELETE,
}
"""What a denial or a bare decision was about; other actions are Other, under their own name."""
_INFORMATIONAL, _LOW, _MEDIUM, _HIGH = 1, 2, 3, 4
_SEVERITIES: Final[Mapping[int, str]] = {
    _INFORMATIONAL: "Informational",
    _LOW: "Low",
    _MEDIUM: "Medium",
    _HIGH: "High",
}
_SEVERITY: Final[Mapping[str, int]] = {
    "origin": _HIGH,
    "freeze": _MEDIUM,
    "erasure": _MEDIUM,
    "policy": _MEDIUM,
    "key-rotation": _MEDIUM,
    "issuer": _LOW,
    "principal": _LOW,
    "collection": _LOW,
    "group": _LOW,
    "revocation": _LOW,
    "denial-summary": _LOW,
    "junk-summary": _LOW,
}
"""Severity of an entry that is no refusal; Informational where a type is not listed."""
_USER_TYPES: Final[Mapping[str, tuple[int, str]]] = {"user": (1, "User"), "workload": (4, "Service")}
_BUCKET_OTHER: Final = 99
_CLASS_DATABUCKET: Final = 2
_SHA256: Final = 3
_MAPPED: Final = frozenset(
    {"schema", "salt", "time", "type", "principal", "jkt", "token", "request_id"}
    | {"action", "artifact", "decision"}
)
"""Members that every event has a place for; ``version`` goes with the artifact."""
_ABOUT: Final[tuple[tuple[str, str], ...]] = (
    ("artifact", "artifact"),
    ("collection", "collection"),
    ("subject", "principal"),
    ("group", "group"),
    ("issuer", "issuer"),
    ("bundle", "policy bundle"),
    ("upload", "upload"),
    ("grant", "grant"),
    ("origin", "log"),
    ("code", "enrolment code"),
    ("kid", "key"),
)
"""Member that names what an entry is about, and the type of resource that it is; the first that is there."""


def event(index: int, entry: Json, *, origin: str, product_version: str | None = None) -> Json:
    """One entry as an event that is valid under the schema.

    Args:
        index: Its index in the log.
        entry: The entry, as :func:`~broker.ledger.entry.parse_entry` gives it.
        origin: The log's name.
        product_version: The broker's release, where the event is made by one; exports leave it out, so
            that whoever verifies them makes the same bytes.

    Returns:
        The event; ``metadata.uid`` is ``origin/index``, the same for ever.

    Source: OCSF 1.8.0.
    """
    class_uid, activity, name = _classify(entry)
    refused = _is_refused(entry)
    severity = _MEDIUM if refused and class_uid == DATASTORE else _LOW if refused else _severity(entry)
    what = _subject(entry)
    found = {
        "category_uid": 6,
        "category_name": "Application Activity",
        "class_uid": class_uid,
        "class_name": _CLASSES[class_uid],
        "activity_id": activity,
        "activity_name": name,
        "type_uid": class_uid * 100 + activity,
        "type_name": f"{_CLASSES[class_uid]}: {name}",
        "severity_id": severity,
        "severity": _SEVERITIES[severity],
        "status_id": 2 if refused else 1,
        "status": "Failure" if refused else "Success",
        "status_code": _effect(entry),
        "status_detail": entry.get("decision", {}).get("reason"),
        "time": parse_time(entry["time"]),
        "message": _message(entry, what, refused=refused),
        "metadata": _metadata(index, entry, origin, product_version),
        "actor": _actor(entry),
        "src_endpoint": {"uid": entry["jkt"]} if "jkt" in entry else {"svc_name": origin},
        "unmapped": _unmapped(entry, class_uid),
    }
    request = {"uid": entry["request_id"]} if "request_id" in entry else None
    if class_uid == DATASTORE:
        found |= {"type_id": _CLASS_DATABUCKET, "type": "Databucket", "databucket": _databucket(entry)}
        found["http_request"] = request
    else:
        operation = str(entry.get("action", entry["type"]))
        service = {"name": PRODUCT, "uid": origin}
        found["api"] = {"operation": operation, "service": service, "request": request}
        found["resources"] = None if what is None else [what]
    found |= _occurrences(entry) | _raw(entry)
    event: Json = _without_absent(found)
    return event


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return drop_absent({key: _without_absent(each) for key, each in value.items()})
    return value


def _classify(entry: Json) -> tuple[int, int, str]:
    """(class, activity, its name)."""
    type, action = entry["type"], entry.get("action")
    if type in ("grant", "lease", "completion") or (type == "denial" and _is_read(entry)):
        return DATASTORE, _READ_ARTIFACT, "Read"
    activity = _OF_ACTION.get(str(action), _OTHER) if type in ("denial", "decision") else _OF_TYPE[type]
    # For Other the schema wants the source's own word.
    return API, activity, _ACTIVITIES[activity] if activity != _OTHER else str(action or type)


def _is_read(entry: Json) -> bool:
    return entry.get("action") == "read" and "artifact" in entry


def _effect(entry: Json) -> str | None:
    decision = entry.get("decision")
    return str(decision["effect"]) if decision else None


def _is_refused(entry: Json) -> bool:
    return entry["type"] == "denial" or _effect(entry) in ("deny", "needs-approval")


def _severity(entry: Json) -> int:
    return _SEVERITY.get(entry["type"], _INFORMATIONAL)


def _metadata(index: int, entry: Json, origin: str, product_version: str | None) -> Json:
    return {
        "version": VERSION,
        "product": {"name": PRODUCT, "vendor_name": PRODUCT, "uid": origin, "version": product_version},
        "uid": f"{origin}/{index}",
        "sequence": index,
        "event_code": entry["type"],
        "log_name": origin,
        "log_format": "JSON",
        "log_version": entry["schema"],
        "original_time": entry["time"],
        "correlation_uid": entry.get("grant", entry.get("upload")),
    }


def _actor(entry: Json) -> Json:
    return {
        "user": _user(entry),
        "app_name": None if "principal" in entry else PRODUCT,
        "session": {"uid": entry["token"]} if "token" in entry else None,
        "authorizations": _authorizations(entry),
    }


def _user(entry: Json) -> Json | None:
    principal = entry.get("principal")
    if principal is None:
        return None
    kind, _, name = principal.partition(":")
    type_id, type_name = _USER_TYPES.get(kind, (_OTHER, kind))
    return {
        "uid": principal,
        "name": name or principal,
        "type_id": type_id,
        "type": type_name,
        "credential_uid": entry.get("jkt"),
    }


def _authorizations(entry: Json) -> list[Json] | None:
    decision = entry.get("decision")
    if not decision:
        return None
    policies = [drop_absent({"uid": uid, "version": decision.get("bundle")}) for uid in decision["policies"]]
    effect = decision["effect"]
    bare = drop_absent({"decision": effect, "policy": drop_absent({"uid": decision.get("bundle")}) or None})
    return [{"decision": effect, "policy": policy} for policy in policies] or [bare]


def _unmapped(entry: Json, class_uid: int) -> Json | None:
    mapped = _MAPPED | {"version"} if "artifact" in entry else _MAPPED
    if class_uid == DATASTORE and entry.get("action") != "read":
        # Datastore Activity has no operation: that it is a read is all that the activity says.
        mapped -= {"action"}
    return {name: value for name, value in entry.items() if name not in mapped} or None


def _databucket(entry: Json) -> Json:
    """The artifact; of a completion, that names none, the grant."""
    artifact = entry.get("artifact")
    version = entry.get("version") if artifact else None
    return {
        "type_id": _BUCKET_OTHER,
        "type": "Model artifact" if artifact else "Grant",
        "uid": artifact or entry["grant"],
        "name": artifact or entry["grant"],
        "version": version,
        "is_encrypted": True,
    }


def _subject(entry: Json) -> Json | None:
    for member, type in _ABOUT:
        if member in entry:
            found = {"type": type, "uid": entry[member], "name": entry[member]}
            # A version is one of an artifact; beside anything else it stays unmapped.
            return {**found, "version": entry["version"]} if {"artifact", "version"} <= set(entry) else found
    if "target" in entry:
        target = entry["target"]
        return {"type": target["kind"], "uid": target["id"], "name": target["id"]}
    return None


def _message(entry: Json, what: Json | None, *, refused: bool) -> str:
    """Who, what kind of entry, about what: ``user:ana: grant nlp/minilm@v1``."""
    bare = entry["type"] in ("denial", "decision")
    words = [
        f"{entry.get('principal', 'broker')}:",
        entry.get("action", "request") if bare else entry["type"],
    ]
    if what is not None:
        words.append(what["name"] + (f"@{what['version']}" if "version" in what else ""))
    return " ".join(words) + (" (refused)" if refused else "")


def _occurrences(entry: Json) -> Json:
    """A summary stands for many: how many, and when."""
    if "counts" not in entry or "since" not in entry or "until" not in entry:
        return {}
    return {
        "count": min(sum(entry["counts"].values()), MAX_SAFE_INTEGER),
        "start_time": parse_time(entry["since"]),
        "end_time": parse_time(entry["until"]),
    }


def _raw(entry: Json) -> Json:
    """The digest of the entry's exact bytes, by which an event is found in the log again."""
    data = canonical_bytes(entry)
    value = hashlib.sha256(data).hexdigest()
    return {
        "raw_data_hash": {"algorithm_id": _SHA256, "algorithm": "SHA-256", "value": value},
        "raw_data_size": len(data),
    }
