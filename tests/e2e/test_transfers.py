"""What goes in comes out: byte for byte, for every shape of file and tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.errors import IntegrityFailure
from tests.e2e.running import MIB, Stack, User, noise, read_tree, write_tree

EXTENT = 2 * MIB
SIZES = {
    "empty": 0,
    "one": 1,
    "below-segment": MIB - 1,
    "segment": MIB,
    "above-segment": MIB + 1,
    # The first segment of an extent has room for 56 bytes less: header and tag are inside its 1 MiB.
    "below-first-segment": MIB - 57,
    "first-segment": MIB - 56,
    "above-first-segment": MIB - 55,
    "below-extent": EXTENT - 1,
    "extent": EXTENT,
    "above-extent": EXTENT + 1,
    "three-extents": 3 * EXTENT,
    "many-leases": 5 * EXTENT + 4321,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {f"sizes/{name}.bin": noise(size, name) for name, size in SIZES.items()}
    files |= {
        ".dotfile": b"hidden, and part of it all the same",
        ".config/.nested/.deep": b"three dots",
        "a/b/c/d/e/f/deep.txt": b"deep",
        "space in name.txt": b"space",
        "prüfung/Ελληνικά/日本語.txt": "ナ".encode() * 100,
        "quote'\"$(x);&|*?[a].txt": b"shell",
        "-o": b"looks like an option",
        "zeros.bin": bytes(3 * MIB),
    }
    return write_tree(tmp_path_factory.mktemp("tree") / "tree", files)


@pytest.fixture(scope="module")
def published(tree: Path, pub: User) -> str:
    ref = "acme/tree@v1"
    pub.cli("put", tree, ref, "--extent-size", "2MiB", "--label", "run=7")
    return ref


def test_every_byte_of_every_file(published: str, tree: Path, ana: User, tmp_path: Path) -> None:
    done = ana.cli("get", published, tmp_path / "out", "--purpose", "comparison", "-o", "json").json()
    assert read_tree(tmp_path / "out") == read_tree(tree)
    assert done["files"] == len(read_tree(tree))
    assert done["bytes"] == done["fetched_bytes"] == sum(map(len, read_tree(tree).values()))
    assert done["leases"] > 3
    assert list((tmp_path / "out" / ".broker" / "partial").iterdir()) == []
    ana.cli("verify", tmp_path / "out", published)


def test_a_selection(published: str, tree: Path, ana: User, tmp_path: Path) -> None:
    ana.cli("get", published, tmp_path / "out", "--include", "sizes/**", "--exclude", "*extent*")
    wanted = {
        path: data
        for path, data in read_tree(tree).items()
        if path.startswith("sizes/") and "extent" not in path
    }
    assert read_tree(tmp_path / "out") == wanted


def test_one_file_by_its_path(published: str, tree: Path, ana: User, tmp_path: Path) -> None:
    ana.cli("get", f"{published}/a/b/c/d/e/f/deep.txt", tmp_path / "out")
    assert list(read_tree(tmp_path / "out").values()) == [b"deep"]


def test_ranges(published: str, tree: Path, ana: User) -> None:
    data = (tree / "sizes" / "many-leases.bin").read_bytes()
    for start, stop in ((0, 1), (MIB - 10, MIB + 10), (EXTENT - 1, EXTENT + 1), (len(data) - 5, len(data))):
        with ana.client() as client, client.open(f"{published}/sizes/many-leases.bin") as file:
            file.seek(start)
            assert file.read(stop - start) == data[start:stop]
            assert file.seek(0, os.SEEK_END) == len(data)
            assert file.read() == b""


def test_cat_writes_the_very_bytes(published: str, ana: User) -> None:
    assert ana.cli("cat", f"{published}/a/b/c/d/e/f/deep.txt").out == "deep"
    assert ana.cli("cat", f"{published}/a/b/c/d/e/f/deep.txt", "--range", "1-2").out == "ee"


def test_the_same_again_fetches_nothing(published: str, ana: User, tmp_path: Path) -> None:
    words = ("get", published, tmp_path / "out", "--include", "sizes/*", "-o", "json")
    assert ana.cli(*words).json()["fetched_bytes"] == sum(SIZES.values())
    assert ana.cli(*words).json()["fetched_bytes"] == 0


def test_a_differing_file_is_not_overwritten(published: str, ana: User, tmp_path: Path) -> None:
    words = ("get", published, tmp_path / "out", "--include", "a/**")
    (tmp_path / "out" / "a/b/c/d/e/f").mkdir(parents=True)
    mine = tmp_path / "out" / "a/b/c/d/e/f/deep.txt"
    mine.write_bytes(b"mine")
    assert "error:" in ana.cli(*words, expect=2).err
    assert mine.read_bytes() == b"mine"
    ana.cli(*words, "--force")
    assert mine.read_bytes() == b"deep"


def test_verify_names_what_differs(published: str, ana: User, tmp_path: Path) -> None:
    ana.cli("get", published, tmp_path / "out", "--include", "sizes/*")
    with open(tmp_path / "out" / "sizes" / "extent.bin", "r+b") as file:
        file.seek(EXTENT // 2)
        file.write(b"\0\1\2\3")
    done = ana.cli("verify", tmp_path / "out", published, expect=6)
    assert "sizes/extent.bin" in done.out + done.err
    assert "sizes/three-extents.bin" not in done.err


def test_the_same_content_is_no_conflict_and_other_content_is(
    published: str, tree: Path, pub: User, tmp_path: Path, stack: Stack
) -> None:
    before = stack.objects()
    words = ("--extent-size", "2MiB", "--label", "run=7")
    assert pub.cli("put", tree, published, *words, "-o", "json").json()["created"] is False
    assert "409" not in pub.cli("put", tree, published, "--label", "run=8", expect=2).err
    other = write_tree(tmp_path / "other", {**read_tree(tree), ".dotfile": b"changed"})
    assert "error:" in pub.cli("put", other, published, *words, expect=2).err
    assert stack.objects() == before


def test_a_dataset_of_one_file_by_the_sdk(pub: User, ana: User, tmp_path: Path) -> None:
    data = b"".join(b'{"row":%d}\n' % at for at in range(200_000))
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pub.client() as client:
        done = client.publish(tmp_path / "rows.jsonl", "acme/rows@v1", kind="dataset", extent_size=MIB)
    assert done.created
    assert done.bytes == len(data)
    seen: list[int] = []
    with ana.client() as client:
        receipt = client.fetch("acme/rows", tmp_path / "out", on_progress=lambda p: seen.append(p.total_done))
        assert client.can("acme/rows@v1")["decision"]["effect"] == "allow"
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == data
    assert receipt.version == "v1"
    assert max(seen) == len(data)


def test_a_receipt_verifies_offline_and_not_when_changed(published: str, ana: User, tmp_path: Path) -> None:
    from broker import verify_receipt
    from broker.client.settings import load_profile

    ana.cli("get", published, tmp_path / "out", "--include", "-o", "--exclude", "sizes/*")
    receipts = sorted((tmp_path / "out" / ".broker" / "receipts").glob("*.tlog-proof"))
    assert receipts
    trust = load_profile(ana.profile)
    for path in receipts:
        verify_receipt(path, trust)
        ana.cli("ledger", "verify-receipt", path, BROKER_URL="http://127.0.0.1:1")
    text = receipts[0].read_text()
    at = text.index("extra ") + 40
    changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    with pytest.raises(IntegrityFailure):
        verify_receipt(changed, trust)
