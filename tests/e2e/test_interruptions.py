"""Transfers that are killed, interrupted, revoked or cut off from their URLs, and what comes after."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import LEASE_WINDOW
from tests.e2e.running import MIB, Stack, User, claimed, noise, read_tree, until, write_tree

SIZE = 96 * MIB
EXTENTS = SIZE // MIB
SOME = 12
"""Extents after which something happens: well before the end, after several leases."""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("big") / "big", {"big.bin": noise(SIZE), "small.txt": b"small"})


@pytest.fixture(scope="module")
def ref(big: Path, pub: User) -> str:
    pub.cli("put", big, "acme/big@v1", "--extent-size", "1MiB")
    return "acme/big@v1"


@contextmanager
def half_done(who: User, ref: str, dest: Path) -> Iterator[subprocess.Popen[str]]:
    """A ``get`` that is stopped in its middle, as by SIGSTOP; whatever is left of it is killed."""
    child = who.begin("get", ref, dest, "-j", "2")
    try:
        until(lambda: claimed(dest) >= SOME or child.poll() is not None, what="some extents")
        child.send_signal(signal.SIGSTOP)
        assert claimed(dest) < EXTENTS, "the download was over before it could be stopped"
        yield child
    finally:
        child.kill()
        child.communicate()


def leased(stack: Stack, grant: str) -> int:
    """Extents that all leases of a grant opened, by the ledger's own records."""
    rows = stack.sql(
        "SELECT r.body FROM ledger_entries e JOIN ledger_records r"
        " ON r.digest = json_extract(CAST(e.entry AS TEXT), '$.selection.digest')"
        " WHERE json_extract(CAST(e.entry AS TEXT), '$.grant') = ?"
        " AND json_extract(CAST(e.entry AS TEXT), '$.type') IN ('grant', 'lease')",
        grant,
    )
    return sum(last - first + 1 for (body,) in rows for _, first, last in json.loads(body)["extents"])


def completion(stack: Stack, grant: str) -> dict[str, Any]:
    found = [e for e in stack.entries() if e["type"] == "completion" and e["grant"] == grant]
    assert len(found) == 1
    received: dict[str, Any] = found[0]["received"]
    return received


def test_killed_in_the_middle_it_fetches_only_what_is_missing(
    stack: Stack, ref: str, big: Path, ana: User, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    with half_done(ana, ref, dest) as child:
        child.kill()
        child.wait()
    assert not (dest / "big.bin").exists()
    kept = claimed(dest)
    done = ana.cli("get", ref, dest, "-o", "json").json()
    assert read_tree(dest) == read_tree(big)
    missing = EXTENTS - kept
    assert done["fetched_bytes"] in (missing * MIB, missing * MIB + len(b"small"))
    assert completion(stack, done["grant"])["bytes"] == done["fetched_bytes"]
    # Not only the bytes: the keys of what is here already are not asked for again.
    assert leased(stack, done["grant"]) in (missing, missing + 1)


def test_what_a_state_file_claims_is_not_believed(
    stack: Stack, ref: str, big: Path, ana: User, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    with half_done(ana, ref, dest):
        pass
    partial = max((dest / ".broker" / "partial").iterdir(), key=lambda path: path.stat().st_size)
    with open(partial, "r+b") as file:
        file.write(bytes(3 * MIB))
    ana.cli("get", ref, dest)
    assert read_tree(dest) == read_tree(big)


def test_interrupted_by_the_user(ref: str, big: Path, ana: User, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    with half_done(ana, ref, dest) as child:
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGCONT)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 130, err
        assert "Traceback" not in err
    assert not (dest / "big.bin").exists()
    assert claimed(dest) >= SOME
    ana.cli("get", ref, dest)
    assert read_tree(dest) == read_tree(big)


def test_a_revoked_grant_stops_the_transfer(
    stack: Stack, ref: str, ana: User, aud: User, tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    with half_done(ana, ref, dest) as child:
        grants = [e for e in stack.entries() if e["type"] == "grant" and e["principal"] == ana.id]
        stack.admin.cli("admin", "revoke", "--grant", grants[-1]["grant"])
        before = claimed(dest)
        child.send_signal(signal.SIGCONT)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 3, err
        assert "error:" in err
    assert not (dest / "big.bin").exists()
    # What was leased before may still have arrived: at most the lease in use and the one ahead of it.
    assert claimed(dest) - before <= 2 * LEASE_WINDOW // MIB + 2
    rows = aud.cli("ledger", "search", "decision:deny type:denial actor:ana", "-o", "json").json()["entries"]
    assert rows[-1]["grant"] == grants[-1]["grant"] or rows[-1]["artifact"] == "acme/big"


def test_a_disabled_principal_gets_no_further_lease(stack: Stack, ref: str, tmp_path: Path) -> None:
    tom = stack.add("tom", "--role", "engineer", "--group", "acme")
    with half_done(tom, ref, tmp_path / "out") as child:
        stack.admin.cli("admin", "principal", "disable", "tom")
        child.send_signal(signal.SIGCONT)
        _, err = child.communicate(timeout=60)
        assert child.returncode in (3, 4), err
    assert not (tmp_path / "out" / "big.bin").exists()


def test_urls_that_no_longer_work_are_replaced_by_a_fresh_lease(
    new_stack: Callable[..., Stack], big: Path, tmp_path: Path
) -> None:
    """The store's credentials change under a running download: every URL in hand is refused with 403."""
    own = new_stack("--workers", "1", BROKER_LEASE_WINDOW=str(LEASE_WINDOW))
    pub = own.add("pub", "--role", "publisher", "--group", "acme")
    pub.cli("put", big, "acme/big@v1", "--extent-size", "1MiB")
    dest = tmp_path / "out"
    with half_done(pub, "acme/big@v1", dest) as child:
        assert own.stop() == 0
        path = own.home / "dev.json"
        path.write_text(path.read_text().replace(own.state["secret_key"], "f" * 48))
        own.start()
        child.send_signal(signal.SIGCONT)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, out + err
    assert read_tree(dest) == read_tree(big)
    leases = [e for e in own.entries() if e["type"] == "lease"]
    assert len(leases) >= EXTENTS * MIB // LEASE_WINDOW


def test_two_downloads_into_one_folder(ref: str, ana: User, pub: User, tmp_path: Path) -> None:
    # Somebody else's profile: a stopped command may hold the lock of its own.
    with half_done(ana, ref, tmp_path / "out"):
        assert "running" in pub.cli("get", ref, tmp_path / "out", expect=2).err


# -- publishing --------------------------------------------------------------------------------------------


def test_a_killed_upload_resumes(stack: Stack, pub: User, ana: User, tmp_path: Path) -> None:
    files = {f"{at:03}.bin": noise(MIB + at, f"put {at}") for at in range(48)}
    tree = write_tree(tmp_path / "tree", files)
    words = ("put", tree, "acme/resumed@v1", "--extent-size", "1MiB", "-j", "1")
    journals = pub.profile / "uploads"

    def taken() -> int:
        found = list(journals.glob("*.jsonl")) if journals.is_dir() else []
        return sum(path.read_bytes().count(b"\n") for path in found) // 2

    before = set(stack.objects())
    child = pub.begin(*words)
    try:
        until(lambda: taken() >= SOME or child.poll() is not None, what="some parts")
    finally:
        child.kill()
        child.communicate()
    there = {name: tag for name, tag in stack.objects().items() if name not in before}
    assert 0 < len(there) < 2 * len(files)
    assert "acme/resumed" not in ana.cli("ls", "acme").out, "an upload is visible before its commit"
    pub.cli(*words)
    after = stack.objects()
    # What the store held whole is what it holds: the same upload went on, nothing was sent twice. A PUT
    # whose connection ended before its first body byte leaves an empty object: that one is made again.
    torn = {name for name, (size, _) in there.items() if size == 0}
    assert len(torn) <= 1, "one worker can leave one torn object"
    assert {item for item in there.items() if item[0] not in torn} <= after.items()
    assert all(after[name][0] > 0 for name in torn)
    ana.cli("get", "acme/resumed@v1", tmp_path / "out")
    assert read_tree(tmp_path / "out") == files
    assert list(journals.glob("*.jsonl")) == []


def test_a_file_that_changed_since_the_upload_began(pub: User, ana: User, tmp_path: Path) -> None:
    files = {f"{at:03}.bin": noise(MIB, f"changed {at}") for at in range(24)}
    tree = write_tree(tmp_path / "tree", files)
    words = ("put", tree, "acme/changed@v1", "--extent-size", "1MiB", "-j", "1")
    journals = pub.profile / "uploads"
    child = pub.begin(*words)
    try:
        until(
            lambda: (
                child.poll() is not None
                or any(path.read_bytes().count(b"\n") > SOME for path in journals.glob("*.jsonl"))
            ),
            what="some parts",
        )
    finally:
        child.kill()
        child.communicate()
    files["000.bin"] = noise(MIB, "another content, of the same size")
    write_tree(tree, files)
    pub.cli(*words)
    ana.cli("get", "acme/changed@v1", tmp_path / "out")
    assert read_tree(tmp_path / "out") == files
