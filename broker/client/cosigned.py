"""What witnesses must have seen before a reader goes on: the profile's ``witness-policy`` (I18).

A broker that shows one reader a log of its own signs it with the right key, and every proof in it holds.
It cannot show it to witnesses, who have signed the other one. With a policy in the profile, what was
recorded for a read is to be in a tree head that a quorum of the witnesses cosigned, at most a minute after it
was answered; before the next lease is opened, and when the end of the read is told.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker.canonical import Json, parse_b64url, parse_time
from broker.client import private_files
from broker.errors import BrokerError, ConfigurationError, IntegrityFailure, NotFound
from broker.ledger import merkle, note
from broker.ledger.entry import parse_entry
from broker.ledger.receipt import VerifiedReceipt
from broker.ports import Clock

if TYPE_CHECKING:
    from broker.client.session import Session
    from broker.ledger.note import TreeHead
    from broker.ledger.quorum import Policy

ReadEntries = Callable[[int, int], Sequence[bytes]]
"""Reads entries [start, stop)."""

FILE: Final = "witness-policy"
MAX_LAG_MS: Final = 60_000
"""How long after its answer an entry may go without a cosigned head that covers it."""
_GRANTS: Final = 1024
"""Grants of one process that are remembered; the oldest is forgotten first."""


def parse_policy(data: bytes, *, vkey: str) -> Policy:
    """The policy that a file says, if it is one for the pinned log.

    Raises:
        ConfigurationError: It is not a policy, or does not name the log's key.

    Source: C2SP tlog-policy.
    """
    from broker.ledger import quorum

    policy = quorum.parse_policy(data)
    if vkey not in [log.vkey for log in policy.logs]:
        raise ConfigurationError(
            "the witness policy does not name the log of this profile", next=f"it needs the line: log {vkey}"
        )
    return policy


def find_policy(folder: Path, *, vkey: str) -> Policy | None:
    """The policy of a profile; None when it has none.

    Raises:
        ConfigurationError: There is one, and it cannot be used.
    """
    data = private_files.find_file(folder / FILE, follow=True)
    return None if data is None else _parse_file(folder / FILE, data, vkey=vkey)


def read_policy(path: Path, *, vkey: str) -> Policy:
    """The policy of a file that somebody names.

    Raises:
        ConfigurationError: There is no such file, or it cannot be used.
    """
    data = private_files.find_file(path, follow=True)
    if data is None:
        raise ConfigurationError(f"there is no file {path}")
    return _parse_file(path, data, vkey=vkey)


def _parse_file(path: Path, data: bytes, *, vkey: str) -> Policy:
    try:
        return parse_policy(data, vkey=vkey)
    except BrokerError as exc:
        raise ConfigurationError(
            f"{path} is not a policy for this log", why=exc.why or exc.what, next=exc.next
        ) from exc


def find_cosigned(
    session: Session, read_entries: ReadEntries, policy: Policy | None, newest: str
) -> tuple[list[str], list[str]]:
    """The newest cosigned head of a log for whoever verifies all of it, and what is wrong with it.

    Args:
        session: Asks the log's server.
        read_entries: Reads entries [start, stop).
        policy: The profile's; None demands nothing.
        newest: The log's newest head, as it was sent.

    Returns:
        (signed notes that the log has to agree with, problems): at most one of each.

    Raises:
        BrokerError: The log cannot be read.
    """
    if policy is None:
        return [], []
    try:
        text = session.get_public("/ledger/cosigned").text()
        head, size = policy.check(text), note.open_head(newest, policy.logs).size
        if head.size < size and _is_late(read_entries(head.size, head.size + 1), session.clock.now()):
            raise IntegrityFailure(f"entry {head.size} is in no cosigned tree head, a minute after its time")
    except NotFound:
        return [], ["no tree head of this log has the quorum of the profile's witness policy"]
    except IntegrityFailure as exc:
        return [], [f"{exc.what} ({exc.why})" if exc.why else exc.what]
    return [text], []


def _is_late(entries: Sequence[bytes], now: int) -> bool:
    return not entries or now - parse_time(parse_entry(entries[0])["time"]) >= MAX_LAG_MS


class Watch:
    """Which entries of each grant witnesses must have seen by now. Safe to share between threads.

    Args:
        policy: The profile's; None demands nothing.
        clock: Tells how long ago something was answered.
    """

    def __init__(self, policy: Policy | None, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._answered: dict[str, deque[tuple[int, int]]] = {}

    def note(self, grant: str, verified: VerifiedReceipt) -> None:
        """Something was recorded for a grant, and answered now."""
        if self._policy is None:
            return
        with self._lock:
            self._answered.setdefault(grant, deque()).append((self._clock.now(), verified.index))
            while len(self._answered) > _GRANTS:
                del self._answered[next(iter(self._answered))]

    def due(self, grant: str) -> int | None:
        """The newest entry of the grant that a cosigned head must cover; asked before a request is sent.

        None when nothing is due yet.
        """
        with self._lock:
            answered, now = self._answered.get(grant), self._clock.now()
            if not answered:
                return None
            # Only the newest of those that are due matters: it stays for the next time.
            while len(answered) > 1 and abs(now - answered[1][0]) >= MAX_LAG_MS:
                answered.popleft()
            since, index = answered[0]
            return index if abs(now - since) >= MAX_LAG_MS else None

    def check(self, answer: Json, verified: VerifiedReceipt, *, due: int | None) -> None:
        """The answer shows what the witnesses must have seen.

        Args:
            answer: With the member ``cosigned``, or without it as long as nothing is due.
            verified: The answer's receipt.
            due: From :meth:`due`.

        Raises:
            IntegrityFailure: It is missing although something is due, or does not hold.
        """
        if self._policy is None:
            return
        member = answer.get("cosigned")
        if member is None and due is None:
            return
        covered = 0 if member is None else _verify(self._policy, member, verified.head)
        if due is not None and due >= covered:
            raise IntegrityFailure(
                "the witnesses have not seen what the broker recorded for this read",
                why=f"entry {due} is in no cosigned tree head, more than {MAX_LAG_MS // 1000} s later",
                next="do not trust this broker until an auditor has compared its log with the witnesses",
            )


def _verify(policy: Policy, member: Any, head: TreeHead) -> int:
    """Size of the cosigned head, which the receipt's tree extends.

    Raises:
        IntegrityFailure: No signature of the log, no quorum, or another tree.
    """
    if not isinstance(member, dict) or not isinstance(member.get("note"), str):
        raise IntegrityFailure("the cosigned tree head of the answer is not one")
    proof = member.get("consistency")
    if not isinstance(proof, list) or len(proof) > 128:
        raise IntegrityFailure("the proof beside a cosigned tree head is not a list of hashes")
    cosigned = policy.check(member["note"])
    if cosigned.origin != head.origin:
        raise IntegrityFailure("the cosigned tree head is another log's")
    try:
        hashes = [parse_b64url(item, size=merkle.HASH_SIZE) for item in proof]
        merkle.verify_consistency(cosigned.size, head.size, hashes, cosigned.root, head.root)
    except BrokerError as exc:
        raise IntegrityFailure(
            "the broker's log is not the one that its witnesses have seen",
            why=f"{exc.what} (from {cosigned.size} to {head.size} entries)",
            next="do not trust this broker; keep the profile's treehead, and show it to an auditor",
        ) from exc
    return cosigned.size
