"""A training process that reads its part of a sharded checkpoint and its shards of a dataset.

It reads through fsspec, from URLs, and knows nothing of tokens: which of them it may read is decided by
the profile that the launcher gave it. Start it with torchrun_launch.sh.
"""

from __future__ import annotations

import hashlib
import json
import sys

import fsspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

ROWS, COLUMNS = 1024, 256


def load_weights(url: str) -> torch.Tensor:
    """This rank's rows of a tensor that is sharded over all ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {"weight": distribute_tensor(torch.zeros(ROWS, COLUMNS), mesh, [Shard(0)])}
    # Each rank saved one file, so with the same sharding each rank reads one: its own.
    dcp.load(state, checkpoint_id=url)
    return state["weight"].to_local()


def read_shard(url: str) -> bytes:
    """This rank's shard of the dataset."""
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


def main(url: str) -> None:
    """Read what is this rank's, and do one step that needs every rank."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    weight = load_weights(f"{url}/weights")
    data = read_shard(f"{url}/data/shard-{rank:05d}.bin")
    total = weight.double().sum()
    dist.all_reduce(total)
    print(
        json.dumps(
            {
                "rank": rank,
                "rows": weight.shape[0],
                "weight": hashlib.sha256(weight.numpy().tobytes()).hexdigest(),
                "data": hashlib.sha256(data).hexdigest(),
                "total": total.item(),
            }
        ),
        flush=True,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
