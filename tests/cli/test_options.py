"""Readings of values: sizes, ranges, patterns, lists of groups, labels."""

from __future__ import annotations

from typing import Any

import click
import pytest

from broker.cli.options import include_patterns, range_of, read_range, read_size, split_groups
from broker.cli.put import parse_labels
from broker.errors import InvalidRequest, UsageError
from broker.names import select_paths

CTX = click.Context(click.Command("x"))
PARAM = click.Option(["--x"])
PATHS = ["config.json", "a/config.json", "a/b/model.bin", "readme"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 2**20), ("32MiB", 2**25), ("1 GiB", 2**30), ("4kib", 4096), ("2TiB", 2**41)],
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(CTX, PARAM, text) == size


@pytest.mark.parametrize("text", ["", "32MB", "32M", "-1", "1.5GiB", "MiB", "1e9", "٣MiB", "9" * 16])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="32MiB"):
        read_size(CTX, PARAM, text)


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        (None, 10, (0, 10)),
        ("0-0", 10, (0, 1)),
        ("0-9", 10, (0, 10)),
        ("3-99", 10, (3, 10)),
        ("9-", 10, (9, 10)),
        ("-4", 10, (6, 10)),
        ("-40", 10, (0, 10)),
        (None, 0, (0, 0)),
    ],
)
def test_ranges(text: str | None, size: int, expected: tuple[int, int]) -> None:
    assert range_of(read_range(CTX, PARAM, text), size) == expected


@pytest.mark.parametrize("text", ["", "-", "5", "5-3", "a-b", "1-2,3-4", "1 - 2", "--1", "1-2-3"])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        read_range(CTX, PARAM, text)


@pytest.mark.parametrize(("text", "size"), [("10-11", 10), ("0-0", 0), ("11-", 10)])
def test_a_range_past_the_end_is_refused(text: str, size: int) -> None:
    with pytest.raises(UsageError, match=f"{size} bytes"):
        range_of(read_range(CTX, PARAM, text), size)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.json", ["config.json", "a/config.json"]),
        ("config.json", ["config.json", "a/config.json"]),
        ("a/*", ["a/config.json"]),
        ("a/**", ["a/config.json", "a/b/model.bin"]),
        ("**", PATHS),
    ],
)
def test_a_pattern_without_a_slash_is_a_name_anywhere(pattern: str, expected: list[str]) -> None:
    assert [PATHS[at] for at in select_paths(PATHS, include=include_patterns((pattern,)))] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), None),
        (("",), []),
        (("a",), ["a"]),
        (("a,b", "c"), ["a", "b", "c"]),
        ((" a , ,b",), ["a", "b"]),
    ],
)
def test_groups(values: tuple[str, ...], expected: Any) -> None:
    assert split_groups(values) == expected


def test_labels() -> None:
    assert parse_labels(("tier=critical", "run=42")) == {"tier": "critical", "run": "42"}
    assert parse_labels(()) == {}
    with pytest.raises(UsageError, match="tier is given twice"):
        parse_labels(("tier=a", "tier=b"))
    with pytest.raises(InvalidRequest):
        parse_labels(("tier",))
