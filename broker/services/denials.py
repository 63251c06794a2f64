"""Recorded refusals: one entry each up to a rate, then 429 and a summary (ARCHITECTURE 5.5)."""

from __future__ import annotations

import threading
from typing import Any, Final

from broker import limits
from broker.canonical import format_time
from broker.drafts import Draft, NewEntry
from broker.errors import BrokerError, RateLimited
from broker.ledger.entry import cut_name
from broker.services import authn
from broker.services.deciding import Answer
from broker.services.house import House
from broker.services.record import new_entry

_MINUTE: Final = 60_000


class DenialMeter:
    """Counts a principal's recorded denials over a sliding minute, in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: dict[str, list[int]] = {}
        self._dropped: dict[str, tuple[int, int]] = {}

    def admit(self, principal: str, now: int) -> bool:
        """Whether one more denial gets an entry of its own; else it is counted for the summary."""
        with self._lock:
            recent = [t for t in self._recent.get(principal, ()) if t > now - _MINUTE]
            admitted = len(recent) < limits.DENIALS_PER_MINUTE
            if admitted:
                recent.append(now)
            else:
                count, since = self._dropped.get(principal, (0, now))
                self._dropped[principal] = (count + 1, since)
            self._recent[principal] = recent
            return admitted

    def take_dropped(self, principal: str) -> tuple[int, int] | None:
        """(count, since) of denials that were only counted, and forget them: for the summary entry."""
        with self._lock:
            return self._dropped.pop(principal, None)

    def retry_after(self, principal: str, now: int) -> int:
        """Seconds until one more denial gets an entry."""
        with self._lock:
            recent = self._recent.get(principal) or [now]
            return max(1, (recent[0] + _MINUTE - now + 999) // 1000)


METER: Final = DenialMeter()


def denial_draft(
    house: House,
    caller: authn.Caller,
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
    if not METER.admit(principal, now):
        raise RateLimited(
            "too many denied requests",
            retry_after=METER.retry_after(principal, now),
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
                else {"effect": "deny", "policies": [], "reason": error.code.replace("_", "-")}
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
    dropped = METER.take_dropped(principal)
    if dropped is None:
        return []
    count, since = dropped
    return [
        new_entry(
            house,
            time=now,
            type="denial-summary",
            principal=principal,
            counts={"denied": count},
            since=format_time(since),
            until=format_time(now),
        )
    ]
