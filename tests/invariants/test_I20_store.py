"""I20: after a commit no outstanding upload URL can change an object."""

from __future__ import annotations

import pytest

from broker.errors import Conflict
from tests.seaweed import RunningStore, now_ms, seaweed, send

__all__ = ["seaweed"]
pytestmark = pytest.mark.e2e


def test_I20_no_url_given_out_before_the_commit_works_after_it(seaweed: RunningStore) -> None:
    store, name = seaweed.store, "i20/multipart"
    upload = store.create_upload(name)
    stray = store.create_upload(name)

    def part(upload_id: str, number: int) -> str:
        return seaweed.presigner.upload_part(
            name, upload_id=upload_id, part_number=number, content_length=4, expires=600, now=now_ms()
        )[0]

    urls = [part(upload, 1), part(upload, 2), part(stray, 1)]
    put, _ = seaweed.presigner.put(name, content_length=4, expires=600, now=now_ms())
    committed = send("PUT", urls[0], body=b"good")
    store.complete_upload(name, upload, [(1, committed.etag)])
    before = store.head(name)

    for url in urls[:2]:
        assert send("PUT", url, body=b"evil").status == 404
    assert send("PUT", put, headers={"If-None-Match": "*"}, body=b"evil").status == 412
    assert send("PUT", put, body=b"evil").status in (400, 403)
    # A part of another upload may be stored, but joining it is the broker's act, and create-only.
    sent = send("PUT", urls[2], body=b"evil")
    with pytest.raises(Conflict):
        store.complete_upload(name, stray, [(1, sent.etag)])
    store.abort_upload(name, stray)
    assert store.head(name) == before
    assert store.get_range(name, 0, 4) == b"good"


def test_I20_a_url_is_no_key_to_the_upload_itself(seaweed: RunningStore) -> None:
    name = "i20/verbs"
    upload = seaweed.store.create_upload(name)
    url, _ = seaweed.presigner.upload_part(
        name, upload_id=upload, part_number=1, content_length=4, expires=600, now=now_ms()
    )
    sent = send("PUT", url, body=b"good")
    seaweed.store.complete_upload(name, upload, [(1, sent.etag)])
    for method in ("POST", "DELETE", "GET"):
        assert send(method, url, body=b"evil").status in (400, 403, 405)
    assert send("PUT", url.replace("partNumber=1&", ""), body=b"evil").status in (400, 403)
    assert seaweed.store.get_range(name, 0, 4) == b"good"
