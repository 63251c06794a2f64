"""Narrower tokens from wider ones: for the same key, or for one that the holder names."""

from __future__ import annotations

from typing import Any

import pytest

from broker import jose, limits
from broker.errors import (
    Denied,
    InvalidGrant,
    InvalidRequest,
    InvalidSubjectToken,
    InvalidToken,
    OverBudget,
    ScopeExceeded,
)
from broker.services import catalogue, collections, policies, tokens
from tests.foreign import FakeIssuer, read_details
from tests.world import EVERYTHING, MIB, Person, World, policy_files


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {f"s{i}": bytes(MIB) for i in range(4)})
    return world.add("ana", groups=["acme"])


def test_a_child_covers_what_both_cover_and_ends_with_its_parent(world: World, ana: Person) -> None:
    world.clock.forward(60)
    child = world.mint(ana, read_details("acme/llama@v1", paths=["s0"]))
    row, parent = world.token_row(child), world.token_row(ana)
    assert row.chain == (parent.id,)
    assert row.expires == parent.expires
    assert row.jkt == ana.key.jkt
    assert world.ask(child, "acme/llama@v1", include=("s0",)).grant.files == 1
    with pytest.raises(ScopeExceeded):
        world.ask(child, "acme/llama@v1")


def test_a_delegated_key_is_no_row_and_reads(world: World, ana: Person) -> None:
    rank = world.mint(ana, read_details("acme/llama"), key=jose.PrivateKey.generate("ES256"), ttl=60)
    released = world.ask(rank, "acme/llama@v1")
    assert released.grant.jkt == rank.key.jkt
    assert world.open_lease(rank, released)
    me = catalogue.whoami(world.house, world.request(rank, "GET"))
    assert me["principal"]["id"] == "user:ana"
    assert me["jkt"] == rank.key.jkt
    assert rank.key.jkt not in {key["jkt"] for key in me["keys"]}
    with pytest.raises(InvalidGrant):
        world.login(rank)


def test_the_entry_names_minter_and_holder(world: World, ana: Person) -> None:
    rank = world.mint(ana, key=jose.PrivateKey.generate())
    entry = world.entry(world.size() - 1)
    assert entry["type"] == "token"
    assert (entry["principal"], entry["jkt"], entry["token"]) == (
        "user:ana",
        rank.key.jkt,
        world.token_row(rank).id,
    )
    parent = world.token_row(ana).id
    assert entry["parent"] == parent
    assert entry["minter"] == {"principal": "user:ana", "jkt": ana.key.jkt, "token": parent}
    assert entry["decision"]["policies"] == ["owners-mint"]
    assert entry["action"] == "mint"


def test_a_workloads_children_are_of_the_same_identity(world: World) -> None:
    issuer = FakeIssuer()
    world.register(issuer)
    job = world.exchange(issuer.token(world.clock.now()))
    rank = world.mint(job, key=jose.PrivateKey.generate())
    entry = world.entry(world.size() - 1)
    assert entry["issuer"] == "ci"
    assert world.token_row(rank).identity == world.token_row(job).identity


def test_a_key_of_somebody_else_or_a_revoked_one_is_not_named(world: World, ana: Person) -> None:
    bob = world.add("bob", groups=["acme"])
    gone = world.add("gone")
    world.revoke("key", gone.key.jkt)
    for key in (bob.key, gone.key):
        before = world.size()
        with pytest.raises(Denied):
            world.mint(ana, key=key)
        assert world.entry(before)["type"] == "denial"
        assert world.entry(before)["action"] == "mint"


def test_an_own_key_of_another_machine_may_be_named(world: World, ana: Person) -> None:
    from broker.services import people

    code = people.new_code(
        world.house, world.request(world.admin), request_id=world.uuid(), id="ana", have=None
    )["enrolment_code"]
    laptop = world.enrol("user:ana", code)
    there = world.mint(ana, key=laptop.key)
    assert world.ask(there, "acme/llama@v1").grant.jkt == laptop.key.jkt
    world.revoke("key", laptop.key.jkt)
    with pytest.raises(InvalidToken):
        world.ask(there, "acme/llama@v1")
    with pytest.raises(Denied):
        world.mint(ana, key=laptop.key)


@pytest.mark.parametrize("details", [EVERYTHING, read_details(actions=("publish",)), EVERYTHING[2:]])
def test_publishing_and_administration_stay_with_their_key(
    world: World, ana: Person, details: list[Any]
) -> None:
    with pytest.raises(Denied) as refused:
        world.mint(ana, details, key=jose.PrivateKey.generate())
    assert refused.value.policies == ("delegated-keys-read",)
    assert world.mint(ana, details).id == "user:ana"


def test_a_delegated_key_does_not_publish_even_where_policy_lets_it_be_minted(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    files = {name: data.decode() for name, data in policy_files().items()}
    files["tokens.cedar"] = '@id("any")\npermit (principal, action == Broker::Action::"mint", resource);\n'
    policies.apply(world.house, world.request(world.admin), request_id=world.uuid(), files=files, have=None)
    rank = world.mint(pub, EVERYTHING, key=jose.PrivateKey.generate())
    with pytest.raises(ScopeExceeded):
        world.publish(rank, "acme/llama@v1", {"a": b"1"})


def test_policy_decides_what_is_minted(world: World, ana: Person) -> None:
    files = {name: data.decode() for name, data in policy_files().items()}
    files["more.cedar"] = (
        '@id("bounded")\nforbid (principal, action == Broker::Action::"mint", resource)\n'
        "unless { context.mint.own_key || (context.mint.max_bytes > 0 && context.mint.max_bytes <= 1000 &&\n"
        '  context.mint.ttl <= 60 && context.mint.identifiers == ["acme/llama@v1"]) };\n'
    )
    policies.apply(world.house, world.request(world.admin), request_id=world.uuid(), files=files, have=None)
    key = jose.PrivateKey.generate()
    narrow = read_details("acme/llama@v1", max_bytes=1000)
    wide = [
        (narrow, {"ttl": 61}),
        (read_details("acme/llama@v1"), {"ttl": 60}),
        (read_details("acme/llama@v1", max_bytes=1001), {"ttl": 60}),
        (read_details("acme/*", max_bytes=1000), {"ttl": 60}),
        (narrow + read_details("acme/llama@v1"), {"ttl": 60}),
    ]
    for details, wanted in wide:
        with pytest.raises(Denied):
            world.mint(ana, details, key=key, **wanted)
    assert world.mint(ana, narrow, key=key, ttl=60).id == "user:ana"


def test_a_chain_has_four_levels_at_most(world: World, ana: Person) -> None:
    who = ana
    for _ in range(limits.MAX_LIMITS_LEVELS - 1):
        who = world.mint(who, key=jose.PrivateKey.generate())
    assert len(world.token_row(who).chain) == 3
    assert world.ask(who, "acme/llama@v1").grant.jkt == who.key.jkt
    with pytest.raises(InvalidRequest):
        world.mint(who)


@pytest.mark.parametrize(
    "wanted", [{"ttl": 0}, {"ttl": -1}, {"ttl": limits.ACCESS_TOKEN_TTL + 1}], ids=["none", "past", "long"]
)
def test_a_time_to_live_is_within_bounds(world: World, ana: Person, wanted: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        world.mint(ana, **wanted)


def test_what_is_no_token_of_ours_is_not_minted_from(world: World, ana: Person) -> None:
    issuer = FakeIssuer()
    world.register(issuer)
    before = world.size()
    for text in (issuer.token(world.clock.now()), ana.token[:-4] + "AAAA", "x", ""):
        with pytest.raises(InvalidSubjectToken):
            world.mint(Person(id=ana.id, key=ana.key, token=text))
    assert world.size() == before


def test_a_ceiling_counts_all_who_descend(world: World, ana: Person) -> None:
    job = world.mint(ana, read_details("acme/llama", max_bytes=2 * MIB))
    first, second = (
        world.mint(job, read_details("acme/llama", paths=[f"s{i}"]), key=jose.PrivateKey.generate())
        for i in (0, 1)
    )
    third = world.mint(job, read_details("acme/llama", paths=["s2"]), key=jose.PrivateKey.generate())
    world.ask(first, "acme/llama@v1", include=("s0",))
    world.ask(second, "acme/llama@v1", include=("s1",))
    with pytest.raises(OverBudget):
        world.ask(third, "acme/llama@v1", include=("s2",))
    told = tokens.introspect(world.house, world.request(third), text=third.token)
    [element] = told["effective"]
    assert element["identifiers"] == ["acme/llama"]
    assert element["paths"] == [["s2"]]
    assert element["ceilings"] == [
        {"token": world.token_row(job).id, "max_bytes": 2 * MIB, "opened": 2 * MIB, "left": 0}
    ]
    assert told["effective_complete"] is True
    assert told["identity"] is None


def test_a_bundle_of_the_first_release_goes_on_deciding_and_mints_nothing(world: World, ana: Person) -> None:
    from broker.drafts import Draft
    from broker.model import ActiveBundle, BundleRow
    from broker.policy.bundle import build_bundle, bundle_bytes
    from broker.services.record import new_entry

    files = policy_files()
    del files["tokens.cedar"]
    schema = files["schema.cedarschema"].decode()
    schema = schema[: schema.index("  type MintContext")] + schema[schema.index("  action describe") :]
    schema = schema[: schema.index("  // The resource is the token")] + "}\n"
    schema = schema.replace("    enabled: Bool,\n  } tags String;", "    enabled: Bool,\n  };")
    old = build_bundle({**files, "schema.cedarschema": schema.encode()})
    with pytest.raises(InvalidRequest):
        world.house.check_policy({**files, "schema.cedarschema": schema.encode()})
    with world.ledger.view() as view:
        now = view.now
    world.ledger.append(
        Draft(
            entries=(new_entry(world.house, time=now, type="policy", bundle=old.digest),),
            rows=(BundleRow(digest=old.digest, body=bundle_bytes(old)), ActiveBundle(digest=old.digest)),
            bumps_epoch=True,
        )
    )
    assert world.ask(ana, "acme/llama@v1").grant.principal == "user:ana"
    with pytest.raises(Denied):
        world.mint(ana)
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme"]))
    job = world.exchange(issuer.token(world.clock.now()))
    with pytest.raises(Exception, match="not found"):
        world.ask(job, "acme/llama@v1")


def test_collections_are_set_by_a_token_minted_for_ones_own_key(world: World) -> None:
    child = world.mint(world.admin, EVERYTHING)
    made = collections.set_collection(
        world.house,
        world.request(child),
        request_id=world.uuid(),
        name="acme",
        readers=["acme"],
        publishers=None,
        have=None,
    )
    assert made["name"] == "acme"
