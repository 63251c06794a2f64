"""I12: enabling an administrator again is granting that role, and as protected."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import Denied
from broker.services import people
from tests.world import World


def change(world: World, id: str, **what: Any) -> None:
    fields = {"roles": None, "groups": None, "disabled": None, **what}
    people.set_principal(
        world.house, world.request(world.admin), request_id=world.uuid(), id=id, have=None, **fields
    )


@pytest.mark.parametrize("role", ["admin", "publisher"])
def test_I12_one_person_does_not_enable_a_protected_role_again(world: World, role: str) -> None:
    world.add("bob", roles=[role])
    world.add("ana")
    change(world, "bob", disabled=True)
    change(world, "ana", disabled=True)
    world.with_settings(protected_changes=False)
    change(world, "ana", disabled=False)
    with pytest.raises(Denied, match="protected change"):
        change(world, "bob", disabled=False)
    change(world, "bob", roles=["engineer"], disabled=False)
