"""The launchers of distributed jobs, with the real torchrun and Ray: each rank reads its own part."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import MIB, ROOT, Stack, User, environment, noise, write_tree
from tests.outside import tool_env

RECIPE = ROOT / "examples" / "distributed"
RANKS = 2
TRAINED, CORPUS = "acme/launched@step-1000", "acme/launched-corpus@v1"
SECONDS = 180.0

SAVE = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def save(folder: str) -> None:
    # In a function: gloo's threads end only when nothing holds the mesh any more.
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(1024 * 256, dtype=torch.float32).reshape(1024, 256)
    dcp.save({"weight": distribute_tensor(whole, mesh, [Shard(0)])}, checkpoint_id=folder)


dist.init_process_group("gloo")
save(sys.argv[1])
dist.destroy_process_group()
"""

PROBE = """
# The training script as it is, and then what a rank may not do.
import json, os, sys
sys.path.insert(0, sys.argv[1])
import fsspec
import train

train.main(sys.argv[2])
rank = int(os.environ["RANK"])
refused = []
for path in (f"data/shard-{1 - rank:05d}.bin", f"weights/__{1 - rank}_0.distcp"):
    try:
        with fsspec.open(f"{sys.argv[2]}/{path}", "rb") as file:
            file.read(1)
    except PermissionError:
        refused.append(path)
print(json.dumps({"of": rank, "refused": refused}), flush=True)
"""

SHARDS = {f"data/shard-{rank:05d}.bin": noise(MIB // 4 + rank, f"launched {rank}") for rank in range(RANKS)}
PARTS = {f"shard-{rank:05d}-of-2.bin": noise(MIB // 4 + rank, f"ray {rank}") for rank in range(RANKS)}


@pytest.fixture(scope="module")
def launcher(stack: Stack) -> User:
    return stack.add("workload:launcher", "--role", "workload", "--group", "acme")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def surroundings(python: Path, launcher: User, **more: str) -> dict[str, str]:
    return environment(
        BROKER_PROFILE_DIR=str(launcher.profile),
        PATH=f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
        **more,
    )


def told(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines: torchrun's ranks may share one."""
    decoder, found = json.JSONDecoder(), []
    for line in text.splitlines():
        while line.startswith("{"):
            value, end = decoder.raw_decode(line)
            found.append(value)
            line = line[end:].strip()
    return found


def minted(stack: Stack, before: int) -> dict[str, dict[str, Any]]:
    """Key -> entry of each token that was minted since."""
    entries = [entry for entry in stack.entries()[before:] if entry.get("action") == "mint"]
    return {entry["jkt"]: entry for entry in entries}


# -- torchrun -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python() -> Path:
    return tool_env("torch")


@pytest.fixture(scope="module")
def halves(
    python: Path, launcher: User, pub: User, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each rank is to find: half of a tensor, and a shard."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "save.py").write_text(SAVE)
    tree = write_tree(folder / "tree", SHARDS)
    torchrun = str(python.parent / "torchrun")
    done = subprocess.run(
        [torchrun, "--standalone", f"--nproc-per-node={RANKS}", folder / "save.py", tree / "weights"],
        env=surroundings(python, launcher),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tree / "weights").glob("*.distcp")) == [
        "__0_0.distcp",
        "__1_0.distcp",
    ]
    pub.cli("put", tree, TRAINED, "--extent-size", "1MiB")
    values = [
        b"".join(float_bytes(number) for number in range(rank * 131072, (rank + 1) * 131072))
        for rank in range(RANKS)
    ]
    return [
        {"rank": rank, "weight": sha256(values[rank]), "data": sha256(SHARDS[f"data/shard-{rank:05d}.bin"])}
        for rank in range(RANKS)
    ]


def float_bytes(number: int) -> bytes:
    import struct

    return struct.pack("<f", number)


def common(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("rank", "weight", "data")}


def launch(*words: object, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(RECIPE / "torchrun_launch.sh"), *map(str, words)],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_torchrun_ranks_read_their_own(
    stack: Stack, python: Path, launcher: User, halves: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    before, rooms = stack.size(), set(Path("/dev/shm").glob("ranks.*"))
    url = f"broker://{TRAINED}"
    child = launch(TRAINED, RANKS, tmp_path / "probe.py", RECIPE, url, env=surroundings(python, launcher))
    out, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, err
    found = told(out)
    assert sorted((common(each) for each in found if "rank" in each), key=lambda e: e["rank"]) == halves
    refused = [each for each in found if "of" in each]
    assert sorted(each["of"] for each in refused) == [0, 1]
    for each in refused:
        other = 1 - each["of"]
        assert each["refused"] == [f"data/shard-{other:05d}.bin", f"weights/__{other}_0.distcp"]

    tokens = minted(stack, before)
    assert len(tokens) == RANKS
    reads = [entry for entry in stack.entries()[before:] if entry["type"] == "grant"]
    assert {entry["jkt"] for entry in reads} == set(tokens)
    assert {tokens[entry["jkt"]]["token"] for entry in reads} == {entry["token"] for entry in reads}
    assert set(Path("/dev/shm").glob("ranks.*")) == rooms


def test_torchrun_on_two_nodes(python: Path, launcher: User, halves: list[dict[str, Any]]) -> None:
    """Two launchers, each with one rank: neither has the other's key or token."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    group = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nodes = [
        launch(
            *(TRAINED, 1, RECIPE / "train.py", f"broker://{TRAINED}"),
            env=surroundings(python, launcher, NODE_RANK=str(node), **group),
        )
        for node in range(2)
    ]
    ended = [child.communicate(timeout=SECONDS) for child in nodes]
    assert [child.returncode for child in nodes] == [0, 0], [err for _, err in ended]
    assert [[common(each) for each in told(out)] for out, _ in ended] == [[half] for half in halves]


# -- Ray ------------------------------------------------------------------------------------------------

RAY_PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import ray
import ray_launch
from broker.client.sdk import Client

ref = sys.argv[2]
ray.init()
with Client.from_profile() as client:
    ranks = [ray_launch.Rank.remote() for _ in range(2)]
    keys = ray.get([rank.key.remote() for rank in ranks])
    refused = []
    for _ in range(2):  # with its first token, and with the one that follows
        ray_launch.provide(client, ref, ranks, keys)
        for number, rank in enumerate(ranks):
            ray.get(rank.read.remote(f"broker://{ref}/shard-{number:05d}-of-2.bin"))
            try:
                ray.get(rank.read.remote(f"broker://{ref}/shard-{1 - number:05d}-of-2.bin"))
            except PermissionError:
                refused.append(number)
    ray.get([rank.close.remote() for rank in ranks])
print(json.dumps({"keys": keys, "refused": refused}))
"""


@pytest.fixture(scope="module")
def ray_env(launcher: User, pub: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Ray on loopback, with its state and its own token in folders of the test, and no telemetry."""
    python = tool_env("ray")
    pub.cli("put", write_tree(tmp_path_factory.mktemp("corpus") / "tree", PARTS), CORPUS, "--kind", "dataset")
    # Its sockets are below this folder, and their names may have 107 characters.
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield surroundings(
        python,
        launcher,
        HOME=str(tmp_path_factory.mktemp("home")),
        RAY_TMPDIR=short,
        RAY_USAGE_STATS_ENABLED="0",
        # Its switch for systems where it must stay on loopback.
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    )
    shutil.rmtree(short)


def run_ray(*words: object, env: dict[str, str]) -> Any:
    done = subprocess.run(
        ["python", *map(str, words)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        executable=shutil.which("python", path=env["PATH"]),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ray_actors_read_their_own(stack: Stack, ray_env: dict[str, str]) -> None:
    before = stack.size()
    found = run_ray(RECIPE / "ray_launch.py", CORPUS, RANKS, env=ray_env)
    assert [each["sha256"] for each in found] == [sha256(data) for data in PARTS.values()]
    reads = [entry for entry in stack.entries()[before:] if entry["type"] == "grant"]
    assert {entry["jkt"] for entry in reads} == set(minted(stack, before)) == {each["key"] for each in found}


def test_ray_actors_read_nothing_else(stack: Stack, ray_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(RAY_PROBE)
    before = stack.size()
    found = run_ray(tmp_path / "probe.py", RECIPE, CORPUS, env=ray_env)
    assert found["refused"] == [0, 1, 0, 1]
    tokens = [entry["token"] for entry in stack.entries()[before:] if entry.get("action") == "mint"]
    assert len(set(tokens)) == 2 * RANKS
