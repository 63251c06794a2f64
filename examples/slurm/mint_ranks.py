"""The launcher of a Slurm job: a token for each rank, bound to the rank's own key, renewed until SIGTERM.

    python3 mint_ranks.py FOLDER RANKS REF PATTERN

Ranks leave the thumbprints of their keys in FOLDER as STEP.RANK.jkt (task_prolog.sh) and find their tokens
in STEP.RANK/. PATTERN names a rank's files, with {rank} in it: shard-{rank:05d}-*
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from broker.client.minting import Minted, write_rank
from broker.client.sdk import Client
from broker.errors import BrokerError, RateLimited, Unavailable

TTL = int(os.environ.get("RANK_TOKEN_SECONDS", "600"))
"""Seconds that a rank's token lives, at most 900; it is renewed at half of that."""
LOOK_AGAIN = 0.2
"""Seconds between two looks for new ranks."""
NAME = re.compile(r"(?:0|[1-9][0-9]*)\.(0|[1-9][0-9]{0,6})\.jkt")


@dataclass(kw_only=True)
class Launcher:
    """What is minted for whom."""

    client: Client
    folder: Path
    ranks: int
    ref: str
    pattern: str
    due: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    minted: dict[str, Minted] = field(default_factory=dict, repr=False)

    def serve(self) -> None:
        """Mint for every rank that has come, and for those whose token is half way to its end."""
        for name, rank in self._arrived():
            # Read once: later tokens are for the key that the first one was for.
            self.keys.setdefault(name, (self.folder / f"{name}.jkt").read_text().strip())
            if time.monotonic() >= self.due.get(name, 0.0):
                self._mint(name, rank)

    def _arrived(self) -> Iterator[tuple[str, int]]:
        for path in sorted(self.folder.iterdir()):
            found = NAME.fullmatch(path.name)
            if found and int(found[1]) < self.ranks:
                yield path.name.removesuffix(".jkt"), int(found[1])

    def _mint(self, name: str, rank: int) -> None:
        try:
            if self._was_revoked(name):
                print(f"rank {rank}: its token was revoked; it gets no other one", file=sys.stderr)
                self.due[name] = math.inf
                return
            minted = self.client.mint(
                self.ref, paths=[self.pattern.format(rank=rank)], ttl=TTL, for_key=self.keys[name]
            )
        except (Unavailable, RateLimited) as exc:
            # The tokens that are out live on for the other half of their time.
            print(f"rank {rank}: no token yet: {exc.what}", file=sys.stderr)
            self.due[name] = time.monotonic() + 5
            return
        (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        write_rank(self.folder / name, self.client.profile, minted)
        self.minted[name] = minted
        self.due[name] = time.monotonic() + TTL / 2

    def _was_revoked(self, name: str) -> bool:
        held = self.minted.get(name)
        if held is None or held.expires <= time.time() * 1000:
            return False
        return not self.client.admin.inspect_token(held.text).get("active")


def main() -> None:
    """Serve until SIGTERM."""
    folder, ranks, ref, pattern = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Client.from_profile() as client:
        launcher = Launcher(client=client, folder=Path(folder), ranks=int(ranks), ref=ref, pattern=pattern)
        try:
            while not stop.wait(LOOK_AGAIN):
                launcher.serve()
        except BrokerError as exc:
            sys.exit(f"no more tokens for the ranks: {exc.what}: {exc.why}")


if __name__ == "__main__":
    main()
