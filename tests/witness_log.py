"""A log for witnesses in tests: it grows, signs heads, proves consistency, and forks when it is told to."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.ledger import cosign, merkle, note


class SmallLog:
    """``size`` leaves under one origin; ``fork`` changes what its leaves are."""

    def __init__(self, origin: str = "example.com/log", *, fork: str = "", seed: bytes = b"L") -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(seed * 32)
        self.verifier = note.Verifier(name=origin, public=self.key.public_key().public_bytes_raw())
        self._fork = fork
        self._leaves: list[bytes] = []

    def _read(self, level: int, start: int, stop: int) -> list[bytes]:
        assert level == 0
        return self._leaves[start:stop]

    def grow(self, size: int) -> SmallLog:
        for at in range(len(self._leaves), size):
            self._leaves.append(merkle.leaf_hash(f"{at}{self._fork}".encode()))
        return self

    def head(self, size: int) -> note.TreeHead:
        self.grow(size)
        frontier, _ = merkle.Frontier().extend(self._leaves[:size])
        return note.TreeHead(origin=self.verifier.name, size=size, root=frontier.root())

    def signed(self, size: int) -> str:
        return note.sign_head(self.head(size), self.verifier, self.key.sign)

    def proof(self, old: int, size: int) -> list[bytes]:
        self.grow(size)
        return [] if old in (0, size) else list(merkle.consistency_proof(old, size, self._read))

    def request(self, old: int, size: int) -> bytes:
        return cosign.build_request(old, self.proof(old, size), self.signed(size))
