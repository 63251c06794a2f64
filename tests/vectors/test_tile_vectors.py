"""The vectors of tiles and exports in ``docs/formats``, against the code and against hashlib and pymerkle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pymerkle
import pytest
import rfc8785

from broker.errors import NotFound
from broker.ledger import tiles
from broker.ledger.certificate import Sample, Sampler, parse_certificate
from broker.ledger.tiles import Tile, TileBuilder, parse_tile, tile_path

VECTORS = Path(__file__).parents[2] / "docs" / "formats" / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


TILES, EXPORT = load("tiles.json"), load("export.json")
ENTRIES = [b"entry %d" % index for index in range(TILES["size"])]


def test_the_tiles_of_the_vector_are_made() -> None:
    made: dict[str, bytes] = {}
    builder = TileBuilder(lambda tile, data: made.__setitem__(tile_path(tile), data))
    builder.add(ENTRIES)
    assert builder.finish().root().hex() == TILES["root"]
    assert [
        {"path": path, "bytes": len(made[path]), "sha256": hashlib.sha256(made[path]).hexdigest()}
        for path in map(tile_path, tiles.tiles_for(0, TILES["size"]))
    ] == TILES["tiles"]


def test_plain_code_makes_the_same_tiles() -> None:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in ENTRIES:
        tree.append_entry(entry)
    assert tree.get_state().hex() == TILES["root"]
    leaves = [hashlib.sha256(b"\x00" + entry).digest() for entry in ENTRIES]
    bundles = [len(entry).to_bytes(2, "big") + entry for entry in ENTRIES]
    plain = {
        "tile/entries/000": b"".join(bundles[:256]),
        "tile/entries/001.p/44": b"".join(bundles[256:]),
        "tile/0/000": b"".join(leaves[:256]),
        "tile/0/001.p/44": b"".join(leaves[256:]),
        "tile/1/000.p/1": tree.get_state(256),
    }
    listed = {item["path"]: item["sha256"] for item in TILES["tiles"]}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in plain.items()} == listed


def test_names_and_bundles_of_the_vector() -> None:
    for item in TILES["paths"]:
        tile = Tile(level=item["level"], index=item["index"], width=item["width"])
        assert tile_path(tile) == item["path"]
        assert parse_tile(*item["path"].split("/", 2)[1:]) == tile
    for path in TILES["not_tiles"]:
        with pytest.raises(NotFound):
            parse_tile(*path.split("/", 2)[1:])
    entries = [bytes.fromhex(entry) for entry in TILES["bundle"]["entries"]]
    assert tiles.bundle_bytes(entries).hex() == TILES["bundle"]["bytes"]


def test_the_certificate_of_the_vector_is_canonical_and_is_read() -> None:
    data = EXPORT["certificate"].encode()
    assert rfc8785.dumps(json.loads(data)) == data
    asked = parse_certificate(data)
    assert (asked.query.principal, asked.query.since, asked.query.text) == (
        "user:ana",
        1_760_000_000_000,
        ("llama",),
    )
    assert asked.sample == Sample(size=5, seed="2026Q3")


def test_the_sample_of_the_vector_is_drawn() -> None:
    wanted = EXPORT["sample"]
    root = bytes.fromhex(wanted["root"])
    sampler = Sampler(Sample(size=wanted["size"], seed=wanted["seed"]), root)
    for index in range(100):
        sampler.offer(index)
    assert sorted(sampler.chosen()) == wanted["chosen"]
    seed = hashlib.sha256(wanted["seed"].encode()).digest()

    def rank(index: int) -> bytes:
        return hashlib.sha256(b"broker/sample/v1\n" + root + seed + index.to_bytes(8, "big")).digest()

    assert sorted(sorted(range(100), key=rank)[:5]) == wanted["chosen"]
