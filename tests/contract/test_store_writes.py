"""The store's contract for writing: no URL can change an object that is there (I20)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker import limits
from broker.errors import Conflict, NotFound
from broker.storage.s3 import multipart_etag
from tests.seaweed import Answer, RunningStore, now_ms, send

pytestmark = pytest.mark.e2e
PART = 5 * limits.MIB
"""The least size of a part that is not the last (S3)."""
CREATE = {"If-None-Match": "*"}
A, B, SHORT = b"A" * PART, b"B" * PART, b"tail"


def _put_url(seaweed: RunningStore, name: str, size: int) -> str:
    return seaweed.presigner.put(name, content_length=size, expires=60, now=now_ms())[0]


def _part_url(seaweed: RunningStore, name: str, upload: str, number: int, size: int) -> str:
    url, _ = seaweed.presigner.upload_part(
        name, upload_id=upload, part_number=number, content_length=size, expires=60, now=now_ms()
    )
    return url


def _send_part(seaweed: RunningStore, name: str, upload: str, number: int, body: bytes) -> tuple[str, Answer]:
    url = _part_url(seaweed, name, upload, number, len(body))
    return url, send("PUT", url, body=body)


def _content(seaweed: RunningStore, name: str) -> bytes:
    info = seaweed.store.head(name)
    assert info is not None
    return seaweed.store.get_range(name, 0, info.size)


def test_a_put_creates_and_never_replaces(seaweed: RunningStore) -> None:
    first, second = (_put_url(seaweed, "w/once", 4) for _ in range(2))
    assert send("PUT", first, headers=CREATE, body=b"good").status == 200
    for url in (first, second):
        assert send("PUT", url, headers=CREATE, body=b"evil").status == 412
    assert _content(seaweed, "w/once") == b"good"


@pytest.mark.parametrize("headers", [{}, {"If-None-Match": '"x"'}, {"If-Match": "*"}])
def test_a_put_without_its_condition_is_refused(seaweed: RunningStore, headers: dict[str, str]) -> None:
    url = _put_url(seaweed, "w/condition", 4)
    assert send("PUT", url, headers=headers, body=b"evil").status in (400, 403)
    assert seaweed.store.head("w/condition") is None


@pytest.mark.parametrize("body", [b"", b"sho", b"longer"])
def test_a_put_of_another_length_is_refused(seaweed: RunningStore, body: bytes) -> None:
    url = _put_url(seaweed, "w/length", 4)
    assert send("PUT", url, headers=CREATE, body=body).status in (400, 403, 411)
    assert seaweed.store.head("w/length") is None


def test_a_put_with_chunked_coding_is_refused(seaweed: RunningStore) -> None:
    url = _put_url(seaweed, "w/chunked", 4)
    chunked = {**CREATE, "Transfer-Encoding": "chunked"}
    answer = send("PUT", url, headers=chunked, body=b"6\r\nlonger\r\n0\r\n\r\n")
    assert answer.status in (400, 403, 411)
    assert seaweed.store.head("w/chunked") is None


@pytest.mark.parametrize("turn", range(4))
def test_of_several_puts_at_once_one_wins(seaweed: RunningStore, turn: int) -> None:
    name = f"w/race/{turn}"
    bodies = [bytes([65 + index]) * 100_000 for index in range(4)]
    barrier = threading.Barrier(len(bodies))

    def one(body: bytes) -> int:
        url = _put_url(seaweed, name, len(body))
        barrier.wait()
        return send("PUT", url, headers=CREATE, body=body).status

    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(one, bodies))
    assert answers.count(200) == 1, answers
    assert _content(seaweed, name) == bodies[answers.index(200)]


def test_parts_are_joined_in_order(seaweed: RunningStore) -> None:
    upload = seaweed.store.create_upload("m/joined")
    etags = {
        number: _send_part(seaweed, "m/joined", upload, number, body)[1].etag
        for number, body in ((2, B), (1, A), (3, SHORT))
    }
    assert seaweed.store.head("m/joined") is None
    assert seaweed.store.list_parts("m/joined", upload) == [
        (1, etags[1], PART),
        (2, etags[2], PART),
        (3, etags[3], len(SHORT)),
    ]
    seaweed.store.complete_upload("m/joined", upload, list(etags.items()))
    assert _content(seaweed, "m/joined") == A + B + SHORT
    info = seaweed.store.head("m/joined")
    assert info is not None
    assert info.etag == multipart_etag([etags[number] for number in (1, 2, 3)])


def test_a_part_of_another_length_number_or_upload_is_refused(seaweed: RunningStore) -> None:
    upload, other = (seaweed.store.create_upload("m/narrow") for _ in range(2))
    url = _part_url(seaweed, "m/narrow", upload, 1, 4)
    for changed, body in (
        (url, b"longer"),
        (url, b"sho"),
        (url.replace("partNumber=1", "partNumber=2"), b"evil"),
        (url.replace(upload, other), b"evil"),
    ):
        assert send("PUT", changed, body=body).status in (400, 403, 411)
    assert seaweed.store.list_parts("m/narrow", upload) == []
    assert seaweed.store.list_parts("m/narrow", other) == []
    for each in (upload, other):
        seaweed.store.abort_upload("m/narrow", each)


def test_a_part_that_changed_after_it_was_named_is_not_joined(seaweed: RunningStore) -> None:
    """Stores differ: some keep the part that was named, some refuse. None joins the other one."""
    upload = seaweed.store.create_upload("m/swapped")
    _, named = _send_part(seaweed, "m/swapped", upload, 1, b"good")
    _send_part(seaweed, "m/swapped", upload, 1, b"evil")
    try:
        seaweed.store.complete_upload("m/swapped", upload, [(1, named.etag)])
    except Conflict:
        assert seaweed.store.head("m/swapped") is None
        seaweed.store.abort_upload("m/swapped", upload)
    else:
        assert _content(seaweed, "m/swapped") == b"good"


def test_a_part_with_another_etag_is_not_joined(seaweed: RunningStore) -> None:
    upload = seaweed.store.create_upload("m/etag")
    _send_part(seaweed, "m/etag", upload, 1, b"good")
    for etag in ("0" * 32, ""):
        with pytest.raises(Conflict):
            seaweed.store.complete_upload("m/etag", upload, [(1, etag)])
    assert seaweed.store.head("m/etag") is None
    seaweed.store.abort_upload("m/etag", upload)


def test_a_part_that_is_sent_again_counts_once(seaweed: RunningStore) -> None:
    upload = seaweed.store.create_upload("m/resent")
    sent = [_send_part(seaweed, "m/resent", upload, 1, body)[1].etag for body in (b"good", b"same", b"good")]
    parts = seaweed.store.list_parts("m/resent", upload)
    assert [(number, size) for number, _, size in parts] == [(1, 4)]
    assert parts[0][1] in sent
    seaweed.store.complete_upload("m/resent", upload, [(number, etag) for number, etag, _ in parts])
    assert _content(seaweed, "m/resent") in (b"good", b"same")


def test_a_missing_part_is_not_joined(seaweed: RunningStore) -> None:
    upload = seaweed.store.create_upload("m/missing")
    _, part = _send_part(seaweed, "m/missing", upload, 1, b"good")
    with pytest.raises(Conflict):
        seaweed.store.complete_upload("m/missing", upload, [(1, part.etag), (2, part.etag)])
    assert seaweed.store.head("m/missing") is None
    seaweed.store.abort_upload("m/missing", upload)


def test_completing_again_is_fine_and_changes_nothing(seaweed: RunningStore) -> None:
    upload = seaweed.store.create_upload("m/again")
    _, part = _send_part(seaweed, "m/again", upload, 1, b"good")
    for _ in range(3):
        seaweed.store.complete_upload("m/again", upload, [(1, part.etag)])
    assert _content(seaweed, "m/again") == b"good"


def test_an_aborted_upload_takes_and_becomes_nothing(seaweed: RunningStore) -> None:
    upload = seaweed.store.create_upload("m/aborted")
    url, part = _send_part(seaweed, "m/aborted", upload, 1, b"good")
    seaweed.store.abort_upload("m/aborted", upload)
    seaweed.store.abort_upload("m/aborted", upload)
    assert send("PUT", url, body=b"evil").status == 404
    with pytest.raises(NotFound):
        seaweed.store.complete_upload("m/aborted", upload, [(1, part.etag)])
    with pytest.raises(NotFound):
        seaweed.store.list_parts("m/aborted", upload)
    assert seaweed.store.head("m/aborted") is None


def test_a_second_upload_cannot_replace_an_object(seaweed: RunningStore) -> None:
    seaweed.store.put("m/taken", b"good")
    upload = seaweed.store.create_upload("m/taken")
    _, part = _send_part(seaweed, "m/taken", upload, 1, b"evil")
    with pytest.raises(Conflict):
        seaweed.store.complete_upload("m/taken", upload, [(1, part.etag)])
    assert _content(seaweed, "m/taken") == b"good"
    seaweed.store.abort_upload("m/taken", upload)


def test_the_same_completion_many_times_at_once_is_fine(seaweed: RunningStore) -> None:
    name = "m/both"
    upload = seaweed.store.create_upload(name)
    _, part = _send_part(seaweed, name, upload, 1, b"good")
    barrier = threading.Barrier(4)

    def one(_: int) -> None:
        barrier.wait()
        seaweed.store.complete_upload(name, upload, [(1, part.etag)])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [None] * 4
    assert _content(seaweed, name) == b"good"
