"""I03: a token for one version describes that version, by name or digest, and no other."""

from __future__ import annotations

import pytest

from broker.errors import ScopeExceeded
from broker.services import catalogue
from tests.world import MIB, World


def test_I03_a_token_for_one_version_describes_that_one_only(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    digest = world.publish(pub, "acme/llama@v1", {"a": bytes(MIB)})["version"]["manifest"]
    world.publish(pub, "acme/llama@v2", {"a": bytes(MIB)})
    ana = world.add("ana", groups=["acme"])
    for identifier in ("acme/llama@v1", f"acme/llama@{digest}"):
        detail = {"type": "artifact_access", "actions": ["describe"], "identifier": identifier}
        ana.token = world.login(ana, [detail])
        for version in ("v1", digest):
            found = catalogue.show_manifest(world.house, world.request(ana, "GET"), "acme", "llama", version)
            assert found["version"]["version"] == "v1"
        for other in ("v2", "v3", None):
            with pytest.raises(ScopeExceeded):
                catalogue.show_version(world.house, world.request(ana, "GET"), "acme", "llama", other)
        with pytest.raises(ScopeExceeded):
            catalogue.show_artifact(world.house, world.request(ana, "GET"), "acme", "llama")
