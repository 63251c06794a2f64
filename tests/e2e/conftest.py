"""One embedded stack with its people for the whole run; stacks of their own for tests that break things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import MIB, Stack, User

LEASE_WINDOW = 4 * MIB
"""Small, so that a download of a few dozen MiB needs many leases."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The shared stack: two workers, small leases. Tests leave it as they found it."""
    found = Stack(
        tmp_path_factory.mktemp("stack") / "home", "--workers", "2", BROKER_LEASE_WINDOW=str(LEASE_WINDOW)
    )
    try:
        yield found.start()
    finally:
        found.kill()


@pytest.fixture(scope="module")
def new_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Makes stacks of one's own; what still runs at the end of the module is killed."""
    made: list[Stack] = []

    def make(*options: str, **env: str) -> Stack:
        made.append(Stack(tmp_path_factory.mktemp("own") / "home", *options, **env))
        return made[-1].start()

    yield make
    for each in made:
        each.kill()


@pytest.fixture(scope="session")
def pub(stack: Stack) -> User:
    """A publisher of the collection ``acme``."""
    return stack.add("pub", "--role", "publisher", "--group", "acme")


@pytest.fixture(scope="session")
def ana(stack: Stack) -> User:
    """An engineer of the group ``acme``."""
    return stack.add("ana", "--role", "engineer", "--group", "acme")


@pytest.fixture(scope="session")
def eve(stack: Stack) -> User:
    """An engineer without any group."""
    return stack.add("eve", "--role", "engineer")


@pytest.fixture(scope="session")
def aud(stack: Stack) -> User:
    """An auditor."""
    return stack.add("aud", "--role", "auditor")
