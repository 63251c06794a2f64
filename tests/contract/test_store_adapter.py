"""The store's contract as the broker itself uses it, and the embedded server's own promises."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.dev import seaweed as embedded
from broker.errors import BrokerError, Conflict, IntegrityFailure, InvalidRequest, NotFound, StoreUnavailable
from broker.runtime import SystemEntropy
from broker.storage.presign import Credentials
from broker.storage.s3 import S3Store
from tests.seaweed import RunningStore, make_presigner, make_settings, now_ms, send

pytestmark = pytest.mark.e2e


def _store(seaweed: RunningStore, **changes: object) -> S3Store:
    arguments: dict[str, object] = {
        "endpoint": seaweed.settings.endpoint,
        "region": embedded.REGION,
        "bucket": embedded.BUCKET,
        "credentials": seaweed.settings.credentials,
        **changes,
    }
    return S3Store(**arguments)  # type: ignore[arg-type]


def test_an_object_is_found_read_and_deleted(seaweed: RunningStore) -> None:
    store = seaweed.store
    assert store.head("a/1") is None
    store.put("a/1", b"0123456789")
    info = store.head("a/1")
    assert info is not None
    assert info.size == 10
    assert store.get_range("a/1", 3, 4) == b"3456"
    for _ in range(2):
        store.delete("a/1")
    assert store.head("a/1") is None
    with pytest.raises(NotFound):
        store.get_range("a/1", 0, 1)


def test_a_range_past_the_end_is_an_integrity_failure(seaweed: RunningStore) -> None:
    seaweed.store.put("a/short", b"0123456789")
    for start, length in ((5, 6), (10, 1), (100, 1)):
        with pytest.raises(IntegrityFailure):
            seaweed.store.get_range("a/short", start, length)


@pytest.mark.parametrize("data", [b"", b"same"])
def test_a_put_again_is_fine_with_the_same_content_only(seaweed: RunningStore, data: bytes) -> None:
    name = f"a/put-{len(data)}"
    for _ in range(2):
        seaweed.store.put(name, data)
    with pytest.raises(Conflict):
        seaweed.store.put(name, b"else")
    info = seaweed.store.head(name)
    assert info is not None
    assert info.size == len(data)


def test_lists_of_objects_and_parts_are_whole(seaweed: RunningStore) -> None:
    # One more than S3 gives in one page.
    count = 1001
    upload = seaweed.store.create_upload("many/upload")
    netloc = urlsplit(seaweed.settings.endpoint).netloc
    local = threading.local()

    def request(url: str, headers: dict[str, str]) -> None:
        connection = local.__dict__.setdefault("connection", http.client.HTTPConnection(netloc))
        connection.request("PUT", url.partition(netloc)[2], body=b"x", headers=headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200

    def one(number: int) -> None:
        part, _ = seaweed.presigner.upload_part(
            "many/upload", upload_id=upload, part_number=number, content_length=1, expires=60, now=now_ms()
        )
        put, _ = seaweed.presigner.put(f"many/o/{number:04}", content_length=1, expires=60, now=now_ms())
        request(part, {})
        request(put, {"If-None-Match": "*"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(1, count + 1)))
    seaweed.store.put("many/other", b"")
    assert list(seaweed.store.list("many/o/")) == [
        (f"many/o/{number:04}", 1) for number in range(1, count + 1)
    ]
    parts = seaweed.store.list_parts("many/upload", upload)
    assert [number for number, _, _ in parts] == list(range(1, count + 1))
    seaweed.store.abort_upload("many/upload", upload)
    assert list(seaweed.store.list("many/none/")) == []


@pytest.mark.parametrize("name", ["", "a//b", "../a"])
def test_names_are_checked_before_they_are_sent(seaweed: RunningStore, name: str) -> None:
    store = seaweed.store
    for call in (store.head, store.delete, store.create_upload):
        with pytest.raises(InvalidRequest):
            call(name)
    with pytest.raises(InvalidRequest):
        store.put(name, b"")


def test_check_needs_the_bucket(seaweed: RunningStore) -> None:
    seaweed.store.check()
    with pytest.raises(StoreUnavailable):
        _store(seaweed, bucket="not-there").check()


@pytest.mark.parametrize("wrong", [{"secret_key": "wrong-secret"}, {"access_key": "wrong-access"}])
def test_I11_wrong_credentials_are_refused_without_showing_them(
    seaweed: RunningStore, wrong: dict[str, str]
) -> None:
    held = replace(seaweed.settings.credentials(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable) as caught:
        _store(seaweed, credentials=lambda: held).head("a/1")
    shown = f"{caught.value} {caught.value.why} {caught.value!r}"
    for secret in (held.access_key, held.secret_key, seaweed.settings.endpoint):
        assert secret not in shown


def test_new_credentials_are_used_from_the_next_call(seaweed: RunningStore) -> None:
    current = [Credentials(access_key="no", secret_key="no")]
    store = _store(seaweed, credentials=lambda: current[0])
    with pytest.raises(StoreUnavailable):
        store.check()
    current[0] = seaweed.settings.credentials()
    store.check()


def test_nobody_listening_is_unavailable_soon() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        credentials = Credentials(access_key="a", secret_key="b")
        store = S3Store(
            endpoint=f"http://127.0.0.1:{held.getsockname()[1]}",
            region="us-east-1",
            bucket="b",
            credentials=lambda: credentials,
        )
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.check()
        assert time.monotonic() - begun < 15


def test_what_was_acknowledged_survives_stop_and_kill(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    presigner, store = make_presigner(settings), settings.store()
    server = embedded.Seaweed(settings)
    acknowledged: dict[str, bytes] = {}

    def write(prefix: str, until: threading.Event) -> None:
        number = 0
        while not until.is_set():
            name, body = f"{prefix}/{number}", os.urandom(200_000)
            url, _ = presigner.put(name, content_length=len(body), expires=60, now=now_ms())
            try:
                if send("PUT", url, headers={"If-None-Match": "*"}, body=body).status == 200:
                    acknowledged[name] = body
            except (OSError, http.client.HTTPException):
                return
            number += 1

    try:
        for turn, end in enumerate((server.kill, server.stop, server.kill)):
            server.start(SystemEntropy())
            server.wait_ready()
            for name, body in acknowledged.items():
                assert store.get_range(name, 0, len(body)) == body
            before, until = len(acknowledged), threading.Event()
            writer = threading.Thread(target=write, args=(f"turn{turn}", until))
            writer.start()
            while len(acknowledged) < before + 20:
                assert writer.is_alive()
                until.wait(0.01)
            begun = time.monotonic()
            end()
            assert time.monotonic() - begun < embedded.STOP_SECONDS + 1
            until.set()
            writer.join()
        server.start(SystemEntropy())
        server.wait_ready()
        assert len(acknowledged) >= 60
        for name, body in acknowledged.items():
            assert store.get_range(name, 0, len(body)) == body
    finally:
        server.stop()
    assert server.pid is None
    # By name and port: while this server was down, another one may have got one of its ports.
    sockets = [
        Path(f"/tmp/seaweedfs-{name.removesuffix('_grpc')}-grpc-{port}.sock")
        for name, port in settings.ports.items()
        if name.endswith("_grpc")
    ]
    assert len(sockets) == 5
    assert [path for path in sockets if path.exists()] == []


def test_the_doors_beside_s3_are_shut(seaweed: RunningStore) -> None:
    seaweed.store.put("beside/object", b"good")
    filer = f"http://127.0.0.1:{seaweed.settings.ports['filer']}/buckets/broker/beside/object?"
    for method, body in (("GET", None), ("PUT", b"evil"), ("DELETE", None)):
        assert send(method, filer, body=body).status == 401
    assert seaweed.store.get_range("beside/object", 0, 4) == b"good"


def test_it_listens_on_loopback_only(seaweed: RunningStore) -> None:
    ours = {f"{port:04X}" for port in seaweed.settings.ports.values()}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, _, port = address.rpartition(":")
            if state == "0A" and port in ours:
                assert host == "0100007F", line
                found.add(port)
    assert found == ours


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    (tmp_path / "data").write_text("in the way")
    server = embedded.Seaweed(settings)
    with pytest.raises((BrokerError, OSError)):
        server.start(SystemEntropy())
    assert server.pid is None
