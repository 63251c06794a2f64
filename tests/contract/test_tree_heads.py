"""What a store of tree heads promises, in a folder and in a bucket of a real S3 server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.dev import seaweed as embedded
from broker.errors import IntegrityFailure, LedgerUnavailable, RollbackDetected
from broker.ports import TreeHeadStore
from broker.storage.heads import FolderHeads, S3Heads
from broker.storage.presign import Credentials
from broker.storage.s3 import S3Store
from tests.seaweed import RunningStore

pytestmark = pytest.mark.e2e


@pytest.fixture(params=["folder", "bucket"])
def heads(request: pytest.FixtureRequest, tmp_path: Path, seaweed: RunningStore) -> TreeHeadStore:
    if request.param == "folder":
        return FolderHeads(tmp_path / "heads", origin="test.example/log")
    return S3Heads(seaweed.store, origin=f"test.example{tmp_path}")


def test_the_newest_head_is_the_largest(heads: TreeHeadStore) -> None:
    assert heads.newest() is None
    for size in (9, 10, 1_000_000, 11, 0):
        heads.publish(size, f"head {size}\n")
    assert heads.newest() == (1_000_000, "head 1000000\n")


def test_a_head_is_written_once(heads: TreeHeadStore) -> None:
    heads.publish(5, "one\n")
    heads.publish(5, "one\n")
    with pytest.raises(RollbackDetected):
        heads.publish(5, "two\n")
    assert heads.newest() == (5, "one\n")


def test_of_two_heads_at_the_same_moment_one_is_refused(heads: TreeHeadStore) -> None:
    def publish(note: str) -> bool:
        try:
            heads.publish(7, note)
        except RollbackDetected:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(publish, ["a\n", "b\n", "c\n", "d\n"]))
    newest = heads.newest()
    assert newest is not None
    assert [note for note, done in zip("abcd", kept, strict=True) if done] == [newest[1].strip()]


def test_logs_that_share_a_bucket_keep_apart(seaweed: RunningStore) -> None:
    one, two = (S3Heads(seaweed.store, origin=f"apart.example/{n}") for n in (1, 2))
    one.publish(3, "one\n")
    two.publish(3, "two\n")
    assert (one.newest(), two.newest()) == ((3, "one\n"), (3, "two\n"))


def test_something_else_in_the_place_of_the_newest_head_is_refused(seaweed: RunningStore) -> None:
    heads = S3Heads(seaweed.store, origin="else.example")
    heads.publish(3, "\n" * 5000)
    with pytest.raises(IntegrityFailure):
        heads.newest()


def test_a_bucket_that_does_not_answer_is_unavailable() -> None:
    nowhere = S3Store(
        endpoint="http://127.0.0.1:1",
        region=embedded.REGION,
        bucket="none",
        credentials=lambda: Credentials(access_key="none", secret_key="none"),
        attempts=1,
    )
    heads = S3Heads(nowhere, origin="none.example")
    with pytest.raises(LedgerUnavailable):
        heads.newest()
    with pytest.raises(LedgerUnavailable):
        heads.publish(1, "one\n")
