from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.policy.bundle import Bundle, build_bundle
from broker.policy.engine import PolicyEngine

POLICIES = Path(__file__).parents[3] / "policies"


@pytest.fixture(scope="session")
def default_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(POLICIES.glob("*.cedar*"))}


@pytest.fixture(scope="session")
def default_bundle(default_files: dict[str, bytes]) -> Bundle:
    return build_bundle(default_files)


@pytest.fixture(scope="session")
def engine(default_bundle: Bundle) -> PolicyEngine:
    return PolicyEngine(default_bundle)


@pytest.fixture
def bundle_of(default_files: dict[str, bytes]) -> Callable[[str], Bundle]:
    """A bundle of the default schema and one policy text."""

    def make(text: str) -> Bundle:
        return build_bundle(
            {"schema.cedarschema": default_files["schema.cedarschema"], "a.cedar": text.encode()}
        )

    return make
