"""fsspec's own suite for what reads: copying out of a filesystem, with its rules for folders and globs.

Its other classes (open, pipe, put, copy, mv) write to the filesystem in every test, so none of them can
apply here; that all of that is refused is in test_fs.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures
from fsspec.tests.abstract.get import AbstractGetTests

from broker.client.fs import BrokerFileSystem
from broker.client.sdk import Client
from tests.unit.client.conftest import Stack, restored


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module")
def first(shared_stack: Stack) -> Client:
    return shared_stack.add("first", roles=("publisher", "engineer"), groups=("acme",))


class PublishedScenarios(AbstractFixtures):  # type: ignore[misc]
    """The suite's scenarios, made by its own functions in a local folder and then published."""

    @pytest.fixture
    def fs(self, stack: Stack, first: Client) -> BrokerFileSystem:
        return BrokerFileSystem(profile_dir=first.profile.folder)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join

    @pytest.fixture
    def publish(self, first: Client, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
        def publish(name: str, scenario: Callable[..., object]) -> str:
            folder = tmp_path_factory.mktemp(name)
            scenario(LocalFileSystem(auto_mkdir=True), posixpath.join, str(folder))
            first.publish(folder, f"acme/{name}@v1")
            return f"acme/{name}@v1/source"

        return publish

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, publish: Callable[..., str]) -> str:
        return publish("bulk", self._bulk_operations_scenario_0)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, publish: Callable[..., str]) -> str:
        return publish("globs", self._glob_edge_cases_files)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, publish: Callable[..., str]) -> str:
        return publish("prefix", self._dir_and_file_with_same_name_prefix)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, publish: Callable[..., str]) -> str:
        return publish("hashed", self._10_files_with_hashed_names)


class TestGet(PublishedScenarios, AbstractGetTests):  # type: ignore[misc]
    def test_get_directory_recursive(
        self, fs: BrokerFileSystem, first: Client, tmp_path: Path, local_target: Any
    ) -> None:
        """As in the suite, which makes its source with the filesystem's own mkdir and touch."""
        (tmp_path / "v" / "src").mkdir(parents=True)
        (tmp_path / "v" / "src" / "file").touch()
        first.publish(tmp_path / "v", "acme/recursive@v1")
        source, target = "acme/recursive@v1/src", Path(local_target)
        for loop in range(2):
            fs.get(source, str(target), recursive=True)
            assert target.is_dir()
            place = target if loop == 0 else target / "src"
            assert (place / "file").is_file()
        inside = target / "inside"
        for _ in range(2):
            fs.get(f"{source}/", str(inside), recursive=True)
            assert [path.name for path in inside.iterdir()] == ["file"]
