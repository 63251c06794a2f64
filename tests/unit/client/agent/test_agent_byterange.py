"""One range of a file, as HTTP asks for it."""

from __future__ import annotations

import pytest

from broker.client.agent.byterange import read_range

ETAG = '"e"'


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 10),
        ("bytes=3-5", 3, 6),
        ("bytes=3-99", 3, 10),
        ("bytes=9-9", 9, 10),
        ("bytes=-3", 7, 10),
        ("bytes=-99", 0, 10),
        ("BYTES=1-2", 1, 3),
        (" bytes=1-2 ", 1, 3),
    ],
)
def test_a_range_that_is_there(text: str, start: int, stop: int) -> None:
    found = read_range({"range": text}, size=10, etag=ETAG)
    assert found is not None
    assert (found.start, found.stop, found.partial, found.length) == (start, stop, True, stop - start)
    assert found.content_range == f"bytes {start}-{stop - 1}/10"


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=9999999999999999-"])
def test_a_range_past_the_end_has_no_bytes(text: str) -> None:
    assert read_range({"range": text}, size=10, etag=ETAG) is None


def test_an_empty_file_has_no_range() -> None:
    assert read_range({"range": "bytes=0-"}, size=0, etag=ETAG) is None
    whole = read_range({}, size=0, etag=ETAG)
    assert whole is not None
    assert (whole.length, whole.partial) == (0, False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes=",
        "bytes=-",
        "bytes=5-3",
        "bytes=0-1,4-5",
        "lines=0-1",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes=1- 2",
        "bytes=0-99999999999999999",
        "bytes=١-",
    ],
)
def test_what_is_not_understood_is_the_whole_file(text: str) -> None:
    found = read_range({"range": text}, size=10, etag=ETAG)
    assert found is not None
    assert (found.start, found.stop, found.partial) == (0, 10, False)


def test_a_range_counts_only_for_the_content_it_was_begun_with() -> None:
    same = read_range({"range": "bytes=4-", "if-range": ETAG}, size=10, etag=ETAG)
    other = read_range({"range": "bytes=4-", "if-range": '"other"'}, size=10, etag=ETAG)
    weak = read_range({"range": "bytes=4-", "if-range": 'W/"e"'}, size=10, etag=ETAG)
    assert same is not None
    assert other is not None
    assert weak is not None
    assert (same.partial, other.partial, weak.partial) == (True, False, False)
