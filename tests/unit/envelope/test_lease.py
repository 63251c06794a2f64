"""Plaintexts of sealed leases and sealed version keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker import limits
from broker.canonical import canonical_bytes
from broker.envelope import lease
from broker.envelope.lease import LeaseExtent, LeaseFile, LeasePiece, LeasePlace, OpenLease, UploadKey
from broker.errors import IntegrityFailure, InternalError

URL = "https://store.example/bucket/object?X-Amz-Signature=5ec2e7"
SECRET = b"\x5e" * 32


def extent(index: int, **changes: Any) -> LeaseExtent:
    return LeaseExtent(**{"index": index, "key": SECRET, "url": URL, "start": 0, "length": 668, **changes})


def opened(*files: LeaseFile) -> OpenLease:
    return OpenLease(grant="g_1", number=0, files=files)


LEASE = opened(
    LeaseFile(file=0, path="config.json", extents=(extent(0),)),
    LeaseFile(
        file=4,
        path="w.bin",
        extents=(extent(2), extent(3, start=668, length=1)),
        segments=LeasePiece(key=SECRET, url=URL, start=0, length=120),
    ),
)


def test_round_trip() -> None:
    assert lease.parse_lease(lease.lease_bytes(LEASE)) == LEASE
    assert lease.parse_lease(lease.lease_bytes(opened())) == opened()


def test_the_shape_of_the_json() -> None:
    value = json.loads(lease.lease_bytes(LEASE))
    assert (value["schema"], value["grant"], value["number"]) == ("broker/lease/v1", "g_1", 0)
    key = "Xl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl4"
    assert value["files"][0] == {
        "file": 0,
        "path": "config.json",
        "extents": [{"index": 0, "key": key, "url": URL, "range": "bytes=0-667"}],
    }
    assert value["files"][1]["segments"] == {"key": key, "url": URL, "range": "bytes=0-119"}
    assert value["files"][1]["extents"][1]["range"] == "bytes=668-668"


def test_I11_keys_and_urls_stay_out_of_reprs() -> None:
    shown = repr(LEASE) + repr(UploadKey(upload="u_1", version_id=bytes(16), version_key=SECRET))
    assert "5ec2e7" not in shown
    assert "^^" not in shown


def refuse(value: object) -> None:
    with pytest.raises(IntegrityFailure):
        lease.parse_lease(canonical_bytes(value))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "broker/lease/v2"),
        (("grant",), ""),
        (("grant",), "g" * 129),
        (("number",), -1),
        (("number",), True),
        (("number",), 2**32),
        (("files",), {}),
        (("files", 0), []),
        (("files", 0, "file"), 5),
        (("files", 0, "path"), "../x"),
        (("files", 0, "path"), 7),
        (("files", 0, "segments"), None),
        (("files", 0, "segments"), {}),
        (("files", 1, "segments", "range"), "bytes=0-"),
        (("files", 0, "extents", 0, "index"), "0"),
        (("files", 1, "extents", 0, "index"), 3),
        (("files", 0, "extents", 0, "key"), "AAAA"),
        (("files", 0, "extents", 0, "key"), 1),
        (("files", 0, "extents", 0, "url"), "ftp://store.example/x"),
        (("files", 0, "extents", 0, "url"), "https://store.example/x y"),
        (("files", 0, "extents", 0, "url"), "https://store.example/x\r\nHost: y"),
        (("files", 0, "extents", 0, "url"), None),
        (("files", 0, "extents", 0, "range"), "bytes=5-4"),
        (("files", 0, "extents", 0, "range"), "bytes=0-1,3-4"),
        (("files", 0, "extents", 0, "range"), "bytes=00-4"),
        (("files", 0, "extents", 0, "range"), "bytes=0-4\r\nX: y"),
        (("files", 0, "extents", 0, "more"), 1),
        (("files", 0, "more"), 1),
        (("more",), 1),
    ],
)
def test_another_form_is_refused(place: tuple[Any, ...], value: object) -> None:
    parsed = json.loads(lease.lease_bytes(LEASE))
    spot = parsed
    for step in place[:-1]:
        spot = spot[step]
    spot[place[-1]] = value
    refuse(parsed)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", lease.lease_bytes(LEASE) + b" "])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityFailure):
        lease.parse_lease(data)


def test_a_lease_that_does_not_fit_is_not_written() -> None:
    for bad in (
        LeaseFile(file=0, path="a", extents=(extent(1), extent(0))),
        LeaseFile(file=0, path="a", extents=(extent(0, key=bytes(31)),)),
        LeaseFile(file=0, path="a", extents=(extent(0, length=0),)),
        LeaseFile(file=0, path="/a", extents=(extent(0),)),
    ):
        with pytest.raises(InternalError):
            lease.lease_bytes(opened(bad))


def test_extents_at_the_limit_and_one_past() -> None:
    def many(count: int) -> OpenLease:
        extents = tuple(extent(index) for index in range(count))
        return opened(LeaseFile(file=0, path="a", extents=extents))

    full = many(limits.MAX_LEASE_EXTENTS)
    assert lease.parse_lease(lease.lease_bytes(full)) == full
    with pytest.raises(InternalError):
        lease.lease_bytes(many(limits.MAX_LEASE_EXTENTS + 1))


def test_urls_at_the_limit_and_one_past() -> None:
    longest = URL + "x" * (limits.MAX_URL - len(URL))
    lease.lease_bytes(opened(LeaseFile(file=0, path="a", extents=(extent(0, url=longest),))))
    with pytest.raises(InternalError):
        lease.lease_bytes(opened(LeaseFile(file=0, path="a", extents=(extent(0, url=longest + "x"),))))


def test_upload_keys_round_trip() -> None:
    key = UploadKey(upload="u_1", version_id=bytes(range(16)), version_key=SECRET)
    data = lease.upload_key_bytes(key)
    assert lease.parse_upload_key(data) == key
    assert json.loads(data)["schema"] == "broker/upload/v1"
    with pytest.raises(InternalError):
        lease.upload_key_bytes(UploadKey(upload="u_1", version_id=bytes(15), version_key=SECRET))


@pytest.mark.parametrize(
    ("member", "value"),
    [("schema", "broker/lease/v1"), ("upload", 1), ("version_id", "AAAA"), ("version_key", "AAAA"), ("x", 1)],
)
def test_an_upload_key_of_another_form_is_refused(member: str, value: object) -> None:
    data = lease.upload_key_bytes(UploadKey(upload="u", version_id=bytes(16), version_key=SECRET))
    with pytest.raises(IntegrityFailure):
        lease.parse_upload_key(canonical_bytes({**json.loads(data), member: value}))


# -- spans ----------------------------------------------------------------------------------------------


def header(start: int = 0, length: int = 40) -> LeasePlace:
    return LeasePlace(url=URL, start=start, length=length)


SPANS = opened(
    LeaseFile(
        file=1,
        path="w.bin",
        extents=(
            extent(0, span=(0, 3)),
            extent(0, span=(5, 5), start=900, length=16, header=header()),
            extent(7, span=(1, 2), start=9040, length=99, header=header(9000)),
        ),
        segments=LeasePiece(key=SECRET, url=URL, start=0, length=120),
    )
)


def test_spans_round_trip() -> None:
    assert lease.parse_lease(lease.lease_bytes(SPANS)) == SPANS
    first, second, _ = json.loads(lease.lease_bytes(SPANS))["files"][0]["extents"]
    assert first["span"] == [0, 3]
    assert "header" not in first
    assert second["span"] == [5, 5]
    assert second["header"] == {"url": URL, "range": "bytes=0-39"}


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (0, {"span": [1, 3]}),
        (0, {"span": [-1, 3]}),
        (0, {"span": [0]}),
        (0, {"span": [0, 1, 2]}),
        (0, {"span": [0, True]}),
        (0, {"span": "0-3"}),
        (0, {"span": None}),
        (0, {"span": [0, 5]}),
        (0, {"span": [0, 2**32]}),
        (0, {"header": {"url": URL, "range": "bytes=0-39"}}),
        (1, {"span": [6, 5]}),
        (1, {"span": [0, 5]}),
        (1, {"span": [3, 5]}),
        (1, {"header": None}),
        (1, {"header": {"url": URL, "range": "bytes=0-38"}}),
        (1, {"header": {"url": URL, "range": "bytes=900-939"}}),
        (1, {"header": {"url": "ftp://store.example/x", "range": "bytes=0-39"}}),
        (1, {"header": {"url": URL, "range": "bytes=0-39", "key": "A"}}),
        (1, {"key": "A" * 42 + "E"}),
        (2, {"index": 0}),
    ],
)
def test_another_form_of_a_span_is_refused(at: int, changes: dict[str, Any]) -> None:
    parsed = json.loads(lease.lease_bytes(SPANS))
    parsed["files"][0]["extents"][at].update(changes)
    refuse(parsed)


def test_a_span_without_its_header_is_refused() -> None:
    parsed = json.loads(lease.lease_bytes(SPANS))
    del parsed["files"][0]["extents"][1]["header"]
    refuse(parsed)


def test_an_extent_is_whole_or_in_spans_but_not_both() -> None:
    for pair in ((extent(0), extent(0, span=(0, 1))), (extent(0, span=(0, 1)), extent(0)), (extent(0),) * 2):
        with pytest.raises(InternalError):
            lease.lease_bytes(opened(LeaseFile(file=0, path="a", extents=pair)))


def test_I11_urls_of_headers_stay_out_of_reprs() -> None:
    assert "5ec2e7" not in repr(SPANS)
