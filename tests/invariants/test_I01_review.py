"""I01: what leaves is what its entry speaks of, and no refusal is told before it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker import limits
from broker.errors import Conflict, Denied, IntegrityFailure, LedgerUnavailable, RateLimited
from broker.model import Lease, Version
from broker.services import access, auditing, authn, catalogue, denials, people, policies, releasing
from broker.services.planning import plan_grant
from tests.world import MIB, Person, World


@pytest.fixture
def pub(world: World) -> Person:
    made = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(made, "acme/llama@v1", {"a": bytes(MIB)})
    return made


def test_I01_a_retry_never_opens_a_version_that_its_entry_does_not_name(world: World, pub: Person) -> None:
    ana = world.add("ana", groups=["acme"])
    wanted = world.grant_request("acme/llama")
    first = access.ask(world.house, world.request(ana), wanted)
    assert first.grant.version == "v1"
    world.publish(pub, "acme/llama@v2", {"a": bytes(2 * MIB)})
    issued = len(world.store.issued)
    with pytest.raises(Conflict):
        access.ask(world.house, world.request(ana), wanted)
    assert len(world.store.issued) == issued
    with world.ledger.view() as view:
        assert view.meter("user:ana") == MIB


def test_I01_a_release_checks_that_its_entry_names_the_version(world: World, pub: Person) -> None:
    ana = world.add("ana", groups=["acme"])
    first = world.ask(ana, "acme/llama@v1")
    world.publish(pub, "acme/llama@v2", {"a": bytes(MIB)})
    with world.ledger.view() as view:
        caller = authn.authenticate(world.house, view, world.request(ana))
        made = plan_grant(world.house, view, caller, world.grant_request("acme/llama@v1"), first.grant.id)
        other = view.find(Version, "acme", "llama", "v2")
    assert other is not None
    with world.ledger.view() as view:
        row = view.find(Lease, first.grant.id, 0)
    assert row is not None
    with pytest.raises(IntegrityFailure, match="another lease"):
        releasing.release(
            world.house,
            version=other,
            manifest=made.manifest,
            lease=row,
            recorded=first.recorded,
            recipient=world.recipient.public_bytes,
            ranges=False,
        )


def refusals(world: World, ana: Person) -> dict[str, Callable[[], Any]]:
    house, request = world.house, world.request
    dry = catalogue.DecisionRequest(
        request_id=world.uuid(),
        collection="acme",
        name="llama",
        version=None,
        action="read",
        principal="user:admin",
    )
    return {
        "principals": lambda: people.list_principals(house, request(ana, "GET")),
        "policies": lambda: policies.show(house, request(ana, "GET")),
        "dry run": lambda: catalogue.dry_run(house, request(ana), dry),
        "search": lambda: auditing.search(
            house, request(ana, "GET"), q="", since=None, until=None, after=None, limit=1
        ),
    }


@pytest.mark.parametrize("which", ["principals", "policies", "dry run", "search"])
def test_I01_every_denial_of_a_known_caller_is_recorded(world: World, which: str) -> None:
    ana = world.add("ana")
    size = world.size()
    with pytest.raises(Denied):
        refusals(world, ana)[which]()
    assert world.size() == size + 1
    entry = world.entry(size)
    assert (entry["type"], entry["principal"]) == ("denial", "user:ana")


def test_I01_a_denial_that_cannot_be_recorded_is_not_told(world: World) -> None:
    ana, inner = world.add("ana"), world.ledger

    class Full:
        def append(self, draft: Any) -> Any:
            raise LedgerUnavailable("the ledger cannot be written")

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    world.with_settings(ledger=Full())
    for refused in refusals(world, ana).values():
        with pytest.raises(LedgerUnavailable):
            refused()


def test_I01_a_flood_of_denials_that_stops_is_summed_up_all_the_same(world: World) -> None:
    ana = world.add("ana")
    for _ in range(limits.DENIALS_PER_MINUTE):
        with pytest.raises(Denied):
            people.list_principals(world.house, world.request(ana, "GET"))
    for _ in range(3):
        with pytest.raises(RateLimited):
            people.list_principals(world.house, world.request(ana, "GET"))
    size = world.size()
    denials.summarise(world.house)
    assert world.size() == size
    world.clock.forward(61)
    denials.summarise(world.house)
    assert world.size() == size + 1
    entry = world.entry(size)
    assert (entry["type"], entry["principal"], entry["counts"]) == (
        "denial-summary",
        "user:ana",
        {"denied": 3},
    )
    denials.summarise(world.house, force=True)
    assert world.size() == size + 1


def test_I01_two_long_queries_that_differ_at_the_end_are_two_entries(world: World) -> None:
    auditor = world.add("aud", roles=["auditor"])
    text = "x" * (limits.MAX_QUERY - 2 - 3)
    before = world.size()
    for end in ("aaa", "bbb", "bbb"):
        auditing.search(
            world.house,
            world.request(auditor, "GET"),
            q=f'"{text}{end}"',
            since=None,
            until=None,
            after=None,
            limit=1,
        )
    assert world.size() == before + 2
