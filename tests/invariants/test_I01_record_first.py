"""I01: nothing is released before its entry is durable and under a signed head; no record, no release."""

from __future__ import annotations

from typing import Any

import pytest

from broker.drafts import Appended, Draft
from broker.errors import LedgerUnavailable
from broker.ledger import receipt
from tests.world import MIB, Person, World


class Broken:
    """A ledger whose next appends fail: before they are done, or after (reported failed, but persisted)."""

    def __init__(self, inner: Any, *, persisted: bool) -> None:
        self._inner, self._persisted = inner, persisted

    def append(self, draft: Draft) -> Appended:
        if self._persisted:
            self._inner.append(draft)
        raise LedgerUnavailable("the record cannot be written")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def ana(world: World) -> Person:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a.bin": bytes(3 * MIB)})
    return world.add("ana", groups=["acme"])


@pytest.mark.parametrize("persisted", [False, True])
def test_I01_no_record_no_release(world: World, ana: Person, persisted: bool) -> None:
    issued = len(world.store.issued)
    world.with_settings(ledger=Broken(world.ledger, persisted=persisted))
    with pytest.raises(LedgerUnavailable):
        world.ask(ana, "acme/llama@v1")
    assert len(world.store.issued) == issued, "a URL was signed without a record"


@pytest.mark.parametrize("persisted", [False, True])
def test_I01_no_record_no_token(world: World, ana: Person, persisted: bool) -> None:
    world.with_settings(ledger=Broken(world.ledger, persisted=persisted))
    with pytest.raises(LedgerUnavailable):
        world.login(ana)


def test_I01_at_release_the_entry_is_durable_and_under_a_signed_head(world: World, ana: Person) -> None:
    seen: list[tuple[int, list[str]]] = []
    store, reader = world.store, world.open_ledger()

    class Watching:
        def get(self, name: str, **rest: Any) -> tuple[str, int]:
            with reader.view() as view:  # another connection: it sees what is committed, and nothing else
                size = view.tail().size
                entries = [view.entry(i) for i in range(size)]
            seen.append((size, [str(e) for e in entries if rest["grant"].encode() in e]))
            return store.get(name, **rest)

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    world.with_settings(presigner=Watching())
    released = world.ask(ana, "acme/llama@v1")
    reader.close()
    assert seen, "nothing was presigned"
    assert all(found for _, found in seen), "a URL was signed before its entry was durable"
    verified = receipt.verify_receipt(released.recorded.receipt, world.house.log.vkey)
    assert verified.head.size > verified.index


def test_I01_a_failing_outside_head_store_stops_the_release(world: World, ana: Person) -> None:
    def fail(*, force: bool = False) -> None:
        raise LedgerUnavailable("the outside store of tree heads cannot be written")

    issued = len(world.store.issued)
    world.with_settings(keep_head=fail)
    with pytest.raises(LedgerUnavailable):
        world.ask(ana, "acme/llama@v1")
    assert len(world.store.issued) == issued


def test_I01_every_release_has_its_entry(world: World, ana: Person) -> None:
    world.with_settings(lease_window=MIB)
    first = world.ask(ana, "acme/llama@v1")
    second = world.lease(ana, first.grant.id, (0, 1, 2))
    for released, number in ((first, 0), (second, 1)):
        entry = world.entry(released.recorded.index)
        assert entry["grant"] == first.grant.id
        assert entry["lease"] == number
        assert entry["recipient"].startswith("sha256:")
