"""What a wrapped version key is bound to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.envelope.wrap import wrap_aad
from broker.errors import BrokerError, InternalError

MANIFEST = "sha256:" + "ab" * 32
VERSION: dict[str, Any] = {
    "use": "version",
    "version_id": bytes(16),
    "artifact": "acme/llama",
    "tier": "standard",
    "manifest": MANIFEST,
}
UPLOAD: dict[str, Any] = {
    "use": "upload",
    "version_id": bytes(16),
    "artifact": "acme/llama",
    "tier": "standard",
    "publisher": "j" * 43,
}


def test_the_members() -> None:
    assert json.loads(wrap_aad(**VERSION)) == {
        "use": "version",
        "version_id": "A" * 22,
        "artifact": "acme/llama",
        "tier": "standard",
        "manifest": MANIFEST,
    }
    assert json.loads(wrap_aad(**UPLOAD))["publisher"] == "j" * 43


def test_I19_every_member_is_bound() -> None:
    found = {wrap_aad(**VERSION), wrap_aad(**UPLOAD)}
    for name, value in (
        ("version_id", b"\x01" * 16),
        ("artifact", "acme/other"),
        ("tier", "critical"),
        ("manifest", "sha256:" + "00" * 32),
    ):
        found.add(wrap_aad(**{**VERSION, name: value}))
    found.add(wrap_aad(**{**UPLOAD, "publisher": "k" * 43}))
    assert len(found) == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "upload"},
        {"use": "other"},
        {"publisher": "j" * 43},
        {"manifest": None},
        {"manifest": "not a digest"},
        {"version_id": bytes(15)},
        {"tier": ""},
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BrokerError) as caught:
        wrap_aad(**{**VERSION, **changes})
    assert caught.value.code in (InternalError.code, "malformed")
