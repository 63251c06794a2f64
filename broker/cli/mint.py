"""``token mint``: a narrower token for a rank of a job, and keeping it renewed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker.cli.command import BrokerCommand, Invocation
from broker.cli.options import include_patterns, read_duration, read_size
from broker.cli.output import plain, safe, size_text, time_text

if TYPE_CHECKING:
    from broker.client.minting import Minted
    from broker.client.sdk import Client

_ACTIONS: Final = ("describe", "read", "publish")
_AGAIN: Final = 5.0
"""Seconds between tries when the last token has ended and the broker is still away."""


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is minted, again and again."""

    scope: tuple[str, ...]
    paths: tuple[str, ...]
    actions: tuple[str, ...]
    purpose: str | None
    ttl: int | None
    for_key: str | None

    def mint(self, client: Client, max_bytes: int | None) -> Minted:
        """One token."""
        return client.mint(
            *self.scope,
            paths=self.paths or None,
            max_bytes=max_bytes,
            purpose=self.purpose,
            actions=self.actions,
            ttl=self.ttl,
            for_key=self.for_key,
        )


@click.command(
    cls=BrokerCommand,
    examples=(
        "broker token mint --scope acme/llama-7b@step-1000 --paths 'model-0000[1-4]*' --for-key JKT",
        "broker token mint --scope acme/llama-7b@step-1000 --max-bytes 20GiB --ttl 10m --out ranks/0",
        "broker token mint --scope acme/llama-7b --out ranks/0 --ttl 10m --renew",
    ),
)
@click.option(
    "--scope",
    metavar="REF",
    multiple=True,
    required=True,
    help="What for: collection/name[@version], collection/* or '*'; may be repeated.",
)
@click.option("--paths", metavar="GLOB", multiple=True, help="Only files that match; may be repeated.")
@click.option("--max-bytes", metavar="N", callback=read_size, help="Bytes that may be opened with it: 20GiB.")
@click.option(
    "--ttl", metavar="T", callback=read_duration, help="How long it lives: 10m; at most 15m, and no longer "
    "than your own token."
)  # fmt: skip
@click.option(
    "--actions",
    type=click.Choice(_ACTIONS),
    multiple=True,
    default=("describe", "read"),
    show_default=True,
    help="What it may do; may be repeated.",
)
@click.option("--purpose", metavar="TEXT", help="The one purpose that its reads must state.")
@click.option("--for-key", metavar="JKT", help="Thumbprint of the key that may use it; yours unless given.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write a rank's profile there: config.toml, key.jwk (made there), token.",
)
@click.option("--renew", is_flag=True, help="Stay, and replace DIR/token before it ends.")
@click.pass_obj
def mint(
    call: Invocation,
    *,
    scope: tuple[str, ...],
    paths: tuple[str, ...],
    max_bytes: int | None,
    ttl: int | None,
    actions: tuple[str, ...],
    purpose: str | None,
    for_key: str | None,
    out: Path | None,
    renew: bool,
) -> None:
    """Mint a narrower token from your own.

    It covers what yours covers and what is said here, both. A launcher mints one for each rank, for
    the rank's own key. A rank makes its key with broker token key, or --out makes it in DIR, which is
    then the rank's BROKER_PROFILE_DIR. The token goes to stdout. Revoking yours ends it too.

    --paths and --max-bytes are for all of --scope together. With --renew it runs until SIGTERM or
    Ctrl-C, and --max-bytes holds for all the tokens together: each gets what the one before has left.
    A token that was revoked before its end is not renewed. One that ended meanwhile is, without --max-bytes.
    """
    if renew and out is None:
        raise click.UsageError("--renew needs --out", click.get_current_context())
    client = call.client
    wanted = _Wanted(
        scope=scope,
        paths=include_patterns(paths),
        actions=actions,
        purpose=purpose,
        ttl=ttl,
        for_key=for_key if out is None else _holder(out, for_key),
    )
    minted = wanted.mint(client, max_bytes)
    if out is None:
        call.out.record(minted.as_json(), [minted.text])
    else:
        _write(client, out, minted)
        found = {name: value for name, value in minted.as_json().items() if name != "token"}
        call.out.record({**found, "out": str(out)}, [safe(out)])
    call.out.say(_summary(minted.as_json(), max_bytes))
    if renew and out is not None:
        _Renewal(call, wanted, out).run(minted, max_bytes)


def _holder(out: Path, for_key: str | None) -> str:
    """Whose key the rank in ``out`` has: it is made there unless it is named, or there already."""
    from broker.client import minting, workload
    from broker.errors import UsageError

    if for_key is None:
        return minting.rank_key(out).jkt
    minting.check_rank_folder(out)
    there = workload.find_key(out / workload.KEY)
    if there is not None and there.jkt != for_key:
        raise UsageError(f"the key in {out} is another one than --for-key", why=f"it is {there.jkt}")
    return for_key


def _write(client: Client, out: Path, minted: Minted) -> None:
    from broker.client.minting import write_rank

    write_rank(out, client.profile, minted)


def _summary(found: Mapping[str, Any], max_bytes: int | None) -> str:
    [first, *_] = found["authorization_details"]
    scope = ", ".join(detail["identifier"] for detail in found["authorization_details"])
    bounds = [plain(first["paths"])] if "paths" in first else []
    bounds += [f"at most {size_text(max_bytes)}"] if max_bytes is not None else []
    return safe(
        f"minted {found['id']} for key {found['jkt']}: {plain(first['actions'])} of {scope}"
        f"{' (' + '; '.join(bounds) + ')' if bounds else ''}, until {time_text(found['expires_at'])}; "
        f"to end it: broker token revoke {found['id']}"
    )


class _Renewal:
    """Mints the next token before the last one ends, until somebody says stop."""

    def __init__(self, call: Invocation, wanted: _Wanted, out: Path) -> None:
        from broker.runtime import SystemClock

        self._call = call
        self._wanted = wanted
        self._out = out
        self._clock = SystemClock()
        self._stop = threading.Event()

    def run(self, minted: Minted, max_bytes: int | None) -> None:
        """Return when a signal says stop.

        Raises:
            GrantRevoked: The token was revoked before its end.
            OverBudget: Its bytes are used up.
            BrokerError: The broker mints no more; what cannot be reached is tried again.
        """
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._stop.wait(self._pause(minted)):
                minted, max_bytes = self._renew(minted, max_bytes)
        finally:
            for number, was in before.items():
                signal.signal(number, was)

    def _end(self, number: int, frame: object) -> None:
        del number, frame
        self._stop.set()

    def _pause(self, minted: Minted) -> float:
        # Two thirds of what is left: the last third is for an outage, and tries come closer in it.
        left = (minted.expires - self._clock.now()) / 1000
        return max(left * 2 / 3, 1.0) if left > 0 else _AGAIN

    def _renew(self, minted: Minted, max_bytes: int | None) -> tuple[Minted, int | None]:
        from broker.errors import RateLimited, Unavailable

        client = self._call.client
        try:
            left = self._left(client, minted, max_bytes)
            following = self._wanted.mint(client, left)
        except (Unavailable, RateLimited) as exc:
            self._call.out.say(safe(f"not renewed yet: {exc.what}"))
            return minted, max_bytes
        _write(client, self._out, following)
        self._call.out.detail(_summary(following.as_json(), left))
        return following, left

    def _left(self, client: Client, minted: Minted, max_bytes: int | None) -> int | None:
        from broker.errors import GrantRevoked, OverBudget

        found = client.admin.inspect_token(minted.text)
        if not found.get("active"):
            if minted.expires <= self._clock.now() and max_bytes is None:
                return None
            if minted.expires <= self._clock.now():
                # What it opened is no longer told: to begin anew would hand out the bytes a second time.
                raise OverBudget(
                    f"the token {minted.id} ended before it could be renewed",
                    why="what is left of --max-bytes is known only while it lives",
                    next="mint again, if the job may begin anew with its bytes",
                )
            raise GrantRevoked(f"the token {minted.id} was revoked", why="what was revoked is not renewed")
        if max_bytes is None:
            return None
        left = min(
            (
                int(ceiling["left"])
                for detail in found.get("effective", [])
                for ceiling in detail.get("ceilings", [])
                if ceiling["token"] == minted.id
            ),
            default=max_bytes,
        )
        if left == 0:
            raise OverBudget("the bytes of --max-bytes are used up", why=f"all of them, with {minted.id}")
        return left
