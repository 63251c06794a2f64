"""A value that reads as before comes to the same; any other is looked at anew."""

from __future__ import annotations

from typing import Any

import pytest

from broker.db import remembered
from broker.db.remembered import Remembered


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def test_the_same_values_are_made_something_of_once() -> None:
    kept, make = Remembered(), Maker()
    assert [kept.of("here", ("a", 1, b"x"), make) for _ in range(3)] == [1, 1, 1]
    assert kept.of("there", ("a", 1, b"x"), make) == 2, "another place is another value"


OTHERS = [("a", 2), ("b", 1), ("a", True), ("a", 1.0), ("a",), ("a", 1, 1), (b"a", 1), ("a", None)]


@pytest.mark.parametrize("other", OTHERS, ids=repr)
def test_anything_else_is_made_anew(other: Any) -> None:
    kept, make = Remembered(), Maker()
    kept.of("here", ("a", 1), make)
    assert kept.of("here", other, make) == 2
    assert kept.of("here", ("a", 1), make) == 3, "only the last reading is remembered"


def test_a_failure_is_not_remembered() -> None:
    kept = Remembered()

    def fail() -> int:
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            kept.of("here", ("a",), fail)
    assert kept.of("here", ("a",), Maker()) == 1


def test_it_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST", 10)
    kept, make = Remembered(), Maker()
    for at in range(100):
        kept.of(at, ("a",), make)
    assert len(kept._kept) <= 10
