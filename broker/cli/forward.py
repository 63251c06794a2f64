"""``forward``: every entry brought to SIEMs and whoever else watches, from the server's side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.output import Column, counted, safe, time_text
from broker.cli.server_side import needs_server
from broker.errors import BrokerError, IntegrityFailure, NotFound, UsageError

if TYPE_CHECKING:
    from broker.services.forwarding import Destination
    from broker.wiring.forwarding import Forwarding


def _span(ms: int) -> str:
    """A time for a person: ``0 s``, ``45 s``, ``12 min``, ``30 h``, ``9 d``."""
    seconds = ms // 1000
    for size, unit, most in ((1, "s", 120), (60, "min", 7_200), (3_600, "h", 172_800)):
        if seconds < most:
            return f"{seconds // size} {unit}"
    return f"{seconds // 86_400} d"


_COLUMNS: Final = (
    Column(name="name", title="DESTINATION"),
    Column(name="kind", title="KIND"),
    Column(name="state", title="STATE"),
    Column(name="next", title="NEXT", right=True),
    Column(name="lag", title="LAG", right=True),
    Column(name="behind_ms", title="BEHIND", right=True, show=_span),
    Column(name="failures", title="FAILED", right=True),
    Column(name="error", title="LAST ERROR", shrink=True),
)
_MEMBERS: Final = (*(column.name for column in _COLUMNS), "size", "moved")


@click.command(
    cls=BrokerCommand,
    examples=(
        "BROKER_CONFIG=/etc/broker/broker.toml broker forward",
        "broker forward --status",
        "broker forward --once --to siem",
        "broker forward --to siem --rewind 12000",
    ),
)
@click.option("--to", "name", metavar="NAME", help="This destination only.")
@click.option("--once", is_flag=True, help="Deliver what there is, then end.")
@click.option("--status", is_flag=True, help="Show how far each destination is, and send nothing.")
@click.option(
    "--rewind",
    metavar="INDEX",
    type=click.IntRange(min=0),
    help="Send entries from INDEX on once more; with --to.",
)
@click.pass_obj
@needs_server
def forward(call: Invocation, *, name: str | None, once: bool, status: bool, rewind: int | None) -> None:
    """Bring every entry to the destinations of the settings.

    Runs on the server, with its settings, beside broker serve, until SIGTERM or Ctrl-C. Each table
    [[forward]] is a syslog receiver, a webhook or a file. Each gets all entries, in order, at least
    once; one that is down holds up nobody else. Any number of these processes may run: one of them
    sends to a destination, the others stand by.
    """
    from broker.config import load_settings
    from broker.wiring.forwarding import open_forwarding

    if (rewind is not None) + once + status > 1:
        raise UsageError("--once, --status and --rewind exclude each other")
    if rewind is not None and name is None:
        raise UsageError("--rewind needs a destination", next="broker forward --to NAME --rewind INDEX")
    parts = open_forwarding(load_settings())
    try:
        chosen = _choose(parts, name)
        if status:
            _show(call, parts, chosen)
        elif rewind is not None:
            parts.cursors.rewind(chosen[0].name, rewind)
            call.out.say(safe(f"{chosen[0].name} gets entry {rewind} next"))
        elif once:
            _once(call, parts, chosen)
        else:
            _run(call, parts, chosen)
    finally:
        parts.close()


def _choose(parts: Forwarding, name: str | None) -> Sequence[Destination]:
    chosen = [each for each in parts.destinations if name in (None, each.name)]
    if not chosen:
        known = ", ".join(each.name for each in parts.destinations)
        raise NotFound("the settings have no such destination", why=f"they have {known}")
    return chosen


def _show(call: Invocation, parts: Forwarding, chosen: Sequence[Destination]) -> None:
    from broker.canonical import format_time

    rows: list[dict[str, Any]] = []
    for destination in chosen:
        row = parts.status(destination)
        moved = row.pop("moved_ms")
        rows.append({**row, "moved": format_time(moved) if moved else None})
    call.out.rows(rows, _COLUMNS, whole=lambda found: {"destinations": found}, members=_MEMBERS, empty="none")
    for row in rows:
        # A table has no room for all of it.
        if row["error"] and call.out.format == "text":
            last = f"last delivery {time_text(row['moved'])}" if row["moved"] else "nothing delivered yet"
            call.out.say(safe(f"{row['name']}: {row['error']}; {last}"))


def _once(call: Invocation, parts: Forwarding, chosen: Sequence[Destination]) -> None:
    from broker.web.courier import forward_once

    failed: list[tuple[str, BrokerError]] = []
    for destination in chosen:
        try:
            moved = forward_once(parts.forwarder(destination))
        except BrokerError as exc:
            failed.append((destination.name, exc))
        else:
            call.out.say(safe(f"{destination.name}: {counted(moved, 'entry').replace('entrys', 'entries')}"))
    _tell_failures(failed)


def _run(call: Invocation, parts: Forwarding, chosen: Sequence[Destination]) -> None:
    from broker.client.agent import lifecycle
    from broker.web.courier import Courier
    from broker.web.logs import configure_logging

    configure_logging()
    couriers = [Courier(parts.forwarder(each), parts.house.entropy) for each in chosen]

    def goes_on() -> bool:
        # A log that does not hold is nothing to forward, to anybody.
        broken = any(isinstance(each.ended, IntegrityFailure) for each in couriers)
        return not broken and any(each.is_running for each in couriers)

    with lifecycle.held_signals():
        for courier in couriers:
            courier.start()
        call.out.say(safe(f"forwarding to {', '.join(each.name for each in chosen)}; Ctrl-C stops it"))
        lifecycle.await_end(goes_on)
        for courier in couriers:
            courier.stop()
        for courier in couriers:
            courier.join()
    _tell_failures([(each.name, each.ended) for each in couriers if each.ended is not None])


def _tell_failures(failed: Sequence[tuple[str, BrokerError]]) -> None:
    """End as the worst of them does, and name them all."""
    worst = sorted(failed, key=lambda each: not isinstance(each[1], IntegrityFailure))
    for name, exc in worst[:1]:
        others = "".join(f"\n{other}: {also.what}" for other, also in worst[1:])
        why = f"{exc.why or exc.what}{others}" if others else exc.why
        raise type(exc)(f"{name}: {exc.what}", why=why, next=exc.next) from exc
