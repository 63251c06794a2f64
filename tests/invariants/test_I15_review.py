"""I15: a change that comes between a decision and its answer holds, for retries and plain reads too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.drafts import Draft
from broker.envelope import seal
from broker.errors import Denied, NotAuthenticated, NotFound
from broker.services import access, catalogue, committing, people, publish, revoking, tokens, uploads
from tests.world import MIB, Person, World


@pytest.fixture
def pub(world: World) -> Person:
    made = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(made, "acme/llama@v1", {"a": bytes(MIB)})
    return made


def race(world: World, meanwhile: Callable[[], Any]) -> None:
    """Just before the next append ``meanwhile`` happens."""
    inner = world.ledger
    done: list[bool] = []

    class Racing:
        def append(self, draft: Draft) -> Any:
            if not done:
                done.append(True)
                world.with_settings(ledger=inner)
                meanwhile()
            return inner.append(draft)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    world.with_settings(ledger=Racing())


def revoke_key(world: World, who: Person) -> None:
    revoking.revoke(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        kind="key",
        id=who.key.jkt,
        have=None,
    )


def leave_groups(world: World, id: str) -> None:
    people.set_principal(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        id=id,
        roles=None,
        groups=[],
        disabled=None,
        have=None,
    )


def _begin(world: World, who: Person) -> Any:
    wanted = uploads.UploadRequest(
        request_id=world.uuid(),
        collection="acme",
        name="llama",
        version="v2",
        kind="checkpoint",
        labels={"tier": "standard"},
        extent_size=MIB,
        files=(("a", 10),),
        recipient=seal.Recipient.generate().public_bytes,
    )
    return publish.begin(world.house, world.request(who), wanted)


def test_I15_a_retry_that_is_overtaken_by_a_revocation_releases_nothing(world: World, pub: Person) -> None:
    ana = world.add("ana", groups=["acme"])
    wanted = world.grant_request("acme/llama@v1")
    access.ask(world.house, world.request(ana), wanted)
    issued = len(world.store.issued)
    race(world, lambda: revoke_key(world, ana))
    with pytest.raises(NotAuthenticated):
        access.ask(world.house, world.request(ana), wanted)
    assert len(world.store.issued) == issued


def test_I15_upload_urls_that_are_overtaken_are_not_given(world: World, pub: Person) -> None:
    begun = _begin(world, pub)
    issued = len(world.store.issued)
    race(world, lambda: leave_groups(world, "pub"))
    with pytest.raises(Denied):
        committing.urls(
            world.house,
            world.request(pub),
            committing.UrlsRequest(upload=begun["upload"]["id"], parts=((0, 1),), segments=()),
        )
    assert len(world.store.issued) == issued


def test_I15_losing_the_right_to_publish_in_the_middle_is_recorded(world: World, pub: Person) -> None:
    begun = _begin(world, pub)
    people.set_principal(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        id="pub",
        roles=None,
        groups=[],
        disabled=None,
        have=None,
    )
    size = world.size()
    with pytest.raises(Denied):
        committing.urls(
            world.house,
            world.request(pub),
            committing.UrlsRequest(upload=begun["upload"]["id"], parts=((0, 1),), segments=()),
        )
    assert world.size() == size + 1
    entry = world.entry(size)
    assert (entry["type"], entry["artifact"], entry["version"]) == ("denial", "acme/llama", "v2")


def test_I15_a_read_of_the_catalogue_that_is_overtaken_is_made_again(world: World, pub: Person) -> None:
    ana = world.add("ana", groups=["acme"])
    race(world, lambda: leave_groups(world, "ana"))
    with pytest.raises(NotFound):
        catalogue.show_manifest(world.house, world.request(ana, "GET"), "acme", "llama", "v1")
    race(world, lambda: revoke_key(world, ana))
    with pytest.raises(NotAuthenticated):
        catalogue.whoami(world.house, world.request(ana, "GET"))


def test_I15_a_token_of_a_revoked_key_is_not_active(world: World) -> None:
    ana = world.add("ana")
    assert tokens.introspect(world.house, world.request(ana), text=ana.token)["active"] is True
    code = people.new_code(
        world.house, world.request(world.admin), request_id=world.uuid(), id="ana", have=None
    )
    other = world.enrol("user:ana", code["enrolment_code"])
    revoke_key(world, ana)
    assert tokens.introspect(world.house, world.request(other), text=ana.token) == {"active": False}
