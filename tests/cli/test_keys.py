"""``admin keys create``: every key for its own use, private, and never written over."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from broker.cli.root import cli, run
from broker.keys.local import ALGORITHMS, KeyPaths, load_key_ring
from broker.runtime import SystemEntropy


def test_keys_are_made_once_and_are_good_for_production(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert run(cli, ["admin", "keys", "create", str(folder), "--without-kek", "-q"]) == 0
    assert {path.stem for path in folder.iterdir()} == set(ALGORITHMS) - {"kek"}
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run(cli, ["admin", "keys", "create", str(folder), "-q"]) == 0
    assert all(path.read_bytes() == data for path, data in before.items())
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not json.loads(path.read_bytes()).get("dev")
    assert not load_key_ring(KeyPaths.in_folder(folder), entropy=SystemEntropy()).dev
