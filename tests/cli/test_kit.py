"""Evidence kits: taken home from a real server, checked by the one file in them and nothing of ours."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from broker import jose
from broker.client import kit_verifier
from broker.client.kit import verify_kit
from broker.errors import Denied, IntegrityFailure
from tests.cli.served import Served
from tests.world import Person

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def aud(served: Served) -> Person:
    world = served.world
    publisher = world.add("pub", roles=("engineer", "publisher"), groups=["acme"])
    world.publish(publisher, "acme/demo@v1", {"only": b"one"})
    ana, gone = world.add("ana", groups=["acme"]), world.add("gone", groups=["acme"])
    for purpose in ("evaluation", HOSTILE):
        world.ask(ana, "acme/demo@v1", purpose=purpose)
    world.ask(gone, "acme/demo@v1")
    root = world.add("root", roles=["admin"])
    erase = ("admin", "evidence", "erase", "--principal", "gone", "--reason", "asked for")
    assert served.json(root, *erase)["pending"] is False
    return world.add("aud", roles=["auditor"])


@pytest.fixture(scope="module")
def vkey(served: Served) -> str:
    return served.world.house.log.vkey


@pytest.fixture(scope="module")
def folder(served: Served, aud: Person, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("kits") / "case"
    made = served.json(aud, "ledger", "kit", "--out", str(target), "type:grant")
    assert (made["entries"], made["erased"]) == (3, 1)
    return target


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "case"))


def run_alone(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The kit's own verifier, isolated, where nothing of ours can be imported."""
    program = (
        "import runpy, sys; sys.modules['broker'] = None; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = folder / "verify.py"
    command = [sys.executable, "-I", "-B", "-c", program, str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_kit_verifies_without_us(folder: Path, vkey: str) -> None:
    done = run_alone(folder, "--vkey", vkey)
    assert done.returncode == 0, done.stderr
    assert "3 entries" in done.stdout
    assert "2 signed requests hold, 2 pieces of evidence are there, 1 were erased" in done.stdout
    assert "from the kit itself" in run_alone(folder).stdout


def test_the_verifier_is_one_file_for_old_pythons() -> None:
    tree = ast.parse(Path(kit_verifier.__file__).read_text(), feature_version=(3, 9))
    named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots = {name.partition(".")[0] for name in named}
    assert roots - set(sys.stdlib_module_names) == {"cryptography"}


def test_the_kit_verifies_with_the_installed_checks(served: Served, aud: Person, folder: Path) -> None:
    found = served.json(aud, "ledger", "verify-kit", str(folder))
    assert (found["ok"], found["entries"], found["requests"], found["erased"]) == (True, 3, 2, 1)


def test_a_key_that_a_token_named_is_bound_by_that_token(
    served: Served, aud: Person, tmp_path: Path, vkey: str
) -> None:
    world = served.world
    launcher = world.add("launcher", groups=["acme"])
    rank = world.mint(launcher, key=jose.PrivateKey.generate("ES256"))
    world.ask(rank, "acme/demo@v1", purpose="training")
    made = served.json(aud, "ledger", "kit", "--out", str(tmp_path / "k"), "actor:launcher", "type:grant")
    assert made["entries"] == 1
    assert verify_kit(tmp_path / "k", vkey)["requests"] == 1
    bound = [
        json.loads((tmp_path / "k" / name).read_bytes())
        for name in every_file(tmp_path / "k")
        if "entries/" in name
    ]
    assert [entry["jkt"] for entry in bound if entry["type"] == "token"] == [rank.key.jkt]


def test_a_whole_log_is_a_kit_too(served: Served, aud: Person, tmp_path: Path, vkey: str) -> None:
    with pytest.raises(Denied):
        served.world.ask(served.world.add("bob", groups=["acme"], roles=["auditor"]), "acme/demo@v1")
    made = served.json(aud, "ledger", "kit", "--out", str(tmp_path / "k"))
    assert made["support"] == 0
    found = verify_kit(tmp_path / "k", vkey)
    assert found["entries"] == made["entries"] > 20
    assert found["erased"] == made["erased"] > 1


def test_show_says_what_was_erased(served: Served, aud: Person, folder: Path) -> None:
    [(index, eraser)] = json.loads((folder / kit_verifier.MANIFEST).read_bytes())["erased"].items()
    assert served.json(aud, "ledger", "show", index)["erased_by"] == eraser
    assert f"erased by entry {eraser}" in served.run(aud, "ledger", "show", index).stdout


def test_another_log_key_is_refused(folder: Path, served: Served) -> None:
    from broker.ledger import note

    other = note.vkey(served.world.house.log.origin, bytes(32))
    assert run_alone(folder, "--vkey", other).returncode == 6
    assert run_alone(folder, str(folder.parent)).returncode == 2


def test_a_witness_that_did_not_cosign_is_missed(folder: Path, vkey: str) -> None:
    from broker.ledger.cosign import CosignerKey

    witness = CosignerKey(name="witness.example/w1", public=bytes(32)).vkey
    with pytest.raises(IntegrityFailure, match="did not cosign"):
        verify_kit(folder, vkey, witnesses=(witness,))


def every_file(folder: Path) -> Iterator[str]:
    yield from sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_flipped_byte_anywhere_is_found(folder: Path, copy: Path, vkey: str) -> None:
    names = list(every_file(folder))
    assert {name.split("/")[0] for name in names} == {
        "README.txt",
        "checkpoint",
        "entries",
        "evidence",
        "export.tlog-proof",
        "index.html",
        "manifest.json",
        "policies",
        "receipts",
        "records",
        "verify.py",
    }
    for name in names:
        path, data = copy / name, (folder / name).read_bytes()
        for at in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
            for bit in (1, 32):
                path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
                with pytest.raises(IntegrityFailure):
                    verify_kit(copy, vkey)
        path.write_bytes(data)
    verify_kit(copy, vkey)


def test_every_byte_of_the_record_counts(folder: Path, copy: Path, vkey: str) -> None:
    path = copy / kit_verifier.RECEIPT
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(IntegrityFailure):
            verify_kit(copy, vkey)


def test_files_that_are_missing_or_too_many_are_found(copy: Path, vkey: str) -> None:
    (copy / "entries" / "more.json").write_text("{}")
    with pytest.raises(IntegrityFailure, match="no part of the kit"):
        verify_kit(copy, vkey)
    (copy / "entries" / "more.json").unlink()
    for name in every_file(copy):
        data = (copy / name).read_bytes()
        (copy / name).unlink()
        with pytest.raises(IntegrityFailure):
            verify_kit(copy, vkey)
        (copy / name).write_bytes(data)


def redo_manifest(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody can do who may make the kit's record say anything: look past the first check."""
    path = copy / kit_verifier.MANIFEST
    manifest = json.loads(path.read_bytes())
    manifest["files"] = {name: kit_verifier.sha256((copy / name).read_bytes()) for name in manifest["files"]}
    path.write_text(json.dumps(manifest))
    monkeypatch.setattr(kit_verifier, "_verify_record", lambda *_: None)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("entries", "proves another entry"),
        ("evidence", "is another"),
        ("records", "is another"),
        ("policies", "not the bundle of its digest"),
    ],
)
def test_the_signed_log_covers_what_the_manifest_says(
    copy: Path, vkey: str, part: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = json.loads((copy / kit_verifier.MANIFEST).read_bytes())["entries"]
    name = "*.json" if part == "policies" else f"{entries[0]:08d}.json"
    [path] = (copy / part).glob(name)
    path.write_bytes(path.read_bytes().replace(b'"', b' "', 1))
    redo_manifest(copy, monkeypatch)
    with pytest.raises(IntegrityFailure, match=problem):
        verify_kit(copy, vkey)


def test_a_name_that_leads_out_of_the_kit_is_not_followed(
    copy: Path, vkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = copy.parent / "outside"
    outside.write_bytes(b"x")
    path = copy / kit_verifier.MANIFEST
    manifest = json.loads(path.read_bytes())
    manifest["files"]["../outside"] = kit_verifier.sha256(b"x")
    path.write_text(json.dumps(manifest))
    monkeypatch.setattr(kit_verifier, "_verify_record", lambda *_: None)
    with pytest.raises(IntegrityFailure, match="outside is missing"):
        verify_kit(copy, vkey)
    (copy / "entries" / "link.json").symlink_to(outside)
    with pytest.raises(IntegrityFailure, match="no part of the kit"):
        verify_kit(copy, vkey)


def test_evidence_that_is_called_erased_needs_an_erasure(
    copy: Path, vkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy / kit_verifier.MANIFEST
    manifest = json.loads(path.read_bytes())
    [eraser] = manifest["erased"].values()
    manifest["erased"][str(manifest["entries"][0])] = eraser
    path.write_text(json.dumps(manifest))
    redo_manifest(copy, monkeypatch)
    with pytest.raises(IntegrityFailure, match="does not cover the evidence"):
        verify_kit(copy, vkey)


@pytest.mark.parametrize("member", ["method", "path", "body", "query"])
def test_a_request_that_was_signed_otherwise_is_found(folder: Path, member: str) -> None:
    index = json.loads((folder / kit_verifier.MANIFEST).read_bytes())["entries"][0]
    entry = json.loads((folder / f"entries/{index:08d}.json").read_bytes())
    evidence = json.loads((folder / f"evidence/{index:08d}.json").read_bytes())
    assert kit_verifier.verify_request(entry, evidence, "it") == entry["jkt"]
    with pytest.raises(kit_verifier.KitError):
        kit_verifier.verify_request(entry, {**evidence, member: evidence[member] + "x"}, "it")
    with pytest.raises(kit_verifier.KitError, match="another key"):
        kit_verifier.verify_request({**entry, "jkt": "A" * 43}, evidence, "it")


class Page(HTMLParser):
    """What is in a page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_everything_and_runs_nothing(folder: Path) -> None:
    page = Page((folder / "index.html").read_text())
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "img", "iframe", "link", "object", "form"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    policies = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert (
        policies == [kit_policy for kit_policy in policies if "default-src 'none'" in str(kit_policy)] != []
    )
    assert HOSTILE in page.text
    assert "was erased under the retention rule" in page.text
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    assert links
    for link in links:
        assert re.fullmatch(r"#e\d+", link) or (folder / link).is_file()


def test_no_kit_of_nothing(served: Served, aud: Person, tmp_path: Path) -> None:
    assert served.run(aud, "ledger", "kit", "--out", str(tmp_path / "k"), "actor:nobody").exit_code == 5
    assert not list((tmp_path / "k").glob("*")) or not (tmp_path / "k" / "manifest.json").exists()


def test_who_is_no_auditor_takes_nothing(served: Served, tmp_path: Path, aud: Person) -> None:
    del aud
    eng = served.world.add("eng")
    assert served.run(eng, "ledger", "kit", "--out", str(tmp_path / "k"), "type:grant").exit_code == 3
