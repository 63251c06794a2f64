"""pandas, pyarrow, torch and safetensors through ``broker://``, in an environment of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.client.fs import BrokerFileSystem
from broker.envelope import extents
from broker.envelope.manifest import ManifestFile
from tests.e2e.running import MIB, ROOT, Stack, User, read_tree
from tests.outside import tool_env

PAGE = ROOT / "docs" / "integrations" / "fsspec.md"
EXTENT = 4 * MIB
MODEL, CORPUS = "acme/llama-7b@step-1000", "acme/corpus@2026-11"

MAKE = """
import os, pathlib, sys
import numpy, pandas, pyarrow, pyarrow.parquet, safetensors.torch, torch
import torch.distributed.checkpoint as dcp

root = pathlib.Path(sys.argv[1])
model, corpus = root / "model", root / "corpus"
(model / "distributed").mkdir(parents=True)
(corpus / "train").mkdir(parents=True)
torch.manual_seed(7)
layers = {f"layers.{at}.weight": torch.randn(512, 768) for at in range(12)}
safetensors.torch.save_file(layers, model / "model.safetensors")
torch.save({"exp_avg": torch.randn(300, 1000), "step": torch.tensor(1000)}, model / "optimizer.pt")
state = {"weight": torch.randn(256, 1024), "step": 1000}
dcp.save(state, checkpoint_id=str(model / "distributed"), no_dist=True)
chance = numpy.random.default_rng(7)
for part in range(2):
    ids = numpy.arange(part * 20_000, (part + 1) * 20_000)
    table = pyarrow.table({"id": ids, **{f"c{at}": chance.random(len(ids)) for at in range(20)}})
    pyarrow.parquet.write_table(table, corpus / "train" / f"part-{part}.parquet", compression="none")
pandas.DataFrame({"id": range(1000), "label": [f"label {at}" for at in range(1000)]}).to_csv(
    corpus / "labels.csv", index=False
)
(corpus / "samples.bin").write_bytes(chance.bytes(64 * 1024))
"""

COMPARE = """
import pathlib, sys
import pandas.testing, pyarrow.parquet, safetensors.torch

root = pathlib.Path(sys.argv[1])
model, corpus = root / "model", root / "corpus"
assert names == [f"acme/corpus@2026-11/{name}" for name in ("labels.csv", "samples.bin", "train")], names
assert info["size"] == (corpus / "labels.csv").stat().st_size
assert parts == [f"acme/corpus@2026-11/train/part-{part}.parquet" for part in range(2)]
assert head == (corpus / "labels.csv").read_bytes()[:100]
pandas.testing.assert_frame_equal(labels, pd.read_csv(corpus / "labels.csv"))
local = [corpus / "train" / f"part-{part}.parquet" for part in range(2)]
pandas.testing.assert_frame_equal(column, pd.read_parquet(local[0], columns=["id"]))
pandas.testing.assert_frame_equal(frame, pd.read_parquet(local[1]))
assert whole.equals(pyarrow.parquet.read_table(local[0]))
assert small.to_pydict() == {"id": list(range(10))}
mine = torch.load(model / "optimizer.pt", weights_only=True)
assert optimizer.keys() == mine.keys() and all(torch.equal(optimizer[key], mine[key]) for key in mine)
saved = {"weight": torch.zeros(256, 1024), "step": 0}
dcp.load(saved, checkpoint_id=str(model / "distributed"), no_dist=True)
assert state["step"] == saved["step"] == 1000
assert torch.equal(state["weight"], saved["weight"]) and saved["weight"].any()
assert bytes(rows.flatten().tolist()) == (corpus / "samples.bin").read_bytes()
layers = safetensors.torch.load_file(model / "model.safetensors")
assert torch.equal(tensor, layers["layers.3.weight"])
print("the same")
"""

WORKERS = """
import sys
import fsspec, torch

# As in the page, but a module of its own: a spawned worker imports it to unpickle its dataset.
sys.path.insert(0, sys.argv[1])
import samples

if __name__ == "__main__":
    data = samples.Samples("broker://acme/corpus@2026-11/samples.bin")
    assert data.fs.exists(data.path), "the parent talks to the broker before there are workers"
    found = {}
    for method in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            data, batch_size=8, num_workers=2, multiprocessing_context=method, persistent_workers=True
        )
        for epoch in range(2):
            found[method] = torch.cat(list(loader))
    assert torch.equal(found["fork"], found["spawn"])
    sys.stdout.buffer.write(bytes(found["fork"].flatten().tolist()))
"""


def python(user: User, code: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    """Run a program in the environment of torch, with the profile of a user."""
    done = subprocess.run(
        [str(tool_env("torch")), "-c", code, *map(str, words)],
        env=user.env(),
        cwd=user.stack.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.S | re.M)


@pytest.fixture(scope="module")
def published(stack: Stack, pub: User, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    python(pub, MAKE, root)
    for part, ref, kind in (("model", MODEL, "checkpoint"), ("corpus", CORPUS, "dataset")):
        pub.cli("put", root / part, ref, "--kind", kind, "--extent-size", f"{EXTENT // MIB}MiB")
    return root


def test_the_examples_of_the_page_read_what_was_published(published: Path, ana: User) -> None:
    done = python(ana, "\n".join([*blocks(), COMPARE]), published)
    assert done.stdout.decode().endswith("the same\n")


def test_data_loader_workers(published: Path, ana: User, tmp_path: Path) -> None:
    """Forked and spawned workers, with a dataset that the parent has read through already."""
    (code,) = [block for block in blocks() if "class Samples" in block]
    dataset = code.partition("\n\nsamples = ")[0]
    (tmp_path / "samples.py").write_text(f"import fsspec\nimport torch\n\n\n{dataset}\n")
    (tmp_path / "main.py").write_text(WORKERS)
    done = subprocess.run(
        [str(tool_env("torch")), str(tmp_path / "main.py"), str(tmp_path)],
        env=ana.env(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert done.stdout == (published / "corpus" / "samples.bin").read_bytes()


def test_every_file_byte_for_byte(published: Path, ana: User, tmp_path: Path) -> None:
    fs = BrokerFileSystem(profile_dir=ana.profile)
    for part, ref in (("model", MODEL), ("corpus", CORPUS)):
        fs.get(f"{ref}/", str(tmp_path / part), recursive=True)
        assert read_tree(tmp_path / part) == read_tree(published / part)


# -- what is touched ------------------------------------------------------------------------------------


def reads_of(stack: Stack, user: User, since: int) -> list[dict[str, Any]]:
    """The entries of a user's grants and leases from an index on."""
    entries = stack.entries()[since:]
    return [e for e in entries if e["type"] in ("grant", "lease") and e["principal"] == user.id]


def touched(file: ManifestFile, *ranges: tuple[int, int]) -> set[tuple[int, int]]:
    """(extent, segment) of every segment that the ranges lie in."""
    found = set()
    for start, stop in ranges:
        first, last = extents.extent_span(file.size, EXTENT, start, stop)
        for extent in range(first, last + 1):
            plain = extents.extent_plaintext_size(file.size, EXTENT, extent)
            low, high = max(0, start - extent * EXTENT), min(plain, stop - extent * EXTENT)
            one, other = extents.segment_span(plain, low, high)
            found |= {(extent, segment) for segment in range(one, other + 1)}
    return found


def size_of(file: ManifestFile, segments: set[tuple[int, int]]) -> int:
    """Plaintext bytes of segments."""
    plain = {extent: extents.extent_plaintext_size(file.size, EXTENT, extent) for extent, _ in segments}
    return sum(extents.segment_plaintext_range(plain[extent], at)[1] for extent, at in segments)


def test_a_tensor_costs_its_own_segments(published: Path, stack: Stack, pub: User) -> None:
    """The ledger says it: the header's segment and the tensor's own, and not a byte more."""
    reader = stack.add("tess", "--role", "engineer", "--group", "acme")
    with open(published / "model" / "model.safetensors", "rb") as local:
        length = int.from_bytes(local.read(8), "little")
        header = json.loads(local.read(length))
        start, stop = (8 + length + at for at in header["layers.7.weight"]["data_offsets"])
        local.seek(start)
        expected = local.read(stop - start)
    with pub.client() as client:
        files = client.info(MODEL).manifest.files
    file = next(file for file in files if file.path == "model.safetensors")
    since = stack.size()
    fs = BrokerFileSystem(profile_dir=reader.profile)
    with fs.open(f"broker://{MODEL}/model.safetensors") as remote:
        assert int.from_bytes(remote.read(8), "little") == length
        assert json.loads(remote.read(length)) == header
        remote.seek(start)
        assert remote.read(stop - start) == expected
    wanted = touched(file, (0, 8 + length), (start, stop))
    reads = reads_of(stack, reader, since)
    assert sum(entry["selection"].get("segments", 0) for entry in reads) == len(wanted)
    assert sum(entry["served"] for entry in reads) == size_of(file, wanted) < file.size / 3


def test_columns_cost_their_own_segments(published: Path, stack: Stack) -> None:
    """One column of twenty-one: most of the file stays where it is."""
    reader = stack.add("carl", "--role", "engineer", "--group", "acme")
    since = stack.size()
    code = (
        "import pandas as pd\n"
        f"found = pd.read_parquet('broker://{CORPUS}/train/part-1.parquet', columns=['id'])\n"
        "assert list(found['id']) == list(range(20_000, 40_000))\n"
    )
    python(reader, code)
    size = os.path.getsize(published / "corpus" / "train" / "part-1.parquet")
    served = sum(entry["served"] for entry in reads_of(stack, reader, since))
    assert size > 3 * MIB
    assert 0 < served < size * 0.7
