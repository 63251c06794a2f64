"""Asking the witnesses: off every request's path, one tree head at a time, for all replicas together.

A witness that knows more of this log than the database, or something else, has seen a rollback or a
fork: this process refuses everything from then on (I10).

**Source**: C2SP tlog-witness, "add-checkpoint"; C2SP tlog-cosignature.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from broker.errors import BrokerError, IntegrityFailure, RollbackDetected, Unavailable
from broker.ledger import cosign, merkle, quorum
from broker.model import Tail
from broker.ports import Witness
from broker.services.cosigned import Cosigned, head_note, time_of
from broker.services.house import House

INTERVAL_MS: Final = 1000
"""At least this long between two heads that the replicas together have cosigned."""
_RETRY_MS: Final = 30_000
"""The longest that a witness which failed is left alone; a second at first."""
_TRIES: Final = 3
_AT_ONCE: Final = 8
_SIZE_TYPE: Final = "text/x.tlog.size"
_MOST_DIGITS: Final = 16
_LATEST: Final = 2**53 // 1000
"""Seconds since 1970 of the last cosignature that the database can hold in milliseconds."""


@dataclass(kw_only=True)
class _Rest:
    """When a witness that failed is asked again."""

    pause: int
    until: int


class CosigningRound:
    """Asks every witness that has not signed the newest head; for one thread.

    Args:
        house: Whose head. Its witnesses are those of the policy that have a URL.
        known: What is known of them.

    Attributes:
        signed: Names of the witnesses that answered when they were asked last.
    """

    def __init__(self, house: House, known: Cosigned) -> None:
        self._house = house
        self._known = known
        self._rests: dict[str, _Rest] = {}
        self.signed: set[str] = set()

    def run(self) -> dict[str, BrokerError]:
        """One round.

        Returns:
            Name of each witness that was asked in vain -> why.

        Raises:
            RollbackDetected: A witness saw a rollback or a fork; the house is shut.
            LedgerUnavailable: The database does not answer.
        """
        self._house.guard.check()
        with self._house.ledger.view() as view:
            self._known.refresh(self._house, view)
            tail = view.tail()
            # One head for all witnesses: signatures of different heads make no quorum.
            text = head_note(self._house, view, tail.size)
        due = self._due(tail)
        if not due:
            return {}
        with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(due)), thread_name_prefix="witness") as pool:
            answers = list(pool.map(lambda witness: self._try(witness, tail, text), due))
        self._house.guard.check()
        with self._house.ledger.view() as view:
            self._known.refresh(self._house, view)
        return {
            witness.name: answer for witness, answer in zip(due, answers, strict=True) if answer is not None
        }

    def _due(self, tail: Tail) -> Sequence[quorum.Witness]:
        now = self._house.clock.now()
        due: list[quorum.Witness] = []
        for witness in self._known.policy.witnesses:
            rest = self._rests.get(witness.key.vkey)
            if witness.key.vkey not in self._known.witnesses or (rest is not None and now < rest.until):
                continue
            signed = self._known.rows.newest_of(witness.key.vkey)
            if signed is None or (signed[0] < tail.size and not self._is_fresh(*signed, now=now)):
                due.append(witness)
        return due

    def _is_fresh(self, size: int, time: int, *, now: int) -> bool:
        """Whether this or another replica has just asked: its rows count for all of them."""
        return size == self._known.size and 0 <= now - time < INTERVAL_MS

    def _try(self, witness: quorum.Witness, tail: Tail, text: str) -> BrokerError | None:
        vkey, now = witness.key.vkey, self._house.clock.now()
        try:
            _Asking(self._house, self._known, witness, tail, text).run()
        except RollbackDetected as found:
            self._house.guard.shut(found)
            return found
        except BrokerError as exc:
            before = self._rests.get(vkey)
            pause = INTERVAL_MS if before is None else min(2 * before.pause, _RETRY_MS)
            self._rests[vkey] = _Rest(pause=pause, until=now + pause)
            self.signed.discard(witness.name)
            return exc
        self._rests.pop(vkey, None)
        self.signed.add(witness.name)
        return None


class _Asking:
    """One witness is asked to cosign one head."""

    def __init__(self, house: House, known: Cosigned, witness: quorum.Witness, tail: Tail, text: str) -> None:
        self._house, self._known, self._witness = house, known, witness
        self._tail, self._text = tail, text
        self._door: Witness = known.witnesses[witness.key.vkey]

    def run(self) -> None:
        """Until it signs, or has signed something newer.

        Raises:
            RollbackDetected: It saw a rollback or a fork.
            Unavailable: It does not answer as a witness does.
            IntegrityFailure: What it signed does not hold.
        """
        signed = self._known.rows.newest_of(self._witness.key.vkey)
        # A stored size is a guess: the witness says if it is wrong.
        old: int | None = 0 if signed is None else min(signed[0], self._tail.size)
        for _ in range(_TRIES):
            if old is None:
                return
            old = self._ask(old)
        if old is not None:
            raise Unavailable("the witness contradicts itself about the size that it knows")

    def _ask(self, old: int) -> int | None:
        """None when it is done; else the size that the witness knows."""
        answer = self._door.add_checkpoint(cosign.build_request(old, self._prove(old), self._text))
        if answer.status == 200:
            self._keep(cosign.parse_response(answer.body))
            return None
        if answer.status == 409 and answer.kind == _SIZE_TYPE:
            return self._compare(old, _parse_size(answer.body))
        if answer.status == 422:
            raise self._rollback(f"it refuses the proof that {old} entries grew to {self._tail.size}")
        reasons = {403: "it does not know the log's key", 404: "it does not know the log"}
        raise Unavailable(
            "the witness does not cosign", why=reasons.get(answer.status, f"it answered {answer.status}")
        )

    def _prove(self, old: int) -> list[bytes]:
        if old in (0, self._tail.size):
            return []
        with self._house.ledger.view() as view:
            proof = merkle.consistency_proof(old, self._tail.size, view.hashes)
            root = merkle.frontier_at(old, view.hashes).root()
        # Verified first: a refusal then says that the witness saw another tree, and not a bad proof.
        merkle.verify_consistency(old, self._tail.size, proof, root, self._tail.root)
        return proof

    def _compare(self, old: int, size: int) -> int | None:
        if size == old == self._tail.size:
            raise self._rollback(f"it signed another tree of {size} entries")
        if size <= self._tail.size:
            return size
        with self._house.ledger.view() as view:
            newest = view.tail().size
        if size > newest:
            raise self._rollback(f"it knows {size} entries, the database has {newest}")
        return None  # another replica was faster: the next round asks for a newer head

    def _keep(self, lines: Sequence[str]) -> None:
        for line in lines:
            seconds = time_of(self._text, line, self._witness.key)
            if seconds is not None and seconds <= _LATEST:
                # Crash here: the witness is ahead of our rows, and says so when it is asked again.
                self._known.rows.keep(
                    self._tail.size, witness=self._witness.key.vkey, line=line, time=seconds * 1000
                )
                return
        raise IntegrityFailure("the witness's answer has no signature of its own that holds")

    def _rollback(self, why: str) -> RollbackDetected:
        return RollbackDetected(
            "a witness has seen another ledger than this one",
            why=f"{self._witness.name}: {why}",
            next="stop the broker and restore the newest database; see docs/operations/rollback.md",
        )


def _parse_size(body: bytes) -> int:
    """The size in the body of a 409, in its only form."""
    text = body[:-1] if body.endswith(b"\n") else b""
    if not text.isdigit() or len(text) > _MOST_DIGITS or (text[:1] == b"0" and text != b"0"):
        raise Unavailable("the witness does not say which size it knows")
    return int(text)
