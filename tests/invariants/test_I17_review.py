"""I17: deep paths, long patterns and large refused bodies cost a bounded amount of memory, time and room."""

from __future__ import annotations

import tracemalloc

import pytest

from broker import limits, names
from broker.canonical import parse_json_object, sha256_digest
from broker.envelope import seal
from broker.errors import Denied, InvalidRequest, TooLarge
from broker.identity import scope
from broker.services import publish, uploads
from tests.world import MIB, World


def test_I17_deep_paths_take_no_more_memory_than_their_text() -> None:
    paths = [f"{i:03d}/" + "a/" * 500 + "f" for i in range(500)]
    tracemalloc.start()
    names.check_distinct_paths(paths)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * sum(map(len, paths))


@pytest.mark.parametrize(
    "paths", [["a", "a-b", "a/b"], ["x/a/b/c", "x/a"], ["A/b", "a"], ["a/b", "a/b/c/d", "a/b.c"]]
)
def test_I17_a_file_that_is_also_a_folder_is_still_found(paths: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="folder of"):
        names.check_distinct_paths(paths)
    names.check_distinct_paths(["a", "a-b/c", "a.b", "ab/c", "b/a"])


def test_I17_matching_is_bounded_at_the_limit_and_one_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_MATCH_STEPS", 60)
    names.check_match_effort(["a/b", "c"], ["**/x"] * 10)
    names.check_match_effort(["a"] * 1000, [])
    with pytest.raises(TooLarge):
        names.check_match_effort(["a/b", "c", "d"], ["**/x"] * 10)


def test_I17_long_patterns_over_deep_paths_are_refused_before_they_are_tried() -> None:
    deep = "a/" * 500
    detail = {
        "type": "artifact_access",
        "actions": ["publish"],
        "identifier": "*",
        "paths": [f"**/{deep}b"],
    }
    paths = [f"{deep}{i}" for i in range(1000)]
    ask = scope.Ask(action="publish", collection="c", name="n", version="v", paths=paths)
    with pytest.raises(TooLarge):
        scope.permits([[detail]], ask)


@pytest.mark.parametrize(
    ("size", "kept"), [(limits.MAX_EVIDENCE_BODY, "body"), (limits.MAX_EVIDENCE_BODY + 1, "body_digest")]
)
def test_I17_a_refused_upload_leaves_the_digest_of_a_large_body(world: World, size: int, kept: str) -> None:
    ana, body = world.add("ana"), b"x" * size
    wanted = uploads.UploadRequest(
        request_id=world.uuid(),
        collection="acme",
        name="llama",
        version="v1",
        kind="checkpoint",
        labels={"tier": "standard"},
        extent_size=MIB,
        files=(("a", 1),),
        recipient=seal.Recipient.generate().public_bytes,
    )
    with pytest.raises(Denied):
        publish.begin(world.house, world.request(ana, body=body), wanted)
    with world.ledger.view() as view:
        _, data = view.evidence(world.size() - 1)
    evidence = parse_json_object(data)
    assert {"body", "body_digest"} & evidence.keys() == {kept}
    assert kept == "body" or evidence[kept] == sha256_digest(body)
    assert len(data) < 2 * limits.MAX_EVIDENCE_BODY
