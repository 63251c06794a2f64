"""The witness's one decision: does this tree head extend the one that was cosigned last?

**Source**: C2SP tlog-witness, "HTTP Interface".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from broker.errors import BrokerError, ConfigurationError, IntegrityFailure, InvalidRequest, RollbackDetected
from broker.ledger import cosign, merkle, note
from broker.ledger.note import TreeHead, Verifier
from broker.ports import Clock
from broker.witness.keys import WitnessKey
from broker.witness.state import WitnessState, origin_hash

TEXT: Final = "text/plain; charset=utf-8"
SIZE: Final = "text/x.tlog.size"
_HASH_RE: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """HTTP status, media type and body."""

    status: int
    kind: str = TEXT
    body: bytes = b""


class _Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class WitnessService:
    """Cosigns the heads of the logs that it knows. Safe to share between threads.

    Args:
        key: The witness's own.
        logs: Keys of the logs, under their origins; a log may have several.
        state: What was cosigned so far.
        clock: Tells the time of a cosignature.

    Raises:
        ConfigurationError: A stored checkpoint is not one that this witness cosigned: its folder is another
            witness's, or was damaged.
    """

    def __init__(
        self, *, key: WitnessKey, logs: Iterable[Verifier], state: WitnessState, clock: Clock
    ) -> None:
        self._key = key
        self._logs: dict[str, list[Verifier]] = {}
        for log in logs:
            self._logs.setdefault(log.name, []).append(log)
        self._state = state
        self._clock = clock
        for origin in self._logs:
            self._known(origin)

    def add_checkpoint(self, body: bytes) -> Reply:
        """The answer to a POST of ``add-checkpoint``: 200, 400, 403, 404, 409 or 422; 500 fails closed."""
        try:
            return self._add(body)
        except _Refused as refused:
            return Reply(status=refused.status, body=f"{refused}\n".encode())
        except InvalidRequest as exc:
            return Reply(status=400, body=f"{exc.why or exc.what}\n".encode())

    def checkpoint(self, hashed: str) -> Reply:
        """The answer to a GET of ``<origin hash>/checkpoint``: what was cosigned last."""
        known = hashed if _HASH_RE.fullmatch(hashed) else ""
        origin = next((each for each in self._logs if origin_hash(each) == known), None)
        found = None if origin is None else self._state.find(known)
        if found is None:
            return Reply(status=404, body=b"no checkpoint of such a log was cosigned\n")
        return Reply(status=200, body=found.encode())

    def _add(self, body: bytes) -> Reply:
        asked = cosign.parse_request(body)
        text, head = self._open(asked.note)
        if asked.old_size > head.size:
            raise _Refused(400, "the old size is larger than the checkpoint's")
        with self._state.locked(head.origin):
            known = self._known(head.origin)
            size = 0 if known is None else known.size
            if asked.old_size != size:
                return Reply(status=409, kind=SIZE, body=f"{size}\n".encode())
            _check_extends(known, head, asked.proof)
            now = self._clock.now() // 1000
            line = cosign.cosign(text, self._key.public, self._key.private.sign, now)
            # Crash here: nothing was told. After the next line: the asker hears 409, and asks from there.
            own = self._own_signatures(head.origin, asked.note)
            self._state.replace(head.origin, cosign.merge(own, [line]))
        return Reply(status=200, body=f"{line}\n".encode())

    def _open(self, signed: str) -> tuple[str, TreeHead]:
        """The text and head of a note that a known log signed."""
        origin = signed.partition("\n")[0]
        logs = self._logs.get(origin)
        if logs is None:
            raise _Refused(404, "this witness does not know the log")
        try:
            text = note.open_note(signed, logs)
        except IntegrityFailure as exc:
            raise _Refused(403, exc.what) from exc
        return text, _parse_head(text)

    def _own_signatures(self, origin: str, signed: str) -> str:
        """The note with the log's own signatures alone: nothing is kept that was not verified."""
        text, _ = note.split_note(signed)
        known = {(log.name, log.key_id) for log in self._logs[origin]}
        kept = []
        for line in signed.rpartition("\n\n")[2].splitlines():
            name, signature = note.parse_signature_line(line)
            if (name, signature[:4]) in known:
                kept.append(line)
        return f"{text}\n" + "".join(f"{line}\n" for line in kept)

    def _known(self, origin: str) -> TreeHead | None:
        """The head that was cosigned last.

        Raises:
            ConfigurationError: What is stored is not signed by the log and by this witness.
        """
        found = self._state.find(origin_hash(origin))
        if found is None:
            return None
        try:
            text = note.open_note(found, self._logs[origin])
            if self._key.public.vkey not in cosign.cosignatures(found, [self._key.public]):
                raise IntegrityFailure("this witness did not cosign it")
            return _parse_head(text)
        except (BrokerError, _Refused) as exc:
            raise ConfigurationError(
                f"the stored checkpoint of {origin} is not one that this witness cosigned",
                why=exc.what if isinstance(exc, BrokerError) else str(exc),
                next="find out what happened to the folder; never restore it from an older copy",
            ) from exc


def _parse_head(text: str) -> TreeHead:
    """The head of a checkpoint's text, which may go on with extension lines."""
    lines = text.split("\n")
    try:
        if "" in lines[3:-1]:
            raise IntegrityFailure("an extension line is empty")
        return note.parse_head("\n".join([*lines[:3], ""]))
    except IntegrityFailure as exc:
        raise _Refused(400, exc.what) from exc


def _check_extends(known: TreeHead | None, head: TreeHead, proof: tuple[bytes, ...]) -> None:
    size, root = (0, merkle.EMPTY_ROOT) if known is None else (known.size, known.root)
    try:
        merkle.verify_consistency(size, head.size, proof, root, head.root)
    except (IntegrityFailure, RollbackDetected) as exc:
        raise _Refused(422, exc.what) from exc
