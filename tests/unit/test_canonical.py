"""Bytes that are signed have one form, and only that form is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from broker import canonical, limits
from broker.errors import MalformedRequest

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5))
def test_what_is_written_is_read_again(value: dict[str, Any]) -> None:
    try:
        data = canonical.canonical_bytes(value)
    except MalformedRequest:
        return  # lone surrogates have no form
    assert canonical.parse_canonical(data) == value


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**54), 2**54)
    | st.floats(allow_nan=True)
    | st.text(st.characters(exclude_categories=()), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["a", "b", "A"]), inner, max_size=4)
        | st.dictionaries(st.integers(0, 3) | st.none() | st.booleans(), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_the_bytes_are_those_of_the_reference_implementation(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        with pytest.raises(MalformedRequest):
            canonical.canonical_bytes(value)
    else:
        assert canonical.canonical_bytes(value) == expected


def test_every_character_is_written_as_the_reference_implementation_writes_it() -> None:
    for start in range(0, 0x11000, 0x100):
        text = "".join(chr(code) for code in range(start, start + 0x100) if not 0xD800 <= code < 0xE000)
        assert canonical.canonical_bytes({"a": text}) == rfc8785.dumps({"a": text})


def test_members_are_sorted_by_utf16_code_units() -> None:
    """RFC 8785 section 3.2.3: the sorting example of the specification."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\u00f6"]
    data = canonical.canonical_bytes(dict.fromkeys(names, 0))
    ordered = list(json.loads(data))
    assert ordered == ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}', '{"a": 1}', '{"b":1,"a":2}', '{"a":NaN}', '{"a":1e2}', '{"a":01}', "[]", "1", "",
        '{"a":9007199254740993}', '\ufeff{}', '{"a":"\\u0061"}', '{"a":1} ',
    ],
)  # fmt: skip
def test_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        canonical.parse_canonical(text.encode())


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(MalformedRequest):
        canonical.parse_json(b'{"a":"\xff"}')


def test_nesting_is_bounded() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * levels + b"1" + b"}" * levels

    canonical.parse_json(nested(limits.MAX_JSON_DEPTH))
    with pytest.raises(MalformedRequest):
        canonical.parse_json(nested(limits.MAX_JSON_DEPTH + 1))
    with pytest.raises(MalformedRequest):
        canonical.parse_json(nested(100_000))


@pytest.mark.parametrize("value", [2**53, -(2**53), float("nan"), float("inf"), "\ud800", object()])
def test_a_value_without_a_form_is_refused(value: object) -> None:
    with pytest.raises(MalformedRequest):
        canonical.canonical_bytes({"a": value})


@given(st.binary(max_size=64))
def test_base64url_has_one_spelling(data: bytes) -> None:
    text = canonical.b64url(data)
    assert canonical.parse_b64url(text) == data
    for other in (text + "=", text + "\n", " " + text, text + "A" * 5):
        if other != text:
            with pytest.raises(MalformedRequest):
                canonical.parse_b64url(other, size=len(data))


@pytest.mark.parametrize("text", ["AB", "A", "A+", "A/", "AA==", "AAA=", "\u0410\u0410"])
def test_stray_bits_and_foreign_characters_are_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        canonical.parse_b64url(text)


@given(st.integers(0, 253402300799999))
def test_times_keep_their_milliseconds(ms: int) -> None:
    text = canonical.format_time(ms)
    assert canonical.parse_time(text) == ms
    assert len(text) == 24


@pytest.mark.parametrize(
    "text",
    ["2026-11-23T18:25:00Z", "2026-11-23T18:25:00.000+00:00", "2026-02-30T00:00:00.000Z",
     "2026-11-23 18:25:00.000Z", "2026-11-23T18:25:00.0000Z", "", "2026-11-23T24:00:00.000Z",
     "\uff12\uff10\uff12\uff16-11-23T18:25:00.000Z", "0000-11-23T18:25:00.000Z"],
)  # fmt: skip
def test_another_form_of_time_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        canonical.parse_time(text)


@pytest.mark.parametrize(
    "text", ["sha256:", "sha256:" + "A" * 64, "sha1:" + "0" * 64, "0" * 64, "sha256:" + "0" * 65]
)
def test_another_form_of_digest_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        canonical.parse_digest(text)
    assert canonical.parse_digest(canonical.sha256_digest(b"")).hex().startswith("e3b0c442")
