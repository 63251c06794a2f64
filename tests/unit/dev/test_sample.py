"""The demonstration's samples are what they say they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from broker.dev import sample

TINY = sample.ModelShape(vocabulary=512, hidden=64, inner=96, layers=2, heads=4, shards=3)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_checkpoint_loads_whole(tmp_path: Path) -> None:
    count = sample.make_checkpoint(tmp_path / "c", TINY, seed=1)
    loaded = sample.load_checkpoint(tmp_path / "c")
    assert loaded.parameters == count == TINY.parameters
    assert loaded.shards == TINY.shards
    assert loaded.tensors == len(list(TINY.tensors()))
    index = json.loads((tmp_path / "c" / sample.INDEX).read_text())
    assert index["metadata"]["total_size"] == count * 2
    with safe_open(str(tmp_path / "c" / index["weight_map"]["lm_head.weight"]), framework="np") as shard:
        head = shard.get_tensor("lm_head.weight")
    assert head.shape == (TINY.vocabulary, TINY.hidden)
    assert 0.01 < float(np.std(head.astype(np.float32))) < 0.03


def test_the_default_checkpoint_is_worth_several_leases() -> None:
    assert sample.ModelShape().parameters * 2 > 300 * 2**20


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sample.make_checkpoint(tmp_path / name, TINY, seed=seed)
        sample.make_dataset(tmp_path / f"{name}-data", rows=50, seed=seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a-data") == digests(tmp_path / "b-data")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    assert digests(tmp_path / "a-data") != digests(tmp_path / "c-data")


def test_every_row_is_json_and_every_word_has_a_token(tmp_path: Path) -> None:
    rows = sample.make_dataset(tmp_path / "d", rows=5000, seed=3)
    lines = [
        json.loads(line)
        for name in ("train", "validation")
        for line in (tmp_path / "d" / f"{name}.jsonl").read_text().splitlines()
    ]
    assert len(lines) == rows == 5250
    assert [line["id"] for line in lines[:5000]] == list(range(5000))
    sample.make_checkpoint(tmp_path / "c", sample.ModelShape(hidden=8, inner=8, layers=1, shards=1), seed=1)
    vocabulary = json.loads((tmp_path / "c" / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(sample.ModelShape().vocabulary))
    assert {word for line in lines for word in line["text"].split()} <= set(vocabulary)


def test_a_checkpoint_whose_index_lies_is_refused(tmp_path: Path) -> None:
    sample.make_checkpoint(tmp_path / "c", TINY, seed=1)
    path = tmp_path / "c" / sample.INDEX
    index = json.loads(path.read_text())
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="different tensors"):
        sample.load_checkpoint(tmp_path / "c")
