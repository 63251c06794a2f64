"""I15: a revocation or change holds from the next request on, also for a decision that was under way."""

from __future__ import annotations

from typing import Any

import pytest

from broker.drafts import Draft
from broker.errors import Denied, GrantRevoked, InvalidToken, NotAuthenticated, NotFound
from broker.model import Key
from broker.services import authn, collections, people, policies, revoking
from tests.world import MIB, Person, World, policy_files


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(4 * MIB)})
    return world.add("ana", groups=["acme"])


def revoke(world: World, kind: str, id: str) -> None:
    revoking.revoke(
        world.house, world.request(world.admin), request_id=world.uuid(), kind=kind, id=id, have=None
    )


def change(world: World, id: str, **what: Any) -> None:
    fields = {"roles": None, "groups": None, "disabled": None, **what}
    people.set_principal(
        world.house, world.request(world.admin), request_id=world.uuid(), id=id, have=None, **fields
    )


def test_I15_a_revoked_grant_leases_nothing_more(world: World, ana: Person) -> None:
    grant = world.ask(ana, "acme/llama@v1").grant
    revoke(world, "grant", grant.id)
    with pytest.raises(GrantRevoked):
        world.lease(ana, grant.id, (0, 1, 1))


def test_I15_a_revoked_token_is_dead(world: World, ana: Person) -> None:
    with world.ledger.view() as view:
        caller = authn.authenticate(world.house, view, world.request(ana))
    revoke(world, "token", caller.token.id)
    with pytest.raises(InvalidToken):
        world.ask(ana, "acme/llama@v1")


def test_I15_a_revoked_key_is_dead(world: World, ana: Person) -> None:
    revoke(world, "key", ana.key.jkt)
    with pytest.raises(NotAuthenticated):
        world.ask(ana, "acme/llama@v1")


def test_I15_a_disabled_principal_is_refused_and_the_attempt_recorded(world: World, ana: Person) -> None:
    grant = world.ask(ana, "acme/llama@v1").grant
    change(world, "ana", disabled=True)
    with pytest.raises((Denied, NotFound)):
        world.ask(ana, "acme/llama@v1")
    with pytest.raises(Denied) as refused:
        world.lease(ana, grant.id, (0, 1, 1))
    assert refused.value.policies == ("disabled-principal",)
    assert world.entry(world.size() - 1)["decision"]["policies"] == ["disabled-principal"]
    change(world, "ana", disabled=False)
    assert world.lease(ana, grant.id, (0, 1, 1)).grant.id == grant.id


def test_I15_leaving_a_group_stops_the_next_lease(world: World, ana: Person) -> None:
    grant = world.ask(ana, "acme/llama@v1").grant
    change(world, "ana", groups=[])
    with pytest.raises(Denied):
        world.lease(ana, grant.id, (0, 1, 1))


def test_I15_a_changed_collection_and_policy_hold_at_once(world: World, ana: Person) -> None:
    grant = world.ask(ana, "acme/llama@v1").grant
    collections.set_collection(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        name="acme",
        readers=["others"],
        publishers=None,
        have=None,
    )
    with pytest.raises(Denied):
        world.lease(ana, grant.id, (0, 1, 1))
    files = {name: data.decode() for name, data in policy_files().items()}
    files["stop.cedar"] = '@id("stop")\nforbid (principal, action == Broker::Action::"read", resource);\n'
    policies.apply(world.house, world.request(world.admin), request_id=world.uuid(), files=files, have=None)
    with pytest.raises(Denied) as refused:
        world.lease(ana, grant.id, (0, 1, 1))
    assert refused.value.policies == ("stop",)


def test_I15_a_decision_under_way_is_made_again(world: World, ana: Person) -> None:
    """Between the decision and its record somebody revokes: the release must not happen."""
    inner, done = world.ledger, []

    class Racing:
        def append(self, draft: Draft) -> Any:
            if not done and any(b'"type":"grant"' in e.data for e in draft.entries):
                done.append(True)
                world.with_settings(ledger=inner)
                change(world, "ana", groups=[])
                world.with_settings(ledger=self)
            return inner.append(draft)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    world.with_settings(ledger=Racing())
    issued = len(world.store.issued)
    with pytest.raises(NotFound):
        world.ask(ana, "acme/llama@v1")
    assert done
    assert len(world.store.issued) == issued


def test_I15_another_replica_sees_it_too(world: World, ana: Person) -> None:
    replica = world.open_ledger()
    revoke(world, "key", ana.key.jkt)
    with replica.view() as view:
        key = view.find(Key, ana.key.jkt)
    replica.close()
    assert key is not None
    assert key.status == "revoked"


def test_I15_a_retry_after_a_revocation_releases_nothing(world: World, ana: Person) -> None:
    wanted = world.grant_request("acme/llama@v1")
    from broker.services import access

    grant = access.ask(world.house, world.request(ana), wanted).grant
    revoke(world, "grant", grant.id)
    with pytest.raises(GrantRevoked):
        access.ask(world.house, world.request(ana), wanted)
