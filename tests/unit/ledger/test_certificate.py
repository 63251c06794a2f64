"""Certificates of exports: in one form, and samples that nobody steers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import IntegrityFailure, InvalidRequest
from broker.ledger.certificate import Asked, Certificate, Sample, Sampler, parse_certificate
from broker.model import Query

ROOT = bytes(range(32))
DIGEST = "sha256:" + "ab" * 32


def made(**changes: Any) -> Certificate:
    members = {
        "origin": "log.example",
        "size": 40,
        "root": ROOT,
        "query": Query(principal="user:ana", since=5, text=("a", "b")),
        "format": "jsonl",
        "matching": 7,
        "rows": 7,
        "digest": DIGEST,
    }
    return Certificate(**{**members, **changes})


@given(
    st.builds(
        Query,
        principal=st.none() | st.text(max_size=8),
        type=st.none() | st.text(max_size=8),
        since=st.none() | st.integers(0, 2**50),
        text=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    ),
    st.sampled_from(["jsonl", "csv"]),
    st.none() | st.builds(Sample, size=st.integers(1, 10_000), seed=st.text(min_size=1, max_size=20)),
)
def test_what_was_asked_is_read_back(query: Query, format: str, sample: Sample | None) -> None:
    data = made(query=query, format=format, sample=sample).to_bytes()
    assert parse_certificate(data) == Asked(query=query, format=format, sample=sample)


def changed(**members: Any) -> bytes:
    return json.dumps({**json.loads(made().to_bytes()), **members}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        changed(schema="broker/export/v2"),
        changed(format="tiles"),
        changed(format=None),
        changed(digest="sha256:"),
        changed(query=[]),
        changed(query={"principal": 1}),
        changed(query={"since": "1"}),
        changed(query={"since": True}),
        changed(query={"text": "a"}),
        changed(query={"text": [1]}),
        changed(query={"other": "x"}),
        changed(sample={}),
        changed(sample={"size": 0, "seed": "x"}),
        changed(sample={"size": 10_001, "seed": "x"}),
        changed(sample={"size": 1, "seed": ""}),
        changed(sample={"size": True, "seed": "x"}),
        changed(sample={"size": 1, "seed": "x", "more": 1}),
    ],
)
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityFailure):
        parse_certificate(data)


def draw(indices: list[int], *, size: int, seed: str = "s", root: bytes = ROOT) -> frozenset[int]:
    sampler = Sampler(Sample(size=size, seed=seed), root)
    for index in indices:
        sampler.offer(index)
    return sampler.chosen()


@given(st.sets(st.integers(0, 2**40), max_size=60), st.integers(1, 70), st.randoms(use_true_random=False))
def test_a_sample_is_of_what_was_offered_in_whatever_order(offered: set[int], size: int, random: Any) -> None:
    once = draw(sorted(offered), size=size)
    shuffled = sorted(offered)
    random.shuffle(shuffled)
    assert draw(shuffled, size=size) == once
    assert once <= offered
    assert len(once) == min(size, len(offered))


def test_another_seed_or_root_draws_another_sample() -> None:
    everything = list(range(1000))
    samples = {
        draw(everything, size=25),
        draw(everything, size=25, seed="t"),
        draw(everything, size=25, root=bytes(32)),
    }
    assert len(samples) == 3


def test_a_larger_sample_holds_the_smaller_one() -> None:
    everything = list(range(1000))
    assert draw(everything, size=25) < draw(everything, size=50)


def test_a_sample_is_even_over_the_log() -> None:
    # 200 seeds, 10 of 100 each: every tenth of the log is drawn about 200 times; the odds that one of
    # them is beyond these bounds are below one in a million, and the seeds are fixed.
    counts = [0] * 10
    for seed in range(200):
        for index in draw(list(range(100)), size=10, seed=str(seed)):
            counts[index // 10] += 1
    assert sum(counts) == 2000
    assert all(130 < count < 270 for count in counts), counts


def test_the_rank_is_the_one_that_is_documented() -> None:
    import hashlib

    seed = hashlib.sha256(b"s").digest()
    rank = [
        hashlib.sha256(b"broker/sample/v1\n" + ROOT + seed + i.to_bytes(8, "big")).digest() for i in range(50)
    ]
    assert draw(list(range(50)), size=5) == frozenset(sorted(range(50), key=rank.__getitem__)[:5])


@pytest.mark.parametrize(("size", "seed"), [(0, "s"), (10_001, "s"), (1, ""), (1, "é" * 129)])
def test_a_sample_has_bounds(size: int, seed: str) -> None:
    Sample(size=10_000, seed="é" * 128)
    with pytest.raises(InvalidRequest):
        Sample(size=size, seed=seed)
