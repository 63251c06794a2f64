"""I17: what a hostile publisher or client makes the Hub endpoint do costs a bounded amount."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from broker.client.agent import hub, repos
from broker.client.agent.hub_refusals import MAX_MESSAGE, refuse
from broker.envelope.manifest import ManifestFile
from broker.errors import Denied


def version_of(paths: list[str]) -> Any:
    """A version of so many files, as far as a listing looks at it."""
    files = tuple(
        ManifestFile(path=path, size=1, sha256=bytes(32), extents=(bytes(32),), segments=bytes(32))
        for path in sorted(paths, key=str.encode)
    )
    return SimpleNamespace(manifest=SimpleNamespace(files=files), digest="sha256:" + "0" * 64)


def test_I17_a_listing_of_deep_folders_keeps_one_page_in_memory() -> None:
    deep = version_of([f"{at:04d}/" + "d/" * 480 + "f" for at in range(400)])
    tracemalloc.start()
    page, more = repos.tree_page(deep, "", recursive=True, expand=False, start=100_000, most=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(page), more) == (10, True)
    assert peak < 1_000_000, "the 190,000 folders before the page would be 90 MB"


def test_I17_folders_are_told_once_and_in_order() -> None:
    paths = ["a-b", "a.b", "a/b/c", "a/b/d", "a/c/d", "ab/x", "b"]
    page, more = repos.tree_page(version_of(paths), "", recursive=True, expand=False, start=0, most=100)
    assert not more
    found = [entry["path"] for entry in page]
    assert found == ["a-b", "a.b", "a", "a/b", "a/b/c", "a/b/d", "a/c", "a/c/d", "ab", "ab/x", "b"]


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (1, 1), (hub.TREE_PAGE, hub.TREE_PAGE)])
def test_I17_a_page_has_at_most_its_size(asked: int, given: int) -> None:
    many = version_of([f"{at:06d}" for at in range(hub.TREE_PAGE + 1)])
    page, more = repos.tree_page(many, "", recursive=False, expand=False, start=0, most=max(1, asked))
    assert (len(page), more) == (given, True)


def test_I17_a_message_in_headers_is_bounded() -> None:
    answer = refuse(Denied("x" * 100_000, why="y" * 100_000))
    assert sum(len(name) + len(value) for name, value in answer.headers) < 3 * MAX_MESSAGE
