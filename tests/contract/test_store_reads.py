"""The store's contract for reading: a presigned URL yields one range of one object, for minutes."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from broker import limits
from broker.storage.presign import format_range
from tests.seaweed import Answer, RunningStore, now_ms, send

pytestmark = pytest.mark.e2e
DATA = bytes(range(256)) * 512
NAME = "reads/é +&=~/object"
OTHER = "reads/other"
START, LENGTH = 1000, 5000


@pytest.fixture(scope="module", autouse=True)
def objects(seaweed: RunningStore) -> None:
    seaweed.store.put(NAME, DATA)
    seaweed.store.put(OTHER, DATA)


def _url(seaweed: RunningStore, *, now: int | None = None, expires: int = 60) -> str:
    url, _ = seaweed.presigner.get(
        NAME,
        byte_range=format_range(START, LENGTH),
        grant="g_contract",
        expires=expires,
        now=now_ms() if now is None else now,
    )
    return url


def _refused(answer: Answer) -> bool:
    return answer.status in (400, 403) and DATA[:64] not in answer.body


def test_a_url_yields_exactly_its_range(seaweed: RunningStore) -> None:
    answer = send("GET", _url(seaweed), headers={"Range": format_range(START, LENGTH)})
    assert answer.status == 206
    assert answer.body == DATA[START : START + LENGTH]
    assert answer.headers["content-range"] == f"bytes {START}-{START + LENGTH - 1}/{len(DATA)}"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": f"bytes=0-{len(DATA) - 1}"},
        {"Range": format_range(START, LENGTH + 1)},
        {"Range": format_range(START - 1, LENGTH + 1)},
        {"Range": format_range(START, LENGTH) + ",0-10"},
        {"Range": f"bytes={START}-"},
        {"X-Range": format_range(START, LENGTH)},
    ],
)
def test_another_range_or_none_is_refused(seaweed: RunningStore, headers: dict[str, str]) -> None:
    assert _refused(send("GET", _url(seaweed), headers=headers))


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "HEAD"])
def test_another_method_is_refused(seaweed: RunningStore, method: str) -> None:
    answer = send(method, _url(seaweed), headers={"Range": format_range(START, LENGTH)})
    assert answer.status in (400, 403, 405)
    assert seaweed.store.get_range(NAME, 0, len(DATA)) == DATA


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x-broker-grant=g_contract", "x-broker-grant=g_other"),
        ("x-broker-grant=g_contract&", ""),
        (quote(NAME, safe="/~"), OTHER),
        ("X-Amz-Expires=90", "X-Amz-Expires=9000"),
        ("X-Amz-SignedHeaders=host%3Brange", "X-Amz-SignedHeaders=host"),
        ("X-Amz-Signature=", "X-Amz-Signature=0"),
        ("X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Algorithm=none"),
        ("?", "?response-content-type=text%2Fhtml&"),
    ],
)
def test_no_part_of_a_url_can_be_changed(seaweed: RunningStore, old: str, new: str) -> None:
    url = _url(seaweed)
    assert old in url
    assert _refused(send("GET", url.replace(old, new, 1), headers={"Range": format_range(START, LENGTH)}))


def test_without_a_signature_nothing_is_served(seaweed: RunningStore) -> None:
    url = _url(seaweed).partition("?")[0]
    assert _refused(send("GET", url, headers={"Range": format_range(START, LENGTH)}))


def test_an_expired_url_is_refused(seaweed: RunningStore) -> None:
    # Signed in the past: no need to wait for it to expire.
    past = now_ms() - (limits.LEASE_TTL + 2) * 1000
    url = _url(seaweed, now=past, expires=limits.LEASE_TTL)
    assert _refused(send("GET", url, headers={"Range": format_range(START, LENGTH)}))


def test_a_url_lives_until_its_stated_expiry(seaweed: RunningStore) -> None:
    past = now_ms() - (limits.LEASE_TTL - 30) * 1000
    url = _url(seaweed, now=past, expires=limits.LEASE_TTL)
    assert send("GET", url, headers={"Range": format_range(START, LENGTH)}).status == 206


def test_a_url_of_a_clock_that_runs_ahead_is_taken(seaweed: RunningStore) -> None:
    ahead = now_ms() + (limits.PRESIGN_BACKDATE - 5) * 1000
    assert send("GET", _url(seaweed, now=ahead), headers={"Range": format_range(START, LENGTH)}).status == 206
