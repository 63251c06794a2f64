"""The whole way: publish, read, compare, resume; over HTTP, with the real services."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.client.sdk import Client, verify_receipt
from broker.errors import Conflict, Denied, IntegrityFailure, InvalidRequest, NotFound, UsageError
from tests.unit.client.conftest import MIB, Stack, make_tree, tree

FILES = {
    "config.json": b'{"layers": 2}',
    ".hidden": b"dot",
    "empty": b"",
    "shards/a.bin": os.urandom(3 * MIB + 17),
    "shards/b.bin": os.urandom(MIB),
    "shards/deep/c[1].bin": os.urandom(MIB - 40),
}


@pytest.fixture
def published(publisher: Client, tmp_path: Path) -> Client:
    made = publisher.publish(make_tree(tmp_path / "src", FILES), "acme/llama@v1", extent_size=MIB)
    assert (made.created, made.files, made.bytes) == (True, 6, sum(map(len, FILES.values())))
    return publisher


def test_what_comes_back_is_what_was_published(published: Client, reader: Client, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = reader.fetch(
        "acme/llama@v1",
        tmp_path / "out",
        purpose="evaluation",
        on_progress=lambda at: steps.append((at.total_done, at.total)),
    )
    assert tree(tmp_path / "out") == FILES
    assert (found.files, found.bytes, found.version) == (6, sum(map(len, FILES.values())), "v1")
    assert found.fetched_bytes == found.bytes
    assert found.entry["purpose"] == "evaluation"
    assert found.completion is not None
    assert steps[-1] == (found.bytes, found.bytes)
    verify_receipt(found, reader.profile)
    kept = sorted((tmp_path / "out/.broker/receipts").iterdir())
    assert [p.name for p in kept] == [
        f"{found.index:08d}-completion.tlog-proof",
        f"{found.index:08d}-grant.tlog-proof",
    ]
    for path in kept:
        verify_receipt(path, reader.profile.vkey)


def test_newest_digest_path_and_globs(published: Client, reader: Client, tmp_path: Path) -> None:
    newest = reader.fetch("broker://acme/llama", tmp_path / "all")
    assert newest.version == "v1"
    reader.fetch(f"acme/llama@{newest.manifest}/shards", tmp_path / "folder")
    assert set(tree(tmp_path / "folder")) == {p for p in FILES if p.startswith("shards/")}
    reader.fetch("acme/llama@v1/shards/deep/c[1].bin", tmp_path / "one")
    assert tree(tmp_path / "one") == {"shards/deep/c[1].bin": FILES["shards/deep/c[1].bin"]}
    reader.fetch("acme/llama@v1", tmp_path / "some", include=["**/*.bin"], exclude=["**/b.bin"])
    assert set(tree(tmp_path / "some")) == {"shards/a.bin", "shards/deep/c[1].bin"}
    with pytest.raises(InvalidRequest):
        reader.fetch("acme/llama@v1", tmp_path / "none", include=["nothing"])
    with pytest.raises(InvalidRequest):
        reader.fetch("acme/llama@v1/empty", tmp_path / "none", include=["*"])
    assert not (tmp_path / "none").exists()


def test_many_leases(stack: Stack, published: Client, reader: Client, tmp_path: Path) -> None:
    stack.apply(lease_window=MIB)
    found = reader.fetch("acme/llama@v1", tmp_path / "out", jobs=2)
    assert tree(tmp_path / "out") == FILES
    assert found.leases >= 4
    assert len(list((tmp_path / "out/.broker/receipts").glob("*-lease.tlog-proof"))) == found.leases - 1


def test_a_second_run_fetches_nothing(
    stack: Stack, published: Client, reader: Client, tmp_path: Path
) -> None:
    reader.fetch("acme/llama@v1", tmp_path / "out")
    before = len(stack.store.gets)
    again = reader.fetch("acme/llama@v1", tmp_path / "out")
    assert again.fetched_bytes == 0
    assert len(stack.store.gets) == before


def test_a_damaged_file_is_in_the_way_until_forced(published: Client, reader: Client, tmp_path: Path) -> None:
    reader.fetch("acme/llama@v1", tmp_path / "out")
    damaged = tmp_path / "out/shards/a.bin"
    damaged.write_bytes(FILES["shards/a.bin"][:-1] + b"x")
    with pytest.raises(UsageError, match=r"a\.bin exists and differs"):
        reader.fetch("acme/llama@v1", tmp_path / "out")
    found = reader.fetch("acme/llama@v1", tmp_path / "out", force=True)
    assert found.fetched_bytes == len(FILES["shards/a.bin"])
    assert tree(tmp_path / "out") == FILES


def test_refusals_are_errors_with_reasons(
    published: Client, reader: Client, stack: Stack, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        reader.fetch("acme/llama@v2", tmp_path / "out")
    outsider = stack.add("eve", groups=("other",))
    with pytest.raises(NotFound):
        outsider.fetch("acme/llama@v1", tmp_path / "out")
    with pytest.raises(Denied):
        reader.publish(make_tree(tmp_path / "x", {"f": b"x"}), "acme/llama@v2")
    assert not (tmp_path / "out").exists()


def test_same_content_again_is_fine_other_content_is_not(published: Client, tmp_path: Path) -> None:
    again = published.publish(tmp_path / "src", "acme/llama@v1", extent_size=2 * MIB)
    assert not again.created
    assert again.receipt is None
    (tmp_path / "src/config.json").write_bytes(b"{}")
    with pytest.raises(Conflict, match="exists"):
        published.publish(tmp_path / "src", "acme/llama@v1")


def test_one_file_and_several_parts(publisher: Client, reader: Client, tmp_path: Path) -> None:
    data = os.urandom(19 * MIB + 5)
    (tmp_path / "weights.bin").write_bytes(data)
    publisher.publish(
        tmp_path / "weights.bin", "acme/big@v1", extent_size=2 * MIB, labels={"run": "7"}, jobs=3
    )
    info = publisher.info("acme/big")
    assert dict(info.manifest.labels) == {"tier": "standard", "run": "7"}
    reader.fetch("acme/big@v1", tmp_path / "out", jobs=3)
    assert tree(tmp_path / "out") == {"weights.bin": data}


def test_verify_names_what_differs(published: Client, reader: Client, tmp_path: Path) -> None:
    from broker.client.verify import check_same

    reader.fetch("acme/llama@v1", tmp_path / "out")
    check_same(reader.verify(tmp_path / "out", "acme/llama@v1"))
    (tmp_path / "out/empty").unlink()
    (tmp_path / "out/config.json").write_bytes(b"{}")
    (tmp_path / "out/more").write_bytes(b"")
    found = reader.verify(tmp_path / "out", "acme/llama@v1")
    assert (found.differing, found.missing, found.extra) == (("config.json",), ("empty",), ("more",))
    with pytest.raises(IntegrityFailure, match="not acme/llama@v1"):
        check_same(found)
    assert reader.verify(tmp_path / "out/shards/b.bin", "acme/llama@v1/shards/b.bin").same


def test_looking_around(published: Client, reader: Client) -> None:
    assert reader.whoami()["principal"]["id"] == reader.profile.principal
    assert [row["artifact"] for row in reader.ls()] == ["acme/llama"]
    assert [row["artifact"] for row in reader.ls("acme")] == ["acme/llama"]
    assert [row["version"] for row in reader.ls("acme/llama")] == ["v1"]
    answer = reader.can("acme/llama@v1")
    assert answer["decision"]["effect"] == "allow"
