"""Typed access to claims: one form each, and one translation of every refusal."""

from __future__ import annotations

import pytest

from broker.errors import (
    IntegrityFailure,
    InvalidProof,
    InvalidRequest,
    MalformedRequest,
    NonceRequired,
    Unavailable,
)
from broker.identity import claims


@pytest.mark.parametrize("value", [True, False, 0.0, 1.5, "1", None, -1, 2**53, [1]], ids=repr)
def test_a_time_is_a_whole_number_of_seconds(value: object):
    with pytest.raises(MalformedRequest):
        claims.get_seconds({"iat": value}, "iat")


@pytest.mark.parametrize("value", [0, 1, 1_800_000_000])
def test_a_time_is_returned(value: int):
    assert claims.get_seconds({"iat": value}, "iat") == value


@pytest.mark.parametrize("value", ["", "abc", "a b", "a\n", "\u00e9", "a\x7f", None, 7, ["a"]], ids=ascii)
def test_text_is_printable_and_bounded(value: object):
    assert claims.get_text({"x": "ab"}, "x", most=2, least=2) == "ab"
    with pytest.raises(MalformedRequest):
        claims.get_text({"x": value}, "x", most=2)


@pytest.mark.parametrize("error", [MalformedRequest, InvalidRequest, IntegrityFailure])
def test_refusals_become_one_kind_and_keep_their_reason(error: type[Exception]):
    with pytest.raises(InvalidProof) as caught, claims.refuse_as(InvalidProof, "no"):
        raise error("the reason")
    assert (caught.value.what, caught.value.why) == ("no", "the reason")
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("error", [NonceRequired, Unavailable, ValueError])
def test_what_is_no_refusal_passes_through(error: type[Exception]):
    with pytest.raises(error), claims.refuse_as(InvalidRequest, "no"):
        raise error("the reason")
