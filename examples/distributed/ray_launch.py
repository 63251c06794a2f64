"""Ray actors, with a token of its own for each: they read their shards of a dataset, and no others.

    python ray_launch.py acme/corpus@v1 RANKS

Each actor makes its key where it runs. The driver mints a token for that key, which is of no use to whoever
sees it pass, and replaces it for as long as the actors run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import ray

from broker.client import private_files, workload
from broker.client.sdk import Client
from broker.client.settings import CONFIG, config_text

TTL = int(os.environ.get("RANK_TOKEN_SECONDS", "600"))
"""Seconds that an actor's token lives, at most 900; it is replaced at half of that."""
READERS = ("BROKER_PROFILE_DIR", "BROKER_TOKEN_FILE", "BROKER_URL", "BROKER_LOG_VKEY")
"""Variables of the driver that would lead an actor to the driver's own identity."""


# Two threads: a token is replaced while the actor works.
@ray.remote(max_concurrency=2)
class Rank:
    """A training process: its key, its token, and what it reads with them."""

    def __init__(self) -> None:
        """Make a profile in memory, for this process alone."""
        for name in READERS:
            os.environ.pop(name, None)
        self.folder = Path(tempfile.mkdtemp(prefix="rank-", dir="/dev/shm"))
        os.environ["BROKER_PROFILE_DIR"] = str(self.folder)

    def key(self) -> str:
        """The thumbprint of its key, which is made here and never leaves."""
        return workload.make_key(self.folder / workload.KEY).jkt

    def accept(self, config: str, token: str) -> None:
        """Take the first token, or the one that follows it."""
        private_files.write_file(self.folder / CONFIG, config.encode())
        private_files.write_file(self.folder / workload.TOKEN, token.encode())

    def read(self, url: str) -> str:
        """Read one file; its SHA-256."""
        with fsspec.open(url, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    def close(self) -> None:
        """Forget the key."""
        shutil.rmtree(self.folder)


def provide(client: Client, ref: str, ranks: list[Any], keys: list[str]) -> None:
    """Mint for every actor, for its own key and its own shard."""
    config = config_text(replace(client.profile, principal=""))
    for number, (rank, key) in enumerate(zip(ranks, keys, strict=True)):
        minted = client.mint(ref, paths=[f"shard-{number:05d}-*"], ttl=TTL, for_key=key)
        ray.get(rank.accept.remote(config, minted.text))


def main(ref: str, count: int) -> None:
    """Start the actors, keep them in tokens, and print what they read."""
    ray.init()
    with Client.from_profile() as client:
        ranks = [Rank.remote() for _ in range(count)]
        keys = ray.get([rank.key.remote() for rank in ranks])
        provide(client, ref, ranks, keys)
        urls = [f"broker://{ref}/shard-{number:05d}-of-{count}.bin" for number in range(count)]
        left = reading = [rank.read.remote(url) for rank, url in zip(ranks, urls, strict=True)]
        while True:
            _, left = ray.wait(left, num_returns=len(left), timeout=TTL / 2)
            if not left:
                break
            provide(client, ref, ranks, keys)
        found = ray.get(reading)
        ray.get([rank.close.remote() for rank in ranks])
    print(
        json.dumps(
            [
                {"url": url, "key": key, "sha256": digest}
                for url, key, digest in zip(urls, keys, found, strict=True)
            ]
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
