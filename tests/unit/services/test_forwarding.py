"""Forwarding over a real log and real receivers: everything, in order, each destination for itself."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker import limits, runtime
from broker.canonical import b64url, canonical_bytes
from broker.db.cursors import CursorStore
from broker.db.engine import open_engine
from broker.drafts import Draft
from broker.errors import (
    ConfigurationError,
    LedgerUnavailable,
    RollbackDetected,
    Unavailable,
)
from broker.forwarding.jsonl import LineFile
from broker.forwarding.syslog import UNSURE, SyslogReceiver
from broker.forwarding.webhook import WebhookReceiver, parse_secrets
from broker.ledger import merkle, ocsf
from broker.outbox import Receiver
from broker.services.forwarding import Destination, Forwarder, describe, render_as
from broker.services.record import new_entry
from broker.web.courier import Courier, forward_once, pause_after
from tests.receivers import SECRET, SyslogServer, WebhookServer, wait_for, webhook
from tests.world import World

ORIGIN = "test.example/log"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def cursors(world: World) -> Iterator[CursorStore]:
    made = open_cursors(world)
    yield made
    made.close()


def open_cursors(world: World) -> CursorStore:
    return CursorStore(
        open_engine(world.url, pool_size=2), integrity_key=world.integrity_key, clock=world.clock
    )


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with webhook() as made:
        yield made


def grow(world: World, count: int, *, type: str = "abandon", **members: Any) -> int:
    """Entries at the end of the log; its size."""
    before, now = world.size(), world.clock.now()
    given = [members or {"upload": f"u_{before}_{at}"} for at in range(count)]
    entries = tuple(new_entry(world.house, time=now, type=type, **each) for each in given)
    world.ledger.append(Draft(entries=entries))
    return world.size()


def to(receiver: Receiver, name: str = "siem", **changes: Any) -> Destination:
    options: dict[str, Any] = {
        "render": render_as("jsonl", origin=ORIGIN, version="1"),
        "batch": 7,
        "timeout": 2.0,
    }
    return Destination(name=name, kind="webhook", receiver=receiver, **{**options, **changes})


def hook_receiver(world: World, url: str) -> WebhookReceiver:
    return WebhookReceiver(
        url,
        secrets=parse_secrets(SECRET),
        origin=ORIGIN,
        format="jsonl",
        context=ssl.create_default_context(),
        clock=runtime.SystemClock(),
        timeout=2.0,
    )


def syslog_receiver(port: int, **changes: Any) -> SyslogReceiver:
    options: dict[str, Any] = {"context": None, "hostname": "h", "version": "1", "timeout": 2.0}
    return SyslogReceiver("127.0.0.1", port, **{**options, **changes})


def test_all_of_the_log_arrives_in_order_and_can_be_checked(
    world: World, cursors: CursorStore, hook: WebhookServer
) -> None:
    size = grow(world, 20)
    assert forward_once(Forwarder(world.house, cursors, to(hook_receiver(world, hook.url)))) == size
    assert hook.indices == list(range(size))
    for event in [event for body in hook.bodies for event in body["data"]["events"]]:
        # What the receiver has is the entry itself: it can be proven against a signed tree head.
        assert b64url(merkle.leaf_hash(canonical_bytes(event["entry"]))) == event["leaf_hash"]
        assert event["entry"] == world.entry(event["index"])
        assert event["origin"] == ORIGIN
    assert forward_once(Forwarder(world.house, cursors, to(hook_receiver(world, hook.url)))) == 0


def test_a_batch_that_failed_comes_again_as_it_was(
    world: World, cursors: CursorStore, hook: WebhookServer
) -> None:
    grow(world, 1)
    sender = Forwarder(world.house, cursors, to(hook_receiver(world, hook.url), batch=100))
    hook.answers = [500]
    with pytest.raises(Unavailable):
        sender.step()
    size = grow(world, 3)
    assert sender.step().moved == size - 3
    assert hook.ids[0] == hook.ids[1]
    assert sender.step().moved == 3
    assert hook.indices == list(range(size))
    assert not sender.step().moved


def test_a_receiver_that_is_down_holds_up_nobody_else(
    world: World, cursors: CursorStore, tmp_path: Path, hook: WebhookServer
) -> None:
    size = grow(world, 10)
    hook.answers = [500] * 1_000
    down = Courier(
        Forwarder(world.house, cursors, to(hook_receiver(world, hook.url), "down")), world.house.entropy
    )
    path = tmp_path / "out.jsonl"
    up = Courier(Forwarder(world.house, cursors, to(LineFile(path), "up")), world.house.entropy)
    for courier in (down, up):
        courier.start()
    wait_for(lambda: path.exists() and len(path.read_bytes().splitlines()) == size and len(hook.ids) > 1)
    shown = describe(world.house, cursors, to(LineFile(path), "down"))
    assert (shown["next"], shown["lag"], shown["state"]) == (0, size, "failing")
    assert shown["failures"] > 0
    assert shown["error"] == "the receiver answers 500"
    hook.answers.clear()
    wait_for(lambda: len(hook.indices) == size)
    assert hook.indices == list(range(size))
    assert down.is_running
    assert up.is_running
    for courier in (down, up):
        courier.stop()
        courier.join()
    shown = describe(world.house, cursors, to(LineFile(path), "down"))
    assert (shown["lag"], shown["failures"], shown["error"], shown["state"]) == (0, 0, "", "stopped")


def test_a_receiver_that_is_gone_ends_its_courier_alone(
    world: World, cursors: CursorStore, hook: WebhookServer
) -> None:
    grow(world, 3)
    hook.answers = [410]
    sender = Forwarder(world.house, cursors, to(hook_receiver(world, hook.url)))
    courier = Courier(sender, world.house.entropy)
    courier.start()
    courier.join()
    assert isinstance(courier.ended, ConfigurationError)
    assert not courier.is_running
    assert len(hook.ids) == 1
    shown = describe(world.house, cursors, sender.destination)
    assert (shown["next"], shown["state"]) == (0, "stopped")
    assert "gone" in shown["error"]


def test_an_answer_byte_by_byte_does_not_keep_the_process(
    world: World, cursors: CursorStore, hook: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.web.courier.GRACE_SECONDS", 0.0)
    over = threading.Event()

    def drip(handler: Any) -> None:
        for _ in range(1_000):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            if over.wait(0.05):
                return

    hook.answers = [drip]
    where = to(hook_receiver(world, hook.url), timeout=0.3)
    courier = Courier(Forwarder(world.house, cursors, where), world.house.entropy)
    courier.start()
    wait_for(lambda: hook.ids)
    courier.stop()
    courier.join()
    assert describe(world.house, cursors, where)["next"] == 0
    over.set()
    courier._thread.join()


def test_a_courier_outlives_a_database_that_does_not_answer(
    world: World, cursors: CursorStore, hook: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = grow(world, 3)
    away = threading.Event()
    away.set()
    real = world.ledger.view

    def view() -> Any:
        if away.is_set():
            raise LedgerUnavailable("the database does not answer")
        return real()

    monkeypatch.setattr(world.ledger, "view", view)
    courier = Courier(
        Forwarder(world.house, cursors, to(hook_receiver(world, hook.url))), world.house.entropy
    )
    courier.start()
    wait_for(lambda: cursors.find("siem")[0] is not None and cursors.find("siem")[0].failures)  # type: ignore[union-attr]
    away.clear()
    wait_for(lambda: len(hook.indices) == size)
    courier.stop()
    courier.join()


def test_another_begins_where_the_first_was_killed(
    world: World, cursors: CursorStore, hook: WebhookServer
) -> None:
    size = grow(world, 15)
    first = Forwarder(world.house, cursors, to(hook_receiver(world, hook.url)))
    assert first.step().moved == 7
    second = Forwarder(world.house, cursors, to(hook_receiver(world, hook.url)))
    assert not second.step().held
    world.clock.forward(60)  # the lease of the first is over
    assert second.step().moved == 7
    # The first was only slow: what it does next it does not do twice.
    sent = len(hook.ids)
    assert not first.step().held
    assert len(hook.ids) == sent + 1  # it had the destination in its hands: at least once
    second.step()
    second.step()
    assert sorted(set(hook.indices)) == list(range(size))
    first.close()
    second.close()


class Breaking(CursorStore):
    """Cursors whose database is lost at the n-th write: before it is durable, or after."""

    def __init__(self, world: World, *, at: int, persisted: bool) -> None:
        super().__init__(
            open_engine(world.url, pool_size=2), integrity_key=world.integrity_key, clock=world.clock
        )
        self.left = at
        self.persisted = persisted

    def move(self, *args: Any, **members: Any) -> bool:
        self.left -= 1
        if self.left or self.persisted:
            done = super().move(*args, **members)
            if self.left:
                return done
        raise LedgerUnavailable("a cursor cannot be written")


@pytest.mark.parametrize("persisted", [False, True], ids=["failed", "failed-but-persisted"])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("killed", [False, True], ids=["goes-on", "killed"])
def test_a_cursor_that_cannot_be_moved_skips_nothing(
    world: World, hook: WebhookServer, at: int, persisted: bool, killed: bool
) -> None:
    size = grow(world, 16)
    broken = Breaking(world, at=at, persisted=persisted)
    sender = Forwarder(world.house, broken, to(hook_receiver(world, hook.url)))
    for _ in range(at - 1):
        sender.step()
    with pytest.raises(LedgerUnavailable):
        sender.step()
    if killed:
        world.clock.forward(60)
        sender = Forwarder(world.house, open_cursors(world), to(hook_receiver(world, hook.url)))
    for _ in range(6):
        sender.step()
    assert list(dict.fromkeys(hook.indices)) == list(range(size))
    # Doubles are what was under way, and no more.
    assert len(hook.indices) <= size + 7
    assert describe(world.house, broken, sender.destination)["lag"] == 0
    sender.close()
    broken.close()


def test_from_now_leaves_out_what_was_before(world: World, cursors: CursorStore, hook: WebhookServer) -> None:
    size = grow(world, 5)
    where = to(hook_receiver(world, hook.url), from_now=True)
    assert describe(world.house, cursors, where)["lag"] == 0
    sender = Forwarder(world.house, cursors, where)
    assert sender.step().moved == 0
    assert grow(world, 2) == size + 2
    sender.step()
    sender.close()
    assert hook.indices == [size, size + 1]


def test_only_the_types_that_it_wants(world: World, cursors: CursorStore, hook: WebhookServer) -> None:
    size = grow(world, 30)
    where = to(hook_receiver(world, hook.url), types=frozenset({"genesis", "enrolment"}))
    assert forward_once(Forwarder(world.house, cursors, where)) == size
    found = [event for body in hook.bodies for event in body["data"]["events"]]
    assert {event["entry"]["type"] for event in found} == {"genesis", "enrolment"}
    assert describe(world.house, cursors, where)["lag"] == 0


def test_a_batch_is_bounded_in_bytes(
    world: World, cursors: CursorStore, hook: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = grow(world, 12)
    monkeypatch.setattr(limits, "MAX_FORWARD_BATCH", 700)
    where = to(hook_receiver(world, hook.url), batch=100)
    assert forward_once(Forwarder(world.house, cursors, where)) == size
    assert hook.indices == list(range(size))
    sizes = [sum(len(str(event)) for event in body["data"]["events"]) for body in hook.bodies]
    assert len(sizes) >= size / 3
    # One that is larger than that alone still goes out.
    monkeypatch.setattr(limits, "MAX_FORWARD_BATCH", 1)
    grow(world, 3)
    assert forward_once(Forwarder(world.house, cursors, where)) == 3
    assert hook.indices == list(range(size + 3))


def test_what_a_broken_syslog_connection_may_have_lost_comes_again(
    world: World, cursors: CursorStore
) -> None:
    size = grow(world, 10)
    server = SyslogServer()
    sender = Forwarder(world.house, cursors, to(syslog_receiver(server.port), batch=100))
    assert sender.step().moved == size
    wait_for(lambda: len(server.messages) == size)
    server.reset()
    wait_for(lambda: sender.step().moved)
    wait_for(lambda: len(server.messages) == 2 * size)
    assert server.indices == [*range(size), *range(size)]
    # A planned end: the receiver says that it has read everything.
    sender.close()
    assert forward_once(Forwarder(world.house, cursors, to(syslog_receiver(server.port)))) == 0
    server.close()


def test_after_a_killed_sender_the_newest_syslog_messages_come_again(
    world: World, cursors: CursorStore
) -> None:
    size = grow(world, 10)
    server = SyslogServer()
    killed = Forwarder(world.house, cursors, to(syslog_receiver(server.port), batch=100))
    assert killed.step().moved == size
    world.clock.forward(60)
    assert forward_once(Forwarder(world.house, cursors, to(syslog_receiver(server.port)))) == size
    wait_for(lambda: len(server.messages) == 2 * size)
    server.close()


def test_forwarders_that_follow_each_other_while_a_receiver_is_down_go_back_once(
    world: World, cursors: CursorStore
) -> None:
    size = grow(world, 600)
    server = SyslogServer()
    killed = Forwarder(world.house, cursors, to(syslog_receiver(server.port), batch=1_000))
    assert killed.step().moved == size
    server.close()
    for _ in range(5):
        world.clock.forward(600)
        follower = Forwarder(world.house, cursors, to(syslog_receiver(server.port), batch=1_000))
        with pytest.raises(Unavailable):
            follower.step()
        follower.failed("it is down")
    shown = describe(world.house, cursors, killed.destination)
    assert (shown["lag"], shown["error"]) == (UNSURE, "it is down")


def test_what_is_in_doubt_is_durable_before_a_failure_is(world: World, cursors: CursorStore) -> None:
    size = grow(world, 10)
    server = SyslogServer()
    sender = Forwarder(world.house, cursors, to(syslog_receiver(server.port), batch=size - 1))
    assert sender.step().moved == size - 1
    wait_for(lambda: len(server.messages) == size - 1)
    server.close()
    with pytest.raises(Unavailable):
        wait_for(lambda: sender.step() and None)
    sender.failed("it is down")
    # Killed here: the next one has not seen the connection that broke.
    world.clock.forward(600)
    follower = Forwarder(world.house, cursors, to(syslog_receiver(server.port)))
    with pytest.raises(Unavailable):
        follower.step()
    assert describe(world.house, cursors, sender.destination)["next"] == 0


def test_an_end_that_nobody_confirms_is_as_if_killed(world: World, cursors: CursorStore) -> None:
    size = grow(world, 10)
    server = SyslogServer()
    sender = Forwarder(world.house, cursors, to(syslog_receiver(server.port), batch=100))
    assert sender.step().moved == size
    wait_for(lambda: len(server.messages) == size)
    server.reset()
    sender.close()
    shown = describe(world.house, cursors, sender.destination)
    assert (shown["next"], shown["state"]) == (0, "stopped")
    server.close()


def test_more_than_the_log_has_is_a_rollback(world: World, cursors: CursorStore, hook: WebhookServer) -> None:
    size = grow(world, 3)
    assert cursors.take("siem", "x", start=size + 1, lease=0)
    sender = Forwarder(world.house, cursors, to(hook_receiver(world, hook.url)))
    with pytest.raises(RollbackDetected, match="more of the ledger was forwarded"):
        sender.step()
    assert hook.ids == []


def test_an_operator_sends_once_more(world: World, cursors: CursorStore, hook: WebhookServer) -> None:
    size = grow(world, 5)
    where = to(hook_receiver(world, hook.url), batch=100)
    sender = Forwarder(world.house, cursors, where)
    sender.step()
    cursors.rewind("siem", 2)
    grow(world, 1)
    wait_for(lambda: sender.step().left == 0 and len(hook.indices) >= 2 * size - 1)
    assert hook.indices[size:][-(size - 1) :] == list(range(2, size + 1))
    sender.close()


def test_another_forwarder_is_told_by_name(world: World, cursors: CursorStore, hook: WebhookServer) -> None:
    grow(world, 1)
    first = Forwarder(world.house, cursors, to(hook_receiver(world, hook.url)))
    first.step()
    with pytest.raises(Unavailable, match="another forwarder sends to siem"):
        forward_once(Forwarder(world.house, cursors, to(hook_receiver(world, hook.url))))
    assert describe(world.house, cursors, first.destination)["error"] == ""
    first.close()


def test_pauses_grow_are_spread_and_bounded() -> None:
    class Fixed:
        """Draws one value, the least or the greatest."""

        def __init__(self, byte: int) -> None:
            self.byte = byte

        def random_bytes(self, size: int) -> bytes:
            return bytes([self.byte]) * size

        def uuid(self) -> str:
            return ""

    most = [pause_after(failures, Fixed(255)) for failures in (0, 1, 2, 5, 30, 10_000)]
    assert [round(each, 3) for each in most] == [0.5, 1.0, 2.0, 16.0, 60.0, 60.0]
    assert pause_after(30, Fixed(0)) == 0
    drawn = {pause_after(5, runtime.SystemEntropy()) for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= each < 16 for each in drawn)


def test_events_are_those_of_an_export_with_the_release_that_made_them(
    world: World, cursors: CursorStore, hook: WebhookServer
) -> None:
    size = grow(world, 3)
    where = to(hook_receiver(world, hook.url), render=render_as("ocsf", origin=ORIGIN, version="7.1"))
    assert forward_once(Forwarder(world.house, cursors, where)) == size
    events = [event for body in hook.bodies for event in body["data"]["events"]]
    assert [event["metadata"]["uid"] for event in events] == [f"{ORIGIN}/{at}" for at in range(size)]
    for at, event in enumerate(events):
        assert event["metadata"]["product"].pop("version") == "7.1"
        assert event == ocsf.event(at, world.entry(at), origin=ORIGIN)


def test_a_format_that_there_is_not() -> None:
    with pytest.raises(ConfigurationError):
        render_as("xml", origin=ORIGIN, version="1")


def test_a_lease_outlasts_a_delivery() -> None:
    longest = replace(to(LineFile(Path("/nowhere"))), timeout=float(limits.MAX_FORWARD_TIMEOUT))
    assert longest.lease * 2 / 3 > longest.timeout
    assert longest.lease <= limits.MAX_FORWARD_LEASE
