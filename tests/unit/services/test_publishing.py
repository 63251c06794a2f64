"""Publishing: taken up again, committed once, swept when abandoned; decided at every step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker import limits
from broker.envelope import manifest, seal
from broker.errors import Conflict, Denied, InvalidRequest, NotFound
from broker.model import Upload
from broker.services import committing, publish, sweeping, upload_objects, uploads
from tests.world import MIB, Person, World


@pytest.fixture
def pub(world: World) -> Person:
    return world.add("pub", roles=["publisher"], groups=["acme"])


def wanted(world: World, **changes: Any) -> uploads.UploadRequest:
    fields: dict[str, Any] = {
        "request_id": world.uuid(),
        "collection": "acme",
        "name": "llama",
        "version": "v1",
        "kind": "checkpoint",
        "labels": {"tier": "standard"},
        "extent_size": 32 * MIB,
        "files": (("a.bin", 70 * MIB), ("b.bin", 10)),
        "recipient": seal.Recipient.generate().public_bytes,
    }
    return uploads.UploadRequest(**{**fields, **changes})


def begin(world: World, who: Person, **changes: Any) -> Any:
    return publish.begin(world.house, world.request(who), wanted(world, **changes))


def test_the_same_content_is_the_same_upload(world: World, pub: Person) -> None:
    first, again = begin(world, pub), begin(world, pub)
    assert first["upload"] == again["upload"]
    assert begin(world, pub, extent_size=MIB)["upload"]["id"] != first["upload"]["id"]


def test_a_resumed_upload_seals_the_same_key(world: World, pub: Person) -> None:
    keys = set()
    for _ in range(2):
        recipient = seal.Recipient.generate()
        begun = begin(world, pub, recipient=recipient.public_bytes)
        keys.add(world.open_upload(pub, begun, recipient).version_key)
    assert len(keys) == 1


def test_another_key_of_the_group_gets_an_upload_of_its_own(world: World, pub: Person) -> None:
    other = world.add("bob", roles=["publisher"], groups=["acme"])
    mine, theirs = begin(world, pub)["upload"]["id"], begin(world, other)["upload"]["id"]
    assert mine != theirs
    with pytest.raises(NotFound):
        committing.status(world.house, world.request(other), mine)
    with pytest.raises(NotFound):
        publish.abandon(world.house, world.request(other), mine, request_id=world.uuid(), have=None)


@pytest.mark.parametrize(
    "change",
    [
        {"files": ()},
        {"files": (("b", 1), ("a", 1))},
        {"files": (("a", 1), ("A", 1))},
        {"files": (("../a", 1),)},
        {"files": (("a", -1),)},
        {"files": (("a", limits.MAX_FILE_SIZE + 1),)},
        {"extent_size": MIB + 1},
        {"extent_size": MIB // 2},
        {"extent_size": 2 * limits.MAX_EXTENT_SIZE},
        {"kind": "model"},
        {"labels": {}},
        {"labels": {"tier": "standard", "Bad": "x"}},
        {"labels": {"tier": "a\nb"}},
        {"recipient": b"short"},
    ],
)
def test_a_description_outside_its_rules_is_refused(world: World, pub: Person, change: Any) -> None:
    size = world.size()
    with pytest.raises(InvalidRequest):
        begin(world, pub, **change)
    assert world.size() == size


def test_an_unknown_tier_is_denied_and_recorded(world: World, pub: Person) -> None:
    with pytest.raises(Denied) as refused:
        begin(world, pub, labels={"tier": "secret"})
    assert refused.value.policies == ("unknown-tier",)
    assert world.entry(world.size() - 1)["type"] == "denial"


def test_urls_are_create_only_and_for_parts_that_exist(world: World, pub: Person) -> None:
    id = begin(world, pub)["upload"]["id"]
    ask = committing.UrlsRequest(upload=id, parts=((0, 1), (0, 3), (1, 1)), segments=(0,))
    found = committing.urls(world.house, world.request(pub), ask)
    assert [u["headers"].get("If-None-Match") for u in found["urls"]] == [None, None, "*"]
    assert found["segments"][0]["headers"]["If-None-Match"] == "*"
    for parts, segments in ([((0, 4),), ()], [((2, 1),), ()], [((0, 0),), ()], [(), (1,)], [(), ()]):
        with pytest.raises(InvalidRequest):
            committing.urls(
                world.house,
                world.request(pub),
                committing.UrlsRequest(upload=id, parts=parts, segments=segments),  # type: ignore[arg-type]
            )


def test_who_lost_the_right_gets_no_further_url(world: World, pub: Person) -> None:
    from broker.services import people

    id = begin(world, pub)["upload"]["id"]
    people.set_principal(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        id="pub",
        roles=["engineer"],
        groups=None,
        disabled=None,
        have=None,
    )
    with pytest.raises(Denied):
        committing.urls(
            world.house,
            world.request(pub),
            committing.UrlsRequest(upload=id, parts=((0, 1),), segments=()),
        )


def test_a_version_is_committed_once(world: World, pub: Person) -> None:
    begun = begin(world, pub, files=(("a", 1),))
    world.publish(pub, "acme/llama@v1", {"a": b"x"})
    with pytest.raises(Conflict):
        begin(world, pub, files=(("a", 1),))
    with pytest.raises(Conflict):
        world.publish(pub, "acme/llama@v1", {"a": b"y"})
    assert begun["upload"]["id"]


def test_an_artifact_keeps_its_kind(world: World, pub: Person) -> None:
    world.publish(pub, "acme/llama@v1", {"a": b"x"})
    with pytest.raises(Conflict):
        world.publish(pub, "acme/llama@v2", {"a": b"x"}, kind="dataset")


def commit_request(world: World, who: Person, files: Any, **changes: Any) -> committing.CommitRequest:
    recipient = seal.Recipient.generate()
    begun = begin(world, who, files=files, extent_size=MIB, recipient=recipient.public_bytes)
    key = world.open_upload(who, begun, recipient)
    listed = tuple(
        world._put_file("acme/llama", key, i, path, bytes(size), MIB) for i, (path, size) in enumerate(files)
    )
    made = manifest.Manifest(
        artifact="acme/llama",
        version="v1",
        version_id=key.version_id,
        kind="checkpoint",
        labels={"tier": "standard"},
        extent_size=MIB,
        files=listed,
    )
    data = manifest.manifest_bytes(replace(made, **changes))
    return committing.CommitRequest(
        request_id=world.uuid(),
        upload=key.upload,
        manifest=data,
        signature=manifest.sign_manifest(data, who.key),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"version": "v2"},
        {"artifact": "acme/other"},
        {"version_id": bytes(16)},
        {"labels": {"tier": "critical"}},
    ],
)
def test_a_manifest_of_something_else_is_not_committed(world: World, pub: Person, change: Any) -> None:
    ask = commit_request(world, pub, (("a", 3),), **change)
    with pytest.raises(InvalidRequest):
        committing.commit(world.house, world.request(pub), ask)


def test_what_the_store_does_not_hold_is_not_committed(world: World, pub: Person) -> None:
    ask = commit_request(world, pub, (("a", 3),))
    name = next(iter(world.store.objects))
    for damaged in (None, world.store.objects[name] + b"x"):
        kept = dict(world.store.objects)
        if damaged is None:
            del world.store.objects[name]
        else:
            world.store.objects[name] = damaged
        with pytest.raises(InvalidRequest):
            committing.commit(world.house, world.request(pub), ask)
        world.store.objects = kept
    assert committing.commit(world.house, world.request(pub), ask)["version"]["version"] == "v1"


def test_a_repeated_commit_is_the_same_commit(world: World, pub: Person) -> None:
    ask = commit_request(world, pub, (("a", 3),))
    first = committing.commit(world.house, world.request(pub), ask)
    size = world.size()
    again = committing.commit(world.house, world.request(pub), ask)
    assert again["version"] == first["version"]
    assert world.size() == size


def test_an_abandoned_upload_is_swept_and_never_committed(world: World, pub: Person) -> None:
    ask = commit_request(world, pub, (("a", 3),))
    publish.abandon(world.house, world.request(pub), ask.upload, request_id=world.uuid(), have=None)
    with pytest.raises(Conflict):
        committing.commit(world.house, world.request(pub), ask)
    assert sweeping.sweep(world.house) == 1
    assert not world.store.objects
    assert sweeping.sweep(world.house) == 0


def test_an_upload_that_ran_out_is_swept(world: World, pub: Person) -> None:
    id = begin(world, pub)["upload"]["id"]
    assert world.store.multiparts
    assert sweeping.sweep(world.house) == 0
    world.clock.forward(limits.UPLOAD_TTL + 1)
    assert sweeping.sweep(world.house) == 1
    assert not world.store.multiparts
    with world.ledger.view() as view:
        row = view.find(Upload, id)
    assert row is not None
    assert row.status == publish.ABANDONED
    assert world.entry(world.size() - 1)["type"] == "abandon"


def test_the_first_publish_makes_the_collection(world: World, pub: Person) -> None:
    from broker.model import Collection

    with world.ledger.view() as view:
        assert view.find(Collection, "acme") is None
    world.publish(pub, "acme/llama@v1", {"a": b"x"})
    with world.ledger.view() as view:
        row = view.find(Collection, "acme")
    assert row is not None
    assert (row.readers, row.publishers) == (("acme",), ("acme",))
    with pytest.raises(Denied):
        world.publish(pub, "other/llama@v1", {"a": b"x"})


def test_what_a_broken_connection_left_behind_is_cleared_when_the_upload_goes_on(
    world: World, pub: Person
) -> None:
    """A store may keep an empty object of a client that died. URLs only create: it would stay for ever."""
    upload = begin(world, pub)["upload"]
    sizes = whole(world, upload)
    torn, kept = sorted(sizes, key=sizes.__getitem__, reverse=True)[:2]
    world.store.objects |= {torn: b"", kept: bytes(sizes[kept])}
    shown = committing.status(world.house, world.request(pub), upload["id"])
    assert len(shown["objects"]) + len(shown["segments"]) == 1
    assert begin(world, pub)["upload"]["id"] == upload["id"]
    assert set(world.store.objects) == {kept}
    assert len(world.store.objects[kept]) == sizes[kept]


def whole(world: World, upload: dict[str, str]) -> dict[str, int]:
    """The objects of the upload and their sizes."""
    with world.house.ledger.view() as view:
        row = view.find(Upload, upload["id"])
    assert row is not None
    return {name: size for name, (_, size) in upload_objects.expected_objects(row).items()}
