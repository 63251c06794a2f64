"""Recorded refusals: one entry each up to a rate, then 429 and a summary (ARCHITECTURE 5.5)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from broker import limits
from broker.canonical import Json, format_time
from broker.drafts import Draft, NewEntry, ProofUse
from broker.errors import ApprovalNeeded, BrokerError, Denied, LedgerUnavailable, RateLimited
from broker.ledger.entry import cut_name
from broker.model import Principal
from broker.ports import StaleDecision, View
from broker.services import authn
from broker.services.deciding import Answer
from broker.services.denial_meter import MINUTE_MS
from broker.services.house import House
from broker.services.planning import RefusedError
from broker.services.record import MAX_DECISIONS, decide_and_record, new_entry

P = ParamSpec("P")
T = TypeVar("T")

REFUSALS: Final = (Denied, ApprovalNeeded)
"""What an authenticated caller may be told only after it is on record."""


class Asker(Protocol):
    """Somebody who is known, as far as a record of their refusal needs it."""

    @property
    def principal(self) -> Principal:
        """Who it is."""

    @property
    def now(self) -> int:
        """When they asked, milliseconds since 1970."""

    @property
    def proof_use(self) -> ProofUse:
        """The row that makes a second use of their proof a replay."""

    def evidence(self, inputs: Json | None = None) -> Json:
        """The signed request, and what the decision was made from."""

    def members(self) -> dict[str, Any]:
        """The members of an entry that say who asked."""


def denial_draft(
    house: House,
    caller: Asker,
    *,
    error: BrokerError,
    action: str,
    answer: Answer | None = None,
    artifact: str | None = None,
    version: str | None = None,
    **members: Any,
) -> Draft:
    """The draft that records a refusal; what ``error`` says is released only after it is durable.

    Raises:
        RateLimited: The principal has had its denials of this minute; the rest are summed up.
    """
    now, principal = caller.now, caller.principal.id
    if not house.denial_meter.admit(principal, now):
        raise RateLimited(
            "too many denied requests",
            retry_after=house.denial_meter.retry_after(principal, now),
            why=f"at most {limits.DENIALS_PER_MINUTE} denied requests a minute are recorded one by one",
            next="wait, and ask only for what you may read",
        )
    entries = [
        new_entry(
            house,
            time=now,
            type="denial",
            evidence=caller.evidence(answer.inputs if answer else None),
            decision=(
                answer.decision.as_json()
                if answer
                else {
                    "effect": "deny",
                    "policies": list(error.policies) if isinstance(error, Denied) else [],
                    "reason": error.code.replace("_", "-"),
                }
            ),
            action=action,
            artifact=cut_name(artifact) if artifact else None,
            version=cut_name(version) if version else None,
            **caller.members(),
            **members,
        )
    ]
    entries += _summary(house, principal, now)
    return Draft(proof=caller.proof_use, entries=tuple(entries))


def _summary(house: House, principal: str, now: int) -> list[NewEntry]:
    dropped = house.denial_meter.take_dropped(principal)
    return [] if dropped is None else [_summary_entry(house, principal, *dropped, now)]


def _summary_entry(house: House, principal: str, count: int, since: int, now: int) -> NewEntry:
    return new_entry(
        house,
        time=now,
        type="denial-summary",
        principal=principal,
        counts={"denied": count},
        since=format_time(since),
        until=format_time(now),
    )


def summarise(house: House, *, force: bool = False) -> None:
    """Record the denials that were only counted and whose minute is over (with ``force``: all of them).

    A principal that stops asking after a flood has no further denial that could carry its summary.

    Raises:
        LedgerUnavailable: They cannot be written; the counts are kept for the next try.
    """
    now = house.clock.now()
    due = house.denial_meter.take_all_dropped(now + 1 if force else now - MINUTE_MS)
    try:
        for principal, (count, since) in list(due.items()):
            entry = _summary_entry(house, principal, count, since, now)
            house.ledger.append(Draft(entries=(entry,)))
            del due[principal]
    except Exception:
        for principal, (count, since) in due.items():
            house.denial_meter.give_back(principal, count, since)
        raise


def record_denial(
    house: House,
    request: authn.SignedRequest,
    error: BrokerError,
    *,
    action: str,
    artifact: str | None = None,
    version: str | None = None,
) -> None:
    """Record a refusal that was decided where nothing else is recorded; it is told after that.

    Raises:
        RateLimited: As :func:`denial_draft`.
        LedgerUnavailable: It is not on record: nothing may be told.
    """

    def decide(view: View) -> Draft:
        caller = authn.authenticate(house, view, request)
        return denial_draft(house, caller, error=error, action=action, artifact=artifact, version=version)

    decide_and_record(house, decide)


Use = Callable[Concatenate[House, authn.SignedRequest, P], T]


def recorded(action: str) -> Callable[[Use[P, T]], Use[P, T]]:
    """Wraps a use case whose success makes no entry of its own: its refusals do.

    What was read or decided before a change of who may do what is read and decided again (I15).
    """

    def wrap(use: Use[P, T]) -> Use[P, T]:
        @functools.wraps(use)
        def carry_out(house: House, request: authn.SignedRequest, /, *args: P.args, **kwargs: P.kwargs) -> T:
            for _ in range(MAX_DECISIONS):
                try:
                    return use(house, request, *args, **kwargs)
                except StaleDecision:
                    continue
                except RefusedError as refused:
                    about = {"artifact": refused.artifact, "version": refused.version}
                    record_denial(house, request, refused.error, action=action, **about)
                    raise refused.error from refused
                except REFUSALS as error:
                    record_denial(house, request, error, action=action)
                    raise
            raise LedgerUnavailable(
                "access rules changed too often while this request waited", next="try the same request again"
            )

        return carry_out

    return wrap
