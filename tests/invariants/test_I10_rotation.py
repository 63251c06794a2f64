"""I10: the log's key changes on record; whoever pinned the one before is led to the next, by it alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.canonical import b64url
from broker.client.log_key import Shown, keep_with
from broker.client.settings import Profile, config_text
from broker.client.trust import LogMemory
from broker.errors import (
    BrokerError,
    ConfigurationError,
    IntegrityFailure,
    LedgerUnavailable,
    NotFound,
    RollbackDetected,
    Unreachable,
)
from broker.ledger import lineage, merkle, note, receipt
from broker.ledger.entry import build_entry
from broker.services import log_keys
from broker.services.heads import HeadKeeper, check_extends
from broker.services.house import House, LogIdentity
from broker.services.record import sign_head
from broker.storage.heads import FolderHeads
from tests.world import World


def new_key(house: House) -> LogIdentity:
    key = Ed25519PrivateKey.generate()
    return LogIdentity(
        origin=house.log.origin, vkey=note.vkey(house.log.origin, key.public_key()), sign=key.sign
    )


@pytest.fixture
def heads(world: World, tmp_path: Path) -> FolderHeads:
    return FolderHeads(tmp_path / "heads", origin=world.house.log.origin)


@pytest.fixture
def both(world: World, heads: FolderHeads) -> House:
    """The house with its key, and a new one beside it."""
    return keeping(
        world, replace(world.house, log=replace(world.house.log, also=(new_key(world.house),))), heads
    )


def keeping(world: World, house: House, heads: FolderHeads) -> House:
    house = replace(house, heads=heads)
    keeper = HeadKeeper(house, expect=world.ledger.expect, max_lag=0)
    world.house = replace(house, keep_head=keeper.keep)
    return world.house


def turned(house: House, *, alone: bool = False) -> House:
    """With the two keys in each other's place; ``alone`` without the one before."""
    new, former = house.log.also[0], replace(house.log, also=())
    return replace(house, log=replace(new, also=() if alone else (former,)))


def head_of(house: House) -> str:
    with house.ledger.view() as view:
        return sign_head(house, view.tail())


def shown(house: House) -> Shown:
    found = log_keys.show_keys(house)
    return Shown(
        vkeys=tuple(key["vkey"] for key in found["keys"]),
        statements=tuple(key["statement"] for key in found["keys"] if "statement" in key),
        head=found["head"],
    )


def proofs(house: House) -> Callable[[int, int], Sequence[str]]:
    def find(older: int, newer: int) -> Sequence[str]:
        with house.ledger.view() as view:
            return [b64url(node) for node in merkle.consistency_proof(older, newer, view.hashes)]

    return find


def memory(house: House, folder: Path | None, vkey: str, **more: object) -> LogMemory:
    settings = {"find_proof": proofs(house), "find_keys": lambda: shown(house), **more}
    return LogMemory(folder, vkey=vkey, **settings)  # type: ignore[arg-type]


def test_I10_two_keys_sign_the_same_head(world: World, both: House) -> None:
    former, new = (each.vkey for each in both.log.every)
    text = head_of(both)
    assert note.open_head(text, former) == note.open_head(text, new)
    assert text.count("\n— ") == 2


def test_I10_the_change_is_an_entry_that_the_key_before_signed(world: World, both: House) -> None:
    size = world.size()
    made = log_keys.rotate(both)
    entry = world.entry(size)
    former, new = both.verifiers()
    assert made == {"index": size, "vkey": new.vkey, "previous": former.vkey}
    assert (entry["type"], entry["use"], entry["vkey"]) == ("key-rotation", "log", new.vkey)
    assert (entry["kid"], entry["previous_kid"]) == (new.key_id.hex(), former.key_id.hex())
    text = shown(both).statements[0]
    assert receipt.verify_receipt(text, former).index == size
    assert lineage.follow(former.vkey, [text]).key == new
    # Again changes nothing, also when the process died before the head was kept.
    assert log_keys.rotate(both) == made
    assert world.size() == size + 1


def test_I10_settings_must_have_the_key_that_the_log_names(world: World, both: House) -> None:
    before = replace(both, log=replace(both.log, also=()))
    for house in (before, both):
        log_keys.check_keys(house)
    for house in (turned(both), turned(both, alone=True)):
        with pytest.raises(ConfigurationError, match="does not name"):
            log_keys.check_keys(house)
    log_keys.rotate(both)
    for house in (both, turned(both), turned(both, alone=True)):
        log_keys.check_keys(house)
    with pytest.raises(ConfigurationError, match="goes on under a key"):
        log_keys.check_keys(before)


def test_I10_a_change_needs_exactly_the_key_before_and_one_after(world: World, both: House) -> None:
    size = world.size()
    third = new_key(both)
    for log in (
        replace(both.log, also=()),
        replace(both.log, also=(*both.log.also, third)),
        turned(both).log,
        replace(third, also=both.log.also),
    ):
        with pytest.raises(ConfigurationError):
            log_keys.rotate(replace(both, log=log))
    assert world.size() == size
    made = log_keys.rotate(both)
    # Also once the keys have changed places: it keeps the statement again, should that be lost.
    assert log_keys.rotate(turned(both)) == made
    later = turned(both, alone=True)
    later = replace(later, log=replace(later.log, also=(third,)))
    log_keys.rotate(later)
    back = replace(both, log=replace(third, also=(replace(both.log, also=()),)))
    with pytest.raises(ConfigurationError, match="had before"):
        log_keys.rotate(back)
    assert world.size() == size + 2


def test_I10_it_changes_again_and_again(world: World, both: House, tmp_path: Path) -> None:
    first = both.log.vkey
    house = both
    for id in ("ana", "ben", "cem"):
        log_keys.rotate(house)
        world.add(id)
        house = turned(house, alone=True)
        house = replace(house, log=replace(house.log, also=(new_key(house),)))
    assert len(shown(house).vkeys) == 4
    kept: list[str] = []
    log = memory(house, None, first, keep_key=lambda vkeys, head: kept.extend(vkeys))
    assert log.open(head_of(house)).size == world.size()
    assert log.vkey == kept[-1] == house.log.vkey
    # From the middle too; what leads to a key says nothing of those before it.
    assert lineage.follow(shown(house).vkeys[2], shown(house).statements).key.vkey == house.log.vkey
    with pytest.raises(IntegrityFailure):
        memory(house, None, house.log.vkey).open(sign_alone(both, world.size()))


def sign_alone(house: House, size: int) -> str:
    head = note.TreeHead(origin=house.log.origin, size=size, root=bytes(32))
    return note.sign_head(head, note.parse_vkey(house.log.vkey), house.log.sign)


def test_I10_a_client_follows_while_both_sign_and_after(world: World, both: House, tmp_path: Path) -> None:
    former, new = (each.vkey for each in both.log.every)
    awake, asleep = memory(both, tmp_path / "a", former), memory(both, tmp_path / "b", former)
    for log in (awake, asleep):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "b").mkdir(exist_ok=True)
        log.observe(head_of(replace(both, log=replace(both.log, also=()))))
    awake.open(head_of(both))
    assert awake.vkey == former  # the log does not name it yet
    log_keys.rotate(both)
    awake = memory(both, tmp_path / "a", former)
    awake.observe(head_of(both))
    assert awake.vkey == new
    with pytest.raises(IntegrityFailure):
        awake.observe(head_of(replace(both, log=replace(both.log, also=()))))
    later = turned(both, alone=True)
    world.add("ana")
    asleep = memory(later, tmp_path / "b", former)
    have = asleep.have()
    assert have is not None
    size = note.open_head(have, former).size
    head = asleep.observe(head_of(later), have=have, consistency=proofs(later)(size, world.size()))
    assert (asleep.vkey, head.size) == (new, world.size())
    # What another process left behind under the new key is the profile's own.
    assert memory(later, tmp_path / "b", former).have() == head_of(later)


@pytest.mark.parametrize("change", ["cut", "other-log", "own-key", "flipped", "no-statement"])
def test_I10_nobody_else_leads_to_another_key(world: World, both: House, tmp_path: Path, change: str) -> None:
    former = both.log.vkey
    log_keys.rotate(both)
    later = turned(both, alone=True)
    thief = new_key(both)
    true = shown(later)
    if change == "cut":  # the statement, and a head that the new key signed over another tree
        false = replace(true, head=sign_alone(later, world.size()))
    elif change == "other-log":
        false = replace(true, statements=(true.statements[0].replace(both.log.origin, "other.example/log"),))
    elif change == "own-key":  # a key of the thief's, and a statement that it signed itself
        parsed = receipt.parse_receipt(true.statements[0])
        head = note.open_head(parsed.note, former)
        text = note.sign_head(head, note.parse_vkey(thief.vkey), thief.sign)
        false = replace(true, statements=(true.statements[0].replace(parsed.note, text),))
    elif change == "flipped":
        lines = true.statements[0].split("\n")
        lines[1] = lines[1][:60] + ("A" if lines[1][60] != "A" else "B") + lines[1][61:]
        false = replace(true, statements=("\n".join(lines),))
    else:
        false = replace(true, statements=())
    log = memory(later, None, former, find_keys=lambda: false)
    with pytest.raises((IntegrityFailure, RollbackDetected)):
        log.observe(head_of(later))
    assert log.vkey == former


def test_I10_what_a_client_saw_is_not_forgotten_with_the_key(
    world: World, both: House, tmp_path: Path
) -> None:
    """A log that went back cannot hide it behind a change of its key: nothing is pinned, nothing replaced."""
    former = both.log.vkey
    log_keys.rotate(both)
    later = turned(both, alone=True)
    (tmp_path / "treehead").write_text(seen := sign_alone(both, world.size() + 5))
    kept: list[str] = []
    log = memory(later, tmp_path, former, keep_key=lambda vkeys, head: kept.extend(vkeys))
    with pytest.raises((IntegrityFailure, RollbackDetected)):
        log.open(head_of(later))
    assert (log.vkey, kept) == (former, [])
    assert (tmp_path / "treehead").read_text() == seen


@pytest.mark.parametrize("change", [{"use": "token"}, {"vkey": "other"}, {"vkey": "same"}, {"vkey": None}])
def test_I10_a_statement_names_another_key_of_the_same_log(
    both: House, change: dict[str, str | None]
) -> None:
    key, new = both.verifiers()
    other = note.Verifier(name="other.example/log", public=new.public)
    members = {"kid": new.key_id.hex(), "previous_kid": key.key_id.hex(), "use": "log", "vkey": new.vkey}

    def statement(**changes: str | None) -> str:
        found = {name: value for name, value in {**members, **changes}.items() if value is not None}
        data = build_entry(type="key-rotation", time=1_760_000_000_000, salt=bytes(16), **found)
        head = note.TreeHead(origin=key.name, size=1, root=merkle.leaf_hash(data))
        return receipt.build_receipt(data, 0, [], note.sign_head(head, key, both.log.sign))

    assert lineage.follow(key.vkey, [statement()]).key == new
    vkeys = {"other": other.vkey, "same": key.vkey}
    wrong = {name: vkeys.get(str(value), value) for name, value in change.items()}
    with pytest.raises(IntegrityFailure):
        lineage.follow(key.vkey, [statement(**wrong)])


def test_I10_a_head_outside_that_the_former_key_signed_is_known(
    world: World, both: House, heads: FolderHeads
) -> None:
    log_keys.rotate(replace(both, keep_head=lambda *, force=False: None))
    text = sign_at(both, world.size())
    heads.publish(world.size(), text)
    later = replace(turned(both, alone=True), heads=heads)
    head = check_extends(later)
    assert head is not None
    assert head.size == world.size()


@pytest.mark.parametrize("size", [0, 1])
def test_I10_a_smaller_log_is_never_taken_for_the_one_that_was_seen(
    world: World, both: House, tmp_path: Path, size: int
) -> None:
    """A true head of earlier, or of nothing, would make a client forget what came after it."""
    former = both.log.vkey
    log_keys.rotate(both)
    later = turned(both, alone=True)
    (tmp_path / "treehead").write_text(seen := sign_at(both, world.size()))
    kept: list[str] = []
    old = replace(shown(later), head=sign_at(later, size))
    log = memory(
        later, tmp_path, former, find_keys=lambda: old, keep_key=lambda vkeys, head: kept.extend(vkeys)
    )
    with pytest.raises(RollbackDetected):
        log.open(head_of(later))
    assert (log.vkey, kept, (tmp_path / "treehead").read_text()) == (former, [], seen)


def test_I10_threads_that_meet_the_new_key_at_once_all_go_on(world: World, both: House) -> None:
    former = both.log.vkey
    log_keys.rotate(both)
    later = turned(both, alone=True)
    together = threading.Barrier(4)

    def find() -> Shown:
        return shown(later)

    log = memory(later, None, former, find_keys=find)
    text = head_of(later)

    def open_head(_: int) -> int:
        together.wait(10)
        return log.open(text).size

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_head, range(4))) == [world.size()] * 4


def test_I10_what_a_key_between_signed_is_the_profile_s_own(
    world: World, both: House, tmp_path: Path
) -> None:
    """Two changes while a job slept; its folder holds a head that only the key between them signed."""
    first = both.log.vkey
    log_keys.rotate(both)
    between = turned(both, alone=True)
    (tmp_path / "treehead").write_text(head_of(between))
    between = replace(between, log=replace(between.log, also=(new_key(between),)))
    log_keys.rotate(between)
    last = turned(between, alone=True)
    log = memory(last, tmp_path, first)
    log.observe(head_of(last))
    assert log.vkey == last.log.vkey
    assert memory(last, tmp_path, last.log.vkey, former=[first]).have() == head_of(last)


def test_I10_nobody_to_ask_does_not_hide_a_forged_head(world: World, both: House) -> None:
    def away() -> Shown:
        raise Unreachable("nobody answers")

    log = memory(both, None, both.log.vkey, find_keys=away)
    with pytest.raises(IntegrityFailure):
        log.open(sign_alone(replace(both, log=new_key(both)), 3))
    # And where the pinned key still signs, it does not stop anything.
    assert log.open(head_of(both)).size == world.size()


def test_I10_of_two_changes_at_once_one_is_made(world: World, both: House) -> None:
    other = replace(both, log=replace(both.log, also=(new_key(both),)))
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(log_keys.rotate, house) for house in (both, other)]
    failures = [each.exception() for each in done]
    assert sorted(type(each).__name__ for each in failures) == ["ConfigurationError", "NoneType"]
    assert len(shown(both).vkeys) == 2


def test_I10_a_profile_s_pin_moves_forward_only(world: World, both: House, tmp_path: Path) -> None:
    first, second = (each.vkey for each in both.log.every)
    third = new_key(both).vkey
    folder = tmp_path / "profile"
    folder.mkdir(mode=0o700)
    profile = Profile(
        folder=folder,
        server="http://127.0.0.1:1",
        principal="user:ana",
        issuer="http://127.0.0.1:1",
        origin=both.log.origin,
        vkey=first,
        store_hosts=(),
    )
    text = config_text(profile) + "\n# somebody's own words\n"
    (folder / "config.toml").write_text(text)
    (folder / "treehead").write_text(newest := sign_at(both, 3))
    keep = keep_with(profile)
    assert keep is not None
    keep([first, second, third], sign_at(both, 2))
    found = (folder / "config.toml").read_text()
    assert f'vkey = "{third}"' in found
    assert "# somebody's own words" in found
    assert (folder / "treehead").read_text() == newest
    assert (folder / "former-logs").read_text().split() == [first, second]
    # Another process, that has followed to the second key only, is late.
    keep([first, second], sign_at(both, 4))
    assert (folder / "config.toml").read_text() == found
    assert (folder / "treehead").read_text() == newest


def test_I10_a_given_up_key_cannot_stop_the_broker(world: World, both: House) -> None:
    """A head beyond the log shuts it when its key signs now; of a key before it may be forged."""
    log_keys.rotate(both)
    later = turned(both, alone=True)
    world.house = later
    old, now = sign_alone(both, 10**6), sign_alone(later, 10**6)
    seen = sign_at(both, world.size())
    with pytest.raises(NotFound):
        world.ask(world.admin, "acme/llama@v1", have=seen)
    with pytest.raises(RollbackDetected):
        world.ask(world.admin, "acme/llama@v1", have=old)
    assert not later.guard.is_shut
    with pytest.raises(RollbackDetected):
        world.ask(world.admin, "acme/llama@v1", have=now)
    assert later.guard.is_shut


def sign_at(house: House, size: int) -> str:
    with house.ledger.view() as view:
        head = note.TreeHead(
            origin=house.log.origin, size=size, root=merkle.frontier_at(size, view.hashes).root()
        )
    return note.sign_head(head, note.parse_vkey(house.log.vkey), house.log.sign)


def test_I10_replicas_under_different_keys_are_no_fork(world: World, both: House, heads: FolderHeads) -> None:
    before = keeping(world, replace(both, log=replace(both.log, also=())), heads)
    before.keep_head(force=True)
    keeping(world, both, heads).keep_head(force=True)
    log_keys.rotate(both)
    later = keeping(world, turned(both, alone=True), heads)
    later.keep_head(force=True)
    check_extends(later)
    newest = heads.newest()
    assert newest is not None
    with pytest.raises(BrokerError):
        heads.publish(newest[0], sign_alone(later, newest[0]))


def test_I10_without_the_kept_head_nobody_is_led(world: World, both: House) -> None:
    """The statement is a head that was kept. Where it is lost the answer says how to make it again."""
    log_keys.rotate(both)
    without = replace(both, ledger=_Forgetful(both.ledger))  # type: ignore[arg-type]
    with pytest.raises(LedgerUnavailable, match="not kept"):
        log_keys.show_keys(without)


class _Forgetful:
    """A ledger whose table of heads was emptied."""

    def __init__(self, ledger: object) -> None:
        self._ledger = ledger

    def view(self) -> object:
        ledger = self._ledger

        class Opened:
            def __enter__(self) -> object:
                self._real = ledger.view()  # type: ignore[attr-defined]
                view = self._real.__enter__()
                view.head = lambda size: None
                return view

            def __exit__(self, *exc: object) -> None:
                self._real.__exit__(*exc)

        return Opened()
