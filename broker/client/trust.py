"""What this client knows of the log, and what it therefore believes (steps 7 and I18).

An answer counts only with a receipt that verifies under the pinned log key, whose entry is the caller's
own request, and whose tree extends every tree that this profile has seen. The last tree head is kept in
the profile's ``treehead``, or in memory where nothing can be written; it only ever moves forward.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker.canonical import Json, parse_b64url
from broker.client import private_files
from broker.client.log_key import LOCK, FindKeys, Keep, signed_beside, tell
from broker.client.settings import TREE_HEAD
from broker.errors import (
    BrokerError,
    ConfigurationError,
    IntegrityFailure,
    NotFound,
    RollbackDetected,
    Unavailable,
    Unreachable,
)
from broker.ledger import merkle, note, receipt
from broker.ledger.note import TreeHead
from broker.ledger.receipt import VerifiedReceipt

if TYPE_CHECKING:
    from broker.ledger.quorum import Policy

FindProof = Callable[[int, int], Sequence[str]]
"""Asks the server for the consistency proof between two sizes (smaller, larger)."""

_MOST_LOOKS: Final = 8


class LogMemory:
    """The newest tree head that one profile has verified; shared by threads and processes.

    Args:
        folder: Where it is kept; None keeps it in memory, for this process alone.
        vkey: The pinned log's verifier key.
        find_proof: Asks for consistency proofs.
        seed: A file with the tree head that counts as seen as long as none is kept; it may be read-only.
        witnesses: Which witnesses must vouch for what the log recorded; None for none.
        former: Keys of the same log that led to the pinned one: what they signed was seen under them.
        find_keys: Asks which keys the log names: a key that the pinned one names is followed to.
        keep_key: Pins such a key durably; without it this process alone remembers it.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        vkey: str,
        find_proof: FindProof,
        seed: Path | None = None,
        witnesses: Policy | None = None,
        former: Sequence[str] = (),
        find_keys: FindKeys | None = None,
        keep_key: Keep | None = None,
    ) -> None:
        self.witnesses = witnesses
        self._folder = folder
        self._seed = seed
        self._held: str | None = None
        self._vkey = vkey
        self._own = [vkey, *former]
        self._find_keys, self._keep_key = find_keys, keep_key
        self._looked = False
        self._find_proof = find_proof
        self._lock = threading.RLock()

    def have(self) -> str | None:
        """The remembered tree head as a signed note, to send along; None before the first.

        Raises:
            IntegrityFailure: The file is not a tree head of the pinned log. It is kept for inspection.
        """
        if self._held is not None:
            return self._held
        for path, text in self._kept():
            self._check_kept(path, text)
            return text
        return None

    def _seen_text(self) -> str | None:
        """What is remembered, as it stands."""
        return self._held if self._held is not None else next((text for _, text in self._kept()), None)

    def _kept(self) -> Iterator[tuple[Path, str]]:
        own = None if self._folder is None else self._folder / TREE_HEAD
        for path, follow in ((own, False), (self._seed, True)):
            data = None if path is None else private_files.find_file(path, follow=follow)
            if path is not None and data is not None:
                yield path, data.decode("utf-8", "replace")

    def _check_kept(self, path: Path, text: str) -> None:
        try:
            vkey = self._vkey
            try:
                note.open_head(text, self._own)
            except IntegrityFailure:
                # Another process may have followed to the log's next key meanwhile.
                if not self._follow_instead(vkey):
                    raise
                note.open_head(text, self._own)
        except IntegrityFailure as exc:
            raise IntegrityFailure(
                f"{path} is not a tree head of this profile's log",
                why=exc.what,
                next="keep the file, and ask an auditor to compare it with the log",
            ) from exc

    # -- the log's key ----------------------------------------------------------------------------------

    @property
    def vkey(self) -> str:
        """The key that the log is held to now."""
        return self._vkey

    def own_keys(self, text: str) -> list[str]:
        """The pinned key, followed to where the head that the server shows needs it, and those before it."""
        with suppress(IntegrityFailure):
            self.open(text)
        return list(self._own)

    def named_keys(self) -> list[str]:
        """The pinned key, and all that the log says it has or had: who signed what it shows of its past."""
        return [self._vkey, *(self._find_keys().vkeys if self._find_keys is not None else ())]

    def open(self, text: Any) -> TreeHead:
        """A head that the server shows, under the pinned key or the one that this names as its successor.

        Raises:
            IntegrityFailure: It is signed by neither.
            RollbackDetected: The log under the successor does not extend what was seen.
        """
        vkey = self._vkey
        try:
            head = note.open_head(text, vkey)
        except IntegrityFailure:
            if not self._follow_instead(vkey):
                raise
            return note.open_head(text, self._vkey)
        if not self._looked and signed_beside(text, self._vkey):
            # Both keys sign for a while. Who follows now need not ask when the one that is pinned is gone.
            self._looked = True
            with suppress(Unavailable, Unreachable, NotFound):
                self._follow(vkey)
        return head

    def _follow_instead(self, vkey: str) -> bool:
        """:meth:`_follow`, where what failed is the news if nobody can be asked."""
        with suppress(Unavailable, Unreachable, NotFound):
            return self._follow(vkey)
        return False

    def _follow(self, vkey: str) -> bool:
        """Go on from that key to the one that it leads to; False when it leads to none.

        Raises:
            IntegrityFailure: What the server shows does not hold.
            RollbackDetected: The log under the new key does not have all that was seen. Nothing is pinned.
        """
        if self._find_keys is None:
            return False
        with self._lock:
            if self._vkey != vkey:
                return True  # another thread was faster
            shown = self._find_keys()
            found = shown.follow(vkey)
            if found.key.vkey == vkey:
                return False
            head = note.open_head(shown.head, found.key)
            kept = [text for _, text in self._kept()] + ([] if self._held is None else [self._held])
            known = [note.open_head(text, [*self._own, *found.keys]) for text in kept]
            for seen in (*found.heads, *known):
                if seen.size > head.size:
                    raise self._rollback(f"it has {head.size} entries, and {seen.size} were seen")
                self._link(seen, head)
            vkeys = [key.vkey for key in found.keys]
            self._own += vkeys[1:]
            self._vkey = vkeys[-1]
            if self._keep_key is not None:
                # A folder that cannot be written: this process goes on, and the next one follows again.
                with suppress(ConfigurationError):
                    self._keep_key(vkeys, shown.head)
            tell(vkey, self._vkey)
            return True

    def accept(self, text: Any, *, have: str | None = None, consistency: Any = ()) -> VerifiedReceipt:
        """The entry of a receipt, once its tree is known to extend everything seen before.

        Args:
            text: The receipt, as the server sent it.
            have: The tree head that was sent along with the request.
            consistency: The server's proof, base64url, from ``have`` to the receipt's tree head.

        Raises:
            IntegrityFailure: The receipt does not verify.
            RollbackDetected: The tree is smaller than, or differs from, one that was seen.
        """
        if not isinstance(text, str):
            raise IntegrityFailure("the answer carries no receipt")
        self.open(receipt.parse_receipt(text).note)
        verified = receipt.verify_receipt(text, self._vkey)
        self.observe(receipt.parse_receipt(text).note, have=have, consistency=consistency)
        return verified

    def observe(self, head_note: str, *, have: str | None = None, consistency: Any = ()) -> TreeHead:
        """A signed tree head extends everything seen before, and is remembered if it is the newest.

        Raises:
            IntegrityFailure: It is not signed by the pinned key.
            RollbackDetected: It is smaller than, or differs from, one that was seen.
        """
        head = self.open(head_note)
        linked = have
        if have is not None:
            self._verify(note.open_head(have, self._own), head, consistency)
        with self._lock:
            for _ in range(_MOST_LOOKS):
                remembered = self.have()
                if remembered is not None and remembered != linked:
                    # Another thread or process moved it meanwhile: that head needs its own proof.
                    self._link(note.open_head(remembered, self._own), head)
                    linked = remembered
                if self._remember(head_note, head, linked):
                    return head
        raise IntegrityFailure("the remembered tree head changes faster than it can be compared")

    def learn(self, head_note: str) -> None:
        """Remember a head that is known, by reading the whole log, to extend what was seen.

        Raises:
            IntegrityFailure: It is not signed by the pinned key.
        """
        head = self.open(head_note)
        with self._lock:
            self._remember(head_note, head, self.have())

    def _link(self, seen: TreeHead, head: TreeHead) -> None:
        older, newer = (seen, head) if seen.size <= head.size else (head, seen)
        if older.size in (0, newer.size):
            self._verify(older, newer, ())
            return
        try:
            proof = self._find_proof(older.size, newer.size)
        except Unavailable:
            raise
        except BrokerError as exc:
            # Fail closed: without the proof it is not known that this is the log that was seen before.
            raise IntegrityFailure(
                "the broker does not show that its ledger extends what this profile has seen", why=exc.what
            ) from exc
        self._verify(older, newer, proof)

    def _remember(self, head_note: str, head: TreeHead, linked: str | None) -> bool:
        with self._exclusively():
            # Not verified again: it is what was linked, or whoever called looks once more, without the lock.
            remembered = self._seen_text()
            if remembered != linked and remembered is not None:
                return False
            # Never backwards: an older head that is consistent changes nothing.
            if remembered is None or note.open_head(remembered, self._own).size < head.size:
                self._keep(head_note)
            return True

    def _exclusively(self) -> AbstractContextManager[None]:
        # In memory the caller's own lock is enough.
        return nullcontext() if self._folder is None else private_files.locked(self._folder / LOCK)

    def _keep(self, head_note: str) -> None:
        if self._folder is None:
            self._held = head_note
        else:
            private_files.write_file(self._folder / TREE_HEAD, head_note.encode("utf-8"), mode=0o644)

    def _verify(self, older: TreeHead, newer: TreeHead, consistency: Any) -> None:
        try:
            hashes = [parse_b64url(item, size=merkle.HASH_SIZE) for item in _list(consistency)]
            merkle.verify_consistency(older.size, newer.size, hashes, older.root, newer.root)
        except RollbackDetected as exc:
            raise self._rollback(exc.what) from exc
        except BrokerError as exc:
            raise self._rollback(f"{exc.what} (from {older.size} to {newer.size} entries)") from exc

    def _rollback(self, why: str) -> RollbackDetected:
        return RollbackDetected(
            "the broker's ledger does not extend what this profile has seen",
            why=why,
            next=f"do not trust this broker; {self._evidence()}",
        )

    def _evidence(self) -> str:
        if self._folder is None:
            return f"show an auditor the tree head that was seen:\n{(self._seen_text() or '').strip()}"
        return f"keep {self._folder / TREE_HEAD} as evidence and show it to an auditor"


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or len(value) > 128:
        raise IntegrityFailure("a consistency proof is not a list of hashes")
    return value


def check_entry(entry: Json, expected: Mapping[str, Any]) -> None:
    """The entry says exactly what the caller asked for; a member that is expected to be None is absent.

    Raises:
        IntegrityFailure: It is somebody else's, or another request; the message names the member.
    """
    for name, value in expected.items():
        found = entry.get(name)
        same = (
            hmac.compare_digest(found.encode(), value.encode())
            if isinstance(found, str) and isinstance(value, str)
            else found == value and type(found) is type(value)
        )
        if not same:
            raise IntegrityFailure(
                "the receipt is not for this request", why=f"member {name} of its entry is another"
            )
