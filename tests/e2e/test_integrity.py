"""I09, I18, I20: what was changed in the store, in the profile or on the way is refused with exit 6."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.client import rawhttp
from broker.envelope.extents import ciphertext_size
from broker.errors import IntegrityFailure
from broker.names import parse_ref
from tests.e2e.running import MIB, Stack, User, noise, read_tree, write_tree
from tests.e2e.wire import opened, send

SIZE = 3 * MIB


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {"model.bin": noise(SIZE, "model"), "other.bin": noise(SIZE, "other"), "config.json": b'{"a":1}'}


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory, pub: User, files: dict[str, bytes]) -> str:
    tree = write_tree(tmp_path_factory.mktemp("integrity") / "t", files)
    pub.cli("put", tree, "acme/whole@v1", "--extent-size", "1MiB")
    pub.cli("put", tree, "acme/whole@v2", "--extent-size", "1MiB")
    return "acme/whole@v1"


def object_of(who: User, ref: str, path: str) -> str:
    """Name of a file's object in the store, from the lease that opens it."""
    _, _, lease = opened(who, parse_ref(f"{ref}/{path}" if path else ref))
    (file,) = [file for file in lease.files if file.path == path]
    return file.extents[0].url.partition("?")[0].partition("/broker/")[2]


@contextmanager
def changed(stack: Stack, name: str, data: bytes | int) -> Iterator[None]:
    """An object with other bytes, or with a bit flipped at an offset, for a while."""
    with stack.s3() as s3:
        was = s3.get_object(Bucket=stack.bucket, Key=name)["Body"].read()
    if isinstance(data, int):
        stack.flip(name, data)
    else:
        stack.replace(name, data)
    try:
        yield
    finally:
        stack.replace(name, was)


def refused(who: User, ref: str, dest: Path, path: str) -> None:
    """``get`` fails with exit 6 and leaves nothing of that file, under its own name or any other."""
    done = who.cli("get", ref, dest, expect=6)
    assert path in done.err
    assert "Traceback" not in done.err
    assert not (dest / path).exists()
    assert not (dest / ".broker" / "partial" / f"{PATHS.index(path):06d}").exists()


PATHS = ("config.json", "model.bin", "other.bin")
SECOND = ciphertext_size(MIB)
PLACES = {
    "header": 0,
    "salt": 5,
    "nonce": 35,
    "data": 1000,
    "tag": SECOND - 1,
    "second-extent": SECOND + 100,
    "last-byte": 3 * SECOND - 1,
}


@pytest.mark.parametrize("offset", PLACES.values(), ids=PLACES)
def test_a_flipped_bit_in_the_store(
    stack: Stack, ref: str, ana: User, files: dict[str, bytes], tmp_path: Path, offset: int
) -> None:
    name = object_of(ana, ref, "model.bin")
    with changed(stack, name, offset):
        refused(ana, ref, tmp_path / "out", "model.bin")
    # Nothing of it was kept: once the store is right again, the same command brings the right bytes.
    ana.cli("get", ref, tmp_path / "out")
    assert read_tree(tmp_path / "out") == files


def test_objects_and_extents_in_each_others_place(stack: Stack, ref: str, ana: User, tmp_path: Path) -> None:
    model, other = object_of(ana, ref, "model.bin"), object_of(ana, ref, "other.bin")
    later = object_of(ana, "acme/whole@v2", "model.bin")
    with stack.s3() as s3:
        data = {n: s3.get_object(Bucket=stack.bucket, Key=n)["Body"].read() for n in (model, other, later)}
    swapped = data[model][SECOND : 2 * SECOND] + data[model][:SECOND] + data[model][2 * SECOND :]
    for at, wrong in enumerate((data[other], data[later], swapped)):
        assert len(wrong) == len(data[model])
        with changed(stack, model, wrong):
            refused(ana, ref, tmp_path / str(at), "model.bin")


def test_a_shorter_and_a_longer_object(stack: Stack, ref: str, ana: User, tmp_path: Path) -> None:
    name = object_of(ana, ref, "model.bin")
    with stack.s3() as s3:
        was = s3.get_object(Bucket=stack.bucket, Key=name)["Body"].read()
    with changed(stack, name, was[:-1]):
        refused(ana, ref, tmp_path / "short", "model.bin")
    with changed(stack, name, was + b"more"):
        # What is behind the last extent is never asked for.
        ana.cli("get", ref, tmp_path / "long")
    assert (tmp_path / "long" / "model.bin").stat().st_size == SIZE


def test_ranges_of_a_changed_object(stack: Stack, ref: str, ana: User, files: dict[str, bytes]) -> None:
    name = object_of(ana, ref, "model.bin")
    with changed(stack, name, SECOND + 100):
        written = ana.cli("cat", f"{ref}/model.bin", expect=6).data
        # What was written was verified before; it ends where the change begins.
        assert files["model.bin"].startswith(written)
        assert len(written) <= MIB
        with ana.client() as client, client.open(f"{ref}/model.bin") as file:
            assert file.read(1000) == files["model.bin"][:1000]
            file.seek(MIB + 50)
            with pytest.raises(IntegrityFailure):
                file.read(10)


def test_a_missing_object(stack: Stack, ref: str, ana: User, tmp_path: Path) -> None:
    name = object_of(ana, ref, "model.bin")
    with stack.s3() as s3:
        was = s3.get_object(Bucket=stack.bucket, Key=name)["Body"].read()
        s3.delete_object(Bucket=stack.bucket, Key=name)
    try:
        assert "lacks an object" in ana.cli("get", ref, tmp_path / "out", expect=9).err
        assert not (tmp_path / "out" / "model.bin").exists()
    finally:
        stack.replace(name, was)


def test_a_profile_that_pins_another_log(stack: Stack, ref: str, tmp_path: Path) -> None:
    """The server is the same, the log key is not the one that this profile was enrolled with."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from broker.ledger import note

    who = stack.add("pinned", "--role", "engineer", "--group", "acme")
    log = stack.ready["log"]
    config = who.profile / "config.toml"
    other = note.vkey(log["origin"], Ed25519PrivateKey.generate().public_key())
    config.write_text(config.read_text().replace(log["vkey"], other))
    assert "error:" in who.cli("get", ref, tmp_path / "out", expect=6).err
    assert not (tmp_path / "out").exists()
    config.write_text(config.read_text().replace(other, log["vkey"]))
    who.cli("get", ref, tmp_path / "out")


def test_a_remembered_tree_head_that_is_none(stack: Stack, ref: str, tmp_path: Path) -> None:
    who = stack.add("heads", "--role", "engineer", "--group", "acme")
    who.cli("ls")
    head = who.profile / "treehead"
    seen = head.read_text()
    head.write_text("broker.example/log\n1\nAAAA\n\n— x AAAA\n")
    who.cli("get", ref, tmp_path / "out", expect=6)
    assert head.read_text().startswith("broker.example"), "evidence is kept"
    head.write_text(seen)
    who.cli("get", ref, tmp_path / "out")


def test_a_store_that_the_profile_does_not_list(stack: Stack, ref: str, tmp_path: Path) -> None:
    who = stack.add("hosts", "--role", "engineer", "--group", "acme")
    config = who.profile / "config.toml"
    config.write_text(config.read_text().replace('store_hosts = ["127.0.0.1:', 'store_hosts = ["192.0.2.1:'))
    assert "does not list" in who.cli("get", ref, tmp_path / "out", expect=6).err
    assert not (tmp_path / "out" / "model.bin").exists()


def test_a_key_that_others_can_read_is_not_used(stack: Stack, ref: str) -> None:
    who = stack.add("open-key", "--role", "engineer", "--group", "acme")
    (who.profile / "key.jwk").chmod(0o644)
    assert "chmod 600" in who.cli("ls", expect=2).err


def test_I20_no_upload_url_changes_anything_after_the_commit(
    stack: Stack, pub: User, ana: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, dict[str, str]]] = []
    put = rawhttp.Connection.put

    def listen(self: Any, target: Any, headers: Any, pieces: Any, *, size: int) -> int:
        used.append((f"http://{target.netloc}{target.path}", {**headers, "Content-Length": str(size)}))
        return put(self, target, headers, pieces, size=size)

    monkeypatch.setattr(rawhttp.Connection, "put", listen)
    files = {
        "parts.bin": noise(13 * MIB, "parts"),
        "one.bin": noise(MIB, "one"),
        "list.bin": noise(3 * MIB, "l"),
    }
    with pub.client() as client:
        client.publish(write_tree(tmp_path / "t", files), "acme/closed@v1", extent_size=MIB)
    assert len(used) >= 6
    assert any("uploadId" in url for url, _ in used)
    assert any("uploadId" not in url for url, _ in used)
    before = stack.objects()
    for url, headers in used:
        answer = send("PUT", url, body=bytes(int(headers["Content-Length"])), headers=headers)
        assert answer.status in (403, 404, 409, 412), (answer.status, "uploadId" in url)
        loose = {name: value for name, value in headers.items() if name != "If-None-Match"}
        answer = send("PUT", url, body=bytes(int(headers["Content-Length"])), headers=loose)
        assert answer.status in (403, 404, 409, 412), (answer.status, "uploadId" in url)
        assert send("DELETE", url).status in (403, 404)
    assert stack.objects() == before
    with stack.s3() as s3:
        assert "Uploads" not in s3.list_multipart_uploads(Bucket=stack.bucket)
    ana.cli("get", "acme/closed@v1", tmp_path / "out")
    assert read_tree(tmp_path / "out") == files
