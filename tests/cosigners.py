"""Witnesses of other people for tests: written from the C2SP texts alone, with nothing of ours in them.

``MemoryWitness`` is a port of the broker: it answers as a witness over HTTP would.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.db.cosignatures import CosignatureStore
from broker.db.engine import open_engine
from broker.errors import Unavailable
from broker.ports import WitnessAnswer
from broker.services.cosigned import Cosigned, parse_policy
from broker.services.cosigning import CosigningRound
from tests.world import World

LAG_SECONDS = 60


def _inner(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def is_consistent(old: int, new: int, proof: list[bytes], old_root: bytes, new_root: bytes) -> bool:
    """RFC 9162 section 2.1.4.2."""
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for node in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = _inner(node, fr), _inner(node, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = _inner(sr, node)
        fn, sn = fn >> 1, sn >> 1
    return fr == old_root and sr == new_root and sn == 0


class MemoryWitness:
    """One witness of one log; its tests make it silent, forgetful or a liar."""

    def __init__(self, name: str, now: Callable[[], int]) -> None:
        self.name = name
        self.key = Ed25519PrivateKey.generate()
        public = self.key.public_key().public_bytes_raw()
        self._id = hashlib.sha256(name.encode() + b"\n\x04" + public).digest()[:4]
        encoded = base64.b64encode(b"\x04" + public).decode()
        self.vkey = f"{name}+{self._id.hex()}+{encoded}"
        self.seen: tuple[int, bytes] = (0, hashlib.sha256(b"").digest())
        self.asked = 0
        self.is_down = False
        self.answer: Callable[[WitnessAnswer], WitnessAnswer] = lambda honest: honest
        self._now = now

    def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        self.asked += 1
        if self.is_down:
            raise Unavailable("the witness does not answer")
        return self.answer(self._answer(body))

    def _answer(self, body: bytes) -> WitnessAnswer:
        before, _, note = body.decode().partition("\n\n")
        first, *proof = before.split("\n")
        old, text = int(first.removeprefix("old ")), note.partition("\n\n")[0] + "\n"
        _, size, root = text.split("\n")[:3]
        head = int(size), base64.b64decode(root)
        if old > head[0]:
            return WitnessAnswer(status=400, kind="text/plain", body=b"")
        if old != self.seen[0] or (old == head[0] and head != self.seen):
            return WitnessAnswer(status=409, kind="text/x.tlog.size", body=f"{self.seen[0]}\n".encode())
        if not is_consistent(old, head[0], [base64.b64decode(p) for p in proof], self.seen[1], head[1]):
            return WitnessAnswer(status=422, kind="text/plain", body=b"")
        self.seen = head
        return WitnessAnswer(status=200, kind="text/plain", body=f"{self.sign(text)}\n".encode())

    def sign(self, text: str) -> str:
        """The signature line under a head's text. Source: C2SP tlog-cosignature."""
        seconds = self._now() // 1000
        signature = self.key.sign(f"cosignature/v1\ntime {seconds}\n{text}".encode())
        blob = self._id + seconds.to_bytes(8, "big") + signature
        return f"— {self.name} {base64.b64encode(blob).decode()}"


def policy_text(log_vkey: str, witnesses: Sequence[MemoryWitness], needed: int) -> str:
    """A policy file: so many of these witnesses, each with a URL that nobody asks here."""
    lines = [f"log {log_vkey}"]
    lines += [f"witness w{i} {w.vkey} https://{w.name}/" for i, w in enumerate(witnesses)]
    members = " ".join(f"w{i}" for i in range(len(witnesses)))
    return "\n".join([*lines, f"group some {needed} {members}", "quorum some", ""])


class Witnessed:
    """A world's broker with witnesses, and the rounds in which it asks them."""

    def __init__(self, world: World, *, count: int = 3, needed: int = 2) -> None:
        self.world = world
        self.witnesses = [MemoryWitness(f"witness{i}.example", world.clock.now) for i in range(count)]
        self.text = policy_text(world.house.log.vkey, self.witnesses, needed)
        self.known = self.open()
        world.with_settings(witnessed=self.known)
        self.round = CosigningRound(world.house, self.known)

    def open(self) -> Cosigned:
        """What a process that begins now knows."""
        return Cosigned(
            policy=parse_policy(self.text.encode(), self.world.house.log),
            witnesses={w.vkey: w for w in self.witnesses},
            rows=CosignatureStore(open_engine(self.world.url)),
            max_lag=LAG_SECONDS * 1000,
        )

    def run(self) -> dict[str, Any]:
        """A round, far enough from the last one."""
        self.world.clock.forward(2)
        return dict(self.round.run())

    @property
    def asked(self) -> int:
        return sum(w.asked for w in self.witnesses)
