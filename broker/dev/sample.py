"""Sample artifacts for the demonstration: a real checkpoint and a real dataset, made in seconds.

The checkpoint has the layout that a training run leaves behind: sharded safetensors files with an index,
a configuration and a tokenizer. Its tensors have the shapes, names and scales of a freshly initialised
decoder-only transformer in float16, so they are as incompressible as trained ones. The dataset is rows
of JSON lines over the same vocabulary. Both are functions of their seed: the same bytes every time.

**Source**: the safetensors format (8-byte little-endian header size, JSON header, tensor data) and the
sharding index ``model.safetensors.index.json`` with its ``weight_map``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

PARAMETER_BYTES: Final = 2
INDEX: Final = "model.safetensors.index.json"
_SPECIAL: Final = ("<unk>", "<s>", "</s>")
_ONSETS: Final = ("b", "br", "d", "f", "g", "gl", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v")
_VOWELS: Final = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS: Final = ("", "l", "m", "n", "r", "s", "t")
_ROWS_AT_ONCE: Final = 4096
_SHORTEST_ROW: Final = 12
_LONGEST_ROW: Final = 48


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder-only transformer.

    Attributes:
        vocabulary: Tokens.
        hidden: Width of the residual stream.
        inner: Width of the feed-forward layers.
        layers: Decoder layers.
        heads: Attention heads; they divide ``hidden``.
        shards: Files that the weights are spread over.
    """

    vocabulary: int = 16_384
    hidden: int = 1024
    inner: int = 2816
    layers: int = 10
    heads: int = 16
    shards: int = 4

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each tensor, in the order of the layers."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            base = f"model.layers.{layer}"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"{base}.self_attn.{name}.weight", (self.hidden, self.hidden)
            yield f"{base}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{base}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{base}.mlp.down_proj.weight", (self.hidden, self.inner)
            yield f"{base}.input_layernorm.weight", (self.hidden,)
            yield f"{base}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors together."""
        return sum(_count(shape) for _, shape in self.tensors())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def make_checkpoint(folder: Path, shape: ModelShape, *, seed: int) -> int:
    """Write a checkpoint into a new folder: weights, index, configuration, tokenizer.

    Returns:
        The number of parameters.

    Raises:
        FileExistsError: The folder exists.
    """
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    for at, names in enumerate(_split(shape)):
        file = f"model-{at + 1:05d}-of-{shape.shards:05d}.safetensors"
        tensors = {name: _tensor(numbers, name, size) for name, size in names.items()}
        save_file(tensors, str(folder / file), {"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total = shape.parameters * PARAMETER_BYTES
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "tokenizer.json", _tokenizer(shape.vocabulary))
    return shape.parameters


def _split(shape: ModelShape) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in order, cut into shards of about the same size."""
    room = shape.parameters / shape.shards
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shape.shards)]
    filled = 0
    for name, size in shape.tensors():
        shards[min(int(filled / room), shape.shards - 1)][name] = size
        filled += _count(size)
    return shards


def _tensor(numbers: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float16]:
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float16)
    values = numbers.standard_normal(shape, dtype=np.float32)
    values *= np.float32(0.02)
    return values.astype(np.float16)


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }


def make_words(count: int) -> list[str]:
    """``count`` different pronounceable words, shortest first."""
    syllables = [onset + vowel + coda for coda in _CODAS for onset in _ONSETS for vowel in _VOWELS]
    words = list(syllables[:count])
    for first in syllables:
        if len(words) >= count:
            break
        words += [first + second for second in syllables[: count - len(words)]]
    return words


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    tokens = [*_SPECIAL, *make_words(vocabulary - len(_SPECIAL))]
    return {
        "version": "1.0",
        "added_tokens": [{"id": at, "content": token, "special": True} for at, token in enumerate(_SPECIAL)],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: at for at, token in enumerate(tokens)},
            "unk_token": _SPECIAL[0],
        },
    }


def make_dataset(folder: Path, *, rows: int, seed: int) -> int:
    """Write a text dataset into a new folder: JSON lines for training and validation, and a description.

    Args:
        folder: Must not exist.
        rows: For training; a twentieth as many for validation.
        seed: Of its text.

    Returns:
        The number of rows.

    Raises:
        FileExistsError: The folder exists.
    """
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)
    words = np.array(make_words(8192))
    splits = {"train": rows, "validation": max(1, rows // 20)}
    for split, count in splits.items():
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(_rows(numbers, words, count))
    _write_json(folder / "dataset_info.json", {"features": ["id", "source", "text"], "splits": splits})
    return sum(splits.values())


def _rows(numbers: np.random.Generator, words: NDArray[np.str_], count: int) -> Iterator[str]:
    for start in range(0, count, _ROWS_AT_ONCE):
        size = min(_ROWS_AT_ONCE, count - start)
        lengths = numbers.integers(_SHORTEST_ROW, _LONGEST_ROW, size)
        # Words are as uneven as in real text: few are frequent, most are rare.
        picks = (len(words) * numbers.random(int(lengths.sum())) ** 3).astype(np.int64)
        texts = np.split(words[picks], np.cumsum(lengths)[:-1])
        for at, text in enumerate(texts):
            source = f"web-{(start + at) % 97:02d}"
            yield f'{{"id":{start + at},"source":"{source}","text":"{" ".join(text.tolist())}"}}\n'


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """What a training job finds when it opens a checkpoint.

    Attributes:
        parameters: Numbers in all tensors.
        tensors: Tensors.
        shards: Weight files.
    """

    parameters: int
    tensors: int
    shards: int


def load_checkpoint(folder: Path) -> LoadedCheckpoint:
    """Open a checkpoint as a training job does: the index, then every tensor of every shard.

    Raises:
        OSError: A file is missing.
        ValueError: The index and the shards do not agree.
    """
    weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    parameters, found = 0, dict[str, str]()
    for file in sorted(set(weight_map.values())):
        with safe_open(str(folder / file), framework="np") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a mapping
                parameters += _count(tuple(shard.get_slice(name).get_shape()))
                found[name] = file
    if found != weight_map:
        raise ValueError("the checkpoint's index and its shards name different tensors")
    return LoadedCheckpoint(parameters=parameters, tensors=len(found), shards=len(set(weight_map.values())))
