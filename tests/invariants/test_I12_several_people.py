"""I12: until several people can approve, what needs several people is refused to every single one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.errors import BrokerError, Denied
from broker.model import ActiveBundle, Collection, Enrolment, Principal
from broker.services import collections, people, policies
from tests.world import MIB, World, policy_files

READERS = {
    "an engineer": ["engineer"],
    "a publisher": ["publisher"],
    "a workload": ["workload"],
    "all roles at once": ["engineer", "publisher", "workload", "auditor", "admin"],
}

Change = Callable[[World], Any]


def _common(world: World) -> dict[str, Any]:
    return {"request_id": world.uuid(), "have": None}


def _add(role: str) -> Change:
    def change(world: World) -> Any:
        request = world.request(world.admin)
        return people.add_principal(
            world.house, request, id="new", roles=[role], groups=["acme"], **_common(world)
        )

    return change


def _set(role: str) -> Change:
    def change(world: World) -> Any:
        request = world.request(world.admin)
        return people.set_principal(
            world.house,
            request,
            id="ana",
            roles=["engineer", role],
            groups=None,
            disabled=None,
            **_common(world),
        )

    return change


def _new_code(world: World) -> Any:
    return people.new_code(world.house, world.request(world.admin), id="admin", **_common(world))


def _name_publishers(world: World) -> Any:
    request = world.request(world.admin)
    return collections.set_collection(
        world.house, request, name="acme", readers=None, publishers=["others"], **_common(world)
    )


def _apply_policy(world: World) -> Any:
    files = {name: text.decode() for name, text in policy_files().items()}
    files["more.cedar"] = '@id("more") permit (principal, action, resource);\n'
    return policies.apply(world.house, world.request(world.admin), files=files, **_common(world))


PROTECTED: dict[str, Change] = {
    "adding an admin": _add("admin"),
    "adding a publisher": _add("publisher"),
    "granting admin": _set("admin"),
    "granting publisher": _set("publisher"),
    "a new key for an admin": _new_code,
    "naming who may publish": _name_publishers,
    "applying policy": _apply_policy,
}


def _state(world: World) -> tuple[Any, ...]:
    with world.ledger.view() as view:
        return (
            list(view.list(Principal)),
            list(view.list(Collection)),
            list(view.list(Enrolment)),
            view.find(ActiveBundle, "active"),
        )


@pytest.fixture
def peopled(world: World) -> World:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": bytes(MIB)})
    world.publish(pub, "acme/llama@secret", {"a": bytes(MIB)}, labels={"tier": "critical"})
    world.add("ana", groups=["acme"])
    return world


@pytest.mark.parametrize("roles", READERS.values(), ids=READERS)
def test_I12_a_critical_version_is_read_on_nobodys_own_word(peopled: World, roles: list[str]) -> None:
    who = peopled.add("who", roles=roles, groups=["acme"])
    assert peopled.ask(who, "acme/llama@v1").lease
    with pytest.raises(BrokerError) as refused:
        peopled.ask(who, "acme/llama@secret")
    assert refused.value.code in ("denied", "needs_approval")
    entry = peopled.entry(peopled.size() - 1)
    assert entry["type"] == "denial"
    assert entry["version"] == "secret"
    assert entry["decision"]["policies"] == ["critical-needs-approval"]


@pytest.mark.parametrize("change", PROTECTED.values(), ids=PROTECTED)
def test_I12_a_protected_change_is_not_made_by_one_person(peopled: World, change: Change) -> None:
    peopled.with_settings(protected_changes=False)
    before = _state(peopled)
    with pytest.raises(Denied, match="protected change"):
        change(peopled)
    assert _state(peopled) == before


@pytest.mark.parametrize("change", PROTECTED.values(), ids=PROTECTED)
def test_I12_only_the_operators_word_lets_one_person_make_it(peopled: World, change: Change) -> None:
    before = _state(peopled)
    change(peopled)
    assert _state(peopled) != before


def test_I12_what_needs_one_person_is_still_done_by_one(peopled: World) -> None:
    peopled.with_settings(protected_changes=False)
    ben = peopled.add("ben", groups=["acme"])
    assert peopled.ask(ben, "acme/llama@v1").lease
