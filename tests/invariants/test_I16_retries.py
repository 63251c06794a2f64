"""I16: a retry is the same entry and grant, charged once; another body under the id is a conflict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.errors import Conflict, OverBudget, ReplayedProof
from broker.ledger import merkle
from broker.services import access
from tests.world import MIB, Person, World


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(4 * MIB), "b": bytes(MIB)})
    return world.add("ana", groups=["acme"])


def test_I16_a_retry_is_the_first_outcome_again(world: World, ana: Person) -> None:
    wanted = world.grant_request("acme/llama@v1")
    first = access.ask(world.house, world.request(ana), wanted)
    with world.ledger.view() as view:
        charged = view.meter("user:ana")
    size = world.size()
    again = access.ask(world.house, world.request(ana), replace(wanted, have=first.recorded.head))
    assert (again.grant.id, again.recorded.index) == (first.grant.id, first.recorded.index)
    assert world.size() == size
    assert (
        world.open_lease(ana, again).files[0].extents[0].key
        == world.open_lease(ana, first).files[0].extents[0].key
    )
    with world.ledger.view() as view:
        assert view.meter("user:ana") == charged == 5 * MIB


def test_I16_another_body_under_the_id_is_a_conflict(world: World, ana: Person) -> None:
    wanted = world.grant_request("acme/llama@v1")
    access.ask(world.house, world.request(ana), wanted)
    for other in (replace(wanted, include=("a",)), replace(wanted, purpose="else")):
        with pytest.raises(Conflict):
            access.ask(world.house, world.request(ana), other)
    with pytest.raises(Conflict):
        access.ask(
            world.house,
            world.request(ana),
            world.grant_request("acme/llama@v1", request_id=wanted.request_id),
        )


def test_I16_the_same_proof_is_a_replay(world: World, ana: Person) -> None:
    request = world.request(ana)
    access.ask(world.house, request, world.grant_request("acme/llama@v1"))
    with pytest.raises(ReplayedProof):
        access.ask(world.house, request, world.grant_request("acme/llama@v1"))


def test_I16_an_extent_is_charged_once(world: World, ana: Person) -> None:
    for _ in range(3):
        world.ask(ana, "acme/llama@v1", include=("a",))
    world.ask(ana, "acme/llama@v1")
    with world.ledger.view() as view:
        assert view.meter("user:ana") == 5 * MIB


def test_I16_a_ceiling_without_room_is_a_recorded_deny(world: World, ana: Person) -> None:
    limited = [
        {
            "type": "artifact_access",
            "actions": ["describe", "read"],
            "identifier": "acme/llama",
            "max_bytes": 4 * MIB,
        }
    ]
    ana.token = world.login(ana, limited)
    world.ask(ana, "acme/llama@v1", include=("a",))
    issued, size = len(world.store.issued), world.size()
    with pytest.raises(OverBudget):
        world.ask(ana, "acme/llama@v1", include=("b",))
    assert len(world.store.issued) == issued
    assert world.size() == size + 1
    last = world.entry(size)
    assert (last["type"], last["decision"]["effect"]) == ("denial", "deny")


def test_I16_the_tree_is_what_its_entries_make(world: World, ana: Person) -> None:
    world.with_settings(lease_window=MIB)
    grant = world.ask(ana, "acme/llama@v1").grant
    for extent in range(1, 4):
        world.lease(ana, grant.id, (0, extent, extent))
    with world.ledger.view() as view:
        tail = view.tail()
        rows = list(view.entries(0, tail.size))
    assert [index for index, _, _ in rows] == list(range(tail.size))
    assert merkle.root_of([merkle.leaf_hash(data) for _, data, _ in rows]) == tail.root


def test_I16_leases_asked_for_at_once_get_numbers_of_their_own(world: World, ana: Person) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from broker.envelope import seal
    from broker.services import planning

    world.with_settings(lease_window=MIB)
    grant = world.ask(ana, "acme/llama@v1").grant

    def take(extent: int) -> int:
        recipient = seal.Recipient.generate()
        wanted = planning.LeaseRequest(
            request_id=world.uuid(),
            grant=grant.id,
            recipient=recipient.public_bytes,
            extents=((0, extent, extent),),
        )
        return int(access.lease(world.house, world.request(ana), wanted).lease["number"])

    with ThreadPoolExecutor(3) as pool:
        numbers = sorted(pool.map(take, range(1, 4)))
    assert numbers == [1, 2, 3]
