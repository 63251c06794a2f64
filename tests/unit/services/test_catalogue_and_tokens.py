"""What callers see of artifacts, of themselves and of their tokens."""

from __future__ import annotations

import pytest

from broker import limits
from broker.errors import Denied, EnrolmentRefused, InvalidGrant, InvalidRequest, NotFound, RateLimited
from broker.identity import enrolment as codes
from broker.services import catalogue, enrolment, people, tokens
from tests.world import URL, Person, World


@pytest.fixture
def pub(world: World) -> Person:
    who = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(who, "acme/llama@v1", {"a": b"1"})
    world.publish(who, "acme/llama@v2", {"a": b"2"})
    return who


def test_unknown_and_invisible_are_one_answer(world: World, pub: Person) -> None:
    eve = world.add("eve", groups=["elsewhere"])
    told = []
    for name in ("llama", "nothing"):
        with pytest.raises(NotFound) as refused:
            world.ask(eve, f"acme/{name}@v1")
        told.append((refused.value.what.replace(name, "X"), refused.value.why, refused.value.next))
        entry = world.entry(world.size() - 1)
        assert (entry["type"], entry["artifact"], entry["version"]) == ("denial", f"acme/{name}", "v1")
    assert told[0] == told[1]
    assert catalogue.list_artifacts(world.house, world.request(eve, "GET"))["artifacts"] == []


def test_newest_is_the_last_commit(world: World, pub: Person) -> None:
    shown = catalogue.show_version(world.house, world.request(pub, "GET"), "acme", "llama", None)
    assert shown["version"] == "v2"
    again = catalogue.show_version(world.house, world.request(pub, "GET"), "acme", "llama", shown["manifest"])
    assert again == shown
    listed = catalogue.show_artifact(world.house, world.request(pub, "GET"), "acme", "llama")
    assert [v["version"] for v in listed["versions"]] == ["v1", "v2"]


def test_auditors_and_admins_see_but_never_read(world: World, pub: Person) -> None:
    for who in (world.add("aud", roles=["auditor"]), world.admin):
        assert catalogue.list_artifacts(world.house, world.request(who, "GET"))["artifacts"]
        with pytest.raises(Denied):
            world.ask(who, "acme/llama@v1")


def test_whoami_lists_every_key_of_the_caller(world: World, pub: Person) -> None:
    code = people.new_code(
        world.house, world.request(world.admin), request_id=world.uuid(), id="pub", have=None
    )["enrolment_code"]
    second = world.enrol("user:pub", code)
    told = catalogue.whoami(world.house, world.request(pub, "GET"))
    assert {key["jkt"] for key in told["keys"]} == {pub.key.jkt, second.key.jkt}


def test_a_code_works_once_and_only_the_newest(world: World) -> None:
    made = world.new_code("ana")
    newer = people.new_code(
        world.house, world.request(world.admin), request_id=world.uuid(), id="ana", have=None
    )["enrolment_code"]
    with pytest.raises(EnrolmentRefused):
        world.enrol("user:ana", made)
    world.enrol("user:ana", newer)
    with pytest.raises(EnrolmentRefused):
        world.enrol("user:ana", newer)


def test_a_code_dies_after_an_hour_and_after_five_failures(world: World) -> None:
    made = world.new_code("ana")
    code = codes.parse_code(made)
    guess = Person(id="user:ana", key=world.admin.key, token="")
    for _ in range(limits.ENROLMENT_FAILURES):
        with pytest.raises(EnrolmentRefused):
            enrolment.enrol(
                world.house,
                world.request(guess, path="/v1/enrolments", token=""),
                request_id=world.uuid(),
                id=code.id.hex(),
                mac=bytes(32),
            )
    with pytest.raises(EnrolmentRefused):
        world.enrol("user:ana", made)
    late = people.new_code(
        world.house, world.request(world.admin), request_id=world.uuid(), id="ana", have=None
    )["enrolment_code"]
    world.clock.forward(limits.ENROLMENT_TTL + 1)
    world.admin.token = world.login(world.admin)
    with pytest.raises(EnrolmentRefused):
        world.enrol("user:ana", late)


def test_the_mac_is_for_one_server(world: World) -> None:
    made = world.new_code("ana")
    code = codes.parse_code(made)
    mac = codes.enrolment_mac(
        codes.secret_hash(code.secret), jkt=world.admin.key.jkt, url=URL + "0", vkey=world.house.log.vkey
    )
    with pytest.raises(EnrolmentRefused):
        enrolment.enrol(
            world.house,
            world.request(Person(id="user:ana", key=world.admin.key, token=""), token=""),
            request_id=world.uuid(),
            id=code.id.hex(),
            mac=mac,
        )


def test_introspection_tells_of_own_tokens_only(world: World, pub: Person) -> None:
    told = tokens.introspect(world.house, world.request(pub), text=pub.token)
    assert told["active"]
    assert told["sub"] == "user:pub"
    assert tokens.introspect(world.house, world.request(pub), text=world.admin.token) == {"active": False}
    assert tokens.introspect(world.house, world.request(pub), text="x") == {"active": False}
    tokens.revoke_own(world.house, world.request(pub), text=world.admin.token)
    catalogue.whoami(world.house, world.request(world.admin, "GET"))


def test_a_disabled_principal_gets_no_token(world: World, pub: Person) -> None:
    people.set_principal(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        id="pub",
        roles=None,
        groups=None,
        disabled=True,
        have=None,
    )
    with pytest.raises(InvalidGrant):
        world.login(pub)


def test_empty_details_get_no_token(world: World, pub: Person) -> None:
    assertion = "x"
    with pytest.raises(InvalidRequest):
        tokens.issue(world.house, world.request(pub, token=""), assertion=assertion, details=[])


def test_denials_past_the_rate_are_summed_up(world: World, pub: Person) -> None:
    eve = world.add("eve")
    for _ in range(limits.DENIALS_PER_MINUTE):
        with pytest.raises(NotFound):
            world.ask(eve, "acme/llama@v1")
    size = world.size()
    for _ in range(3):
        with pytest.raises(RateLimited):
            world.ask(eve, "acme/llama@v1")
    assert world.size() == size
    world.clock.forward(61)
    with pytest.raises(NotFound):
        world.ask(eve, "acme/llama@v1")
    assert [world.entry(i)["type"] for i in range(size, world.size())] == ["denial", "denial-summary"]
    assert world.entry(world.size() - 1)["counts"] == {"denied": 3}


def test_the_last_administrator_stays(world: World) -> None:
    from broker.errors import Conflict

    for change in ({"disabled": True}, {"roles": ["engineer"]}):
        fields = {"roles": None, "groups": None, "disabled": None, **change}
        with pytest.raises(Conflict):
            people.set_principal(
                world.house,
                world.request(world.admin),
                request_id=world.uuid(),
                id="admin",
                have=None,
                **fields,  # type: ignore[arg-type]
            )
