"""``ls``, ``info``, ``can``, ``verify`` and the dry runs, against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.served import Served, run
from tests.world import Person

FILES = {
    "config.json": b"{}",
    "empty": b"",
    "model.bin": bytes(range(256)) * 2000,
    "tok/a.json": b"a",
    "tok/b.txt": b"b",
}


@pytest.fixture(scope="module")
def ana(served: Served) -> Person:
    """An engineer of the group acme, in whose collection something was published."""
    world = served.world
    publisher = world.add("pub", roles=("engineer", "publisher"), groups=["acme"])
    world.publish(publisher, "acme/demo@v1", {"only": b"one"})
    world.publish(publisher, "acme/demo@v2", FILES)
    world.publish(publisher, "acme/secret@v1", FILES, labels={"tier": "critical"})
    world.publish(publisher, "acme/data@d1", {"rows.csv": b"1"}, kind="dataset")
    return world.add("ana", groups=["acme"])


@pytest.fixture(scope="module")
def eve(served: Served, ana: Person) -> Person:
    """An engineer of no group."""
    return served.world.add("eve")


def test_ls_of_everything_of_a_collection_and_of_an_artifact(served: Served, ana: Person) -> None:
    rows = served.json(ana, "ls")["artifacts"]
    assert [row["artifact"] for row in rows] == ["acme/data", "acme/demo", "acme/secret"]
    assert served.json(ana, "ls", "acme")["artifacts"] == rows
    assert served.json(ana, "ls", "broker://acme/")["artifacts"] == rows
    found = served.json(ana, "ls", "acme/demo")
    assert [row["version"] for row in found["versions"]] == ["v1", "v2"]
    table = served.run(ana, "ls").stdout.splitlines()
    assert table[0].split() == ["ARTIFACT", "KIND", "VERSIONS", "NEWEST", "SIZE"]
    assert table[2].split()[:4] == ["acme/demo", "checkpoint", "2", "v2"]


def test_ls_of_a_version_lists_what_was_signed(served: Served, ana: Person) -> None:
    found = served.json(ana, "ls", "acme/demo@v2")
    assert {row["path"]: row["size"] for row in found["files"]} == {p: len(d) for p, d in FILES.items()}
    assert found["version"] == "v2"
    rows = served.run(ana, "ls", "acme/demo/tok", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(row)["path"] for row in rows] == ["tok/a.json", "tok/b.txt"]
    assert served.run(ana, "ls", "acme/demo@v1/nothing").exit_code == 5


def test_info_is_about_the_newest_version_unless_one_is_named(served: Served, ana: Person) -> None:
    found = served.json(ana, "info", "acme/demo")
    assert (found["version"], found["files"], found["verified"]) == ("v2", len(FILES), True)
    assert found["bytes"] == sum(map(len, FILES.values()))
    assert found["publisher"] == "user:pub"
    [listed] = [row for row in served.json(ana, "ls", "acme/demo")["versions"] if row["version"] == "v2"]
    assert {name: found[name] for name in listed} == listed
    assert served.json(ana, "info", f"acme/demo@{found['manifest']}")["version"] == "v2"
    assert served.json(ana, "info", "acme/demo/config.json")["size"] == 2
    assert "500.0 KiB (512004 bytes)" in served.run(ana, "info", "acme/demo").stdout


def test_unknown_and_invisible_are_the_same(served: Served, ana: Person, eve: Person) -> None:
    for words in (("info",), ("ls",), ("get",), ("get", "--dry-run"), ("can",)):
        unknown = served.run(ana, *words, "acme/nope@v1")
        invisible = served.run(eve, *words, "acme/demo@v2")
        assert unknown.exit_code == invisible.exit_code == 5
        assert unknown.stderr == invisible.stderr.replace("acme/demo@v2", "acme/nope@v1")
    assert served.run(eve, "ls").stderr == "no artifact that you may see\n"


def test_can_says_who_what_and_by_which_policy(served: Served, ana: Person) -> None:
    found = served.json(ana, "can", "acme/demo")
    assert found["allowed"] is True
    assert found["decision"]["policies"] == ["readers-by-group"]
    assert (found["principal"], found["version"], found["action"]) == ("user:ana", "v2", "read")
    assert "receipt" not in found
    entry = served.world.ledger
    with entry.view() as view:
        assert json.loads(view.entry(found["entry"]))["type"] == "decision"


def test_a_denial_is_an_answer_with_status_3(served: Served, ana: Person) -> None:
    done = served.run(ana, "can", "acme/secret", "-o", "json")
    assert done.exit_code == 3
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["allowed"], found["decision"]["policies"]) == (False, ["critical-needs-approval"])
    text = served.run(ana, "can", "acme/secret").stdout.splitlines()
    assert text[0] == "deny: user:ana read acme/secret@v1"
    assert "policies/tiers.cedar" in text[2]


def test_can_about_somebody_else_is_for_auditors_and_admins(served: Served, ana: Person, eve: Person) -> None:
    words = ("can", "acme/demo", "--as", "ana")
    assert served.json(served.world.admin, *words)["principal"] == "user:ana"
    assert served.run(eve, *words).exit_code == 3
    assert served.run(ana, "can", "acme/demo@v9", "--action", "publish").exit_code == 3


def test_get_is_refused_before_anything_is_made(served: Served, ana: Person, tmp_path: Path) -> None:
    dest = tmp_path / "out"
    done = served.run(ana, "get", "acme/secret", str(dest))
    assert done.exit_code == 3
    assert done.stderr.startswith("error: read of acme/secret@v1 is denied")
    assert "(exit 3)" in done.stderr.splitlines()[0]
    assert not dest.exists()


def test_a_dry_get_asks_and_lists_and_grants_nothing(served: Served, ana: Person, tmp_path: Path) -> None:
    with served.world.ledger.view() as view:
        before = view.tail().size
    done = served.run(
        ana,
        "get",
        "acme/demo",
        str(tmp_path / "o"),
        "--include",
        "*.json",
        "--exclude",
        "tok/**",
        "--dry-run",
    )
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1:] == [
        line for line in done.stdout.splitlines() if "config.json" in line
    ]
    assert "would fetch 1 file, 2 B of acme/demo@v2" in done.stderr
    assert not (tmp_path / "o").exists()
    with served.world.ledger.view() as view:
        types = [json.loads(data)["type"] for _, data, _ in view.entries(before, view.tail().size)]
    assert "grant" not in types
    assert "decision" in types

    found = served.json(ana, "get", "acme/demo", "--dry-run")
    assert (found["allowed"], found["bytes"], len(found["files"])) == (True, 512004, len(FILES))
    denied = served.run(ana, "get", "acme/secret", "--dry-run", "--json")
    assert denied.exit_code == 3
    assert json.loads(denied.stdout)["allowed"] is False
    assert served.run(ana, "get", "acme/demo", "--include", "*.nope", "--dry-run").exit_code == 5


def test_verify_names_what_differs(served: Served, ana: Person, tmp_path: Path) -> None:
    for path, data in FILES.items():
        target = tmp_path / "ckpt" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    root = str(tmp_path / "ckpt")
    done = served.run(ana, "verify", root, "acme/demo")
    assert (done.exit_code, done.stdout) == (0, "ok: 5 files, 500.0 KiB, as signed in acme/demo@v2\n")

    (tmp_path / "ckpt" / "config.json").write_bytes(b"[]")
    (tmp_path / "ckpt" / "empty").unlink()
    (tmp_path / "ckpt" / "e\x1b[2Jxtra").write_bytes(b"")
    done = served.run(ana, "verify", root, "acme/demo")
    assert done.exit_code == 6
    assert done.stdout.splitlines() == ["differs  config.json", "missing  empty", "extra    e\\x1b[2Jxtra"]
    assert "\x1b" not in done.stderr
    found = json.loads(served.run(ana, "verify", root, "acme/demo", "--json").stdout)
    assert (found["ok"], found["differing"], found["missing"]) == (False, ["config.json"], ["empty"])
    assert served.run(ana, "verify", f"{root}/model.bin", "acme/demo/model.bin").exit_code == 0
    assert served.run(ana, "verify", f"{root}/nothing", "acme/demo").exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("get", "acme"),
        ("get", "Acme/demo"),
        ("get", "acme/demo@latest"),
        ("info", "acme/../x"),
        ("cat", "acme/demo"),
        ("put", ".", "acme/demo"),
        ("put", ".", "acme/demo@v1/path"),
        ("put", ".", "acme/demo@v9", "--label", "Tier=x"),
        ("put", ".", "acme/demo@v9", "--extent-size", "1000"),
        ("put", "/nonexistent", "acme/demo@v9"),
        ("get", "acme/demo/tok", "--include", "x", "--dry-run"),
        ("get", "acme/demo", "--include", "a//b", "--dry-run"),
        ("get", "acme/demo", "-j", "0"),
    ],
)
def test_usage_is_2(served: Served, ana: Person, words: tuple[str, ...]) -> None:
    done = served.run(ana, *words)
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_a_dry_put_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / "ckpt" / ".hidden").mkdir(parents=True)
    (tmp_path / "ckpt" / ".hidden" / "x").write_bytes(b"12")
    (tmp_path / "ckpt" / "a").write_bytes(b"1")
    env = {"BROKER_PROFILE_DIR": str(tmp_path / "no-profile")}
    words = ("put", str(tmp_path / "ckpt"), "acme/new@v1", "--dry-run")
    found = json.loads(run(*words, "--label", "run=4", "--json", env=env).stdout)
    assert [row["path"] for row in found["files"]] == [".hidden/x", "a"]
    assert found["labels"] == {"tier": "standard", "run": "4"}
    assert (found["bytes"], found["extent_size"], found["dry_run"]) == (3, 32 * 2**20, True)
    done = run(*words, env=env)
    assert "would publish 2 files, 3 B as acme/new@v1 (checkpoint, tier=standard)" in done.stderr
    (tmp_path / "ckpt" / "link").symlink_to("a")
    assert run(*words, env=env).exit_code == 2


def test_put_is_for_publishers(served: Served, ana: Person, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    done = served.run(ana, "put", str(tmp_path), "acme/mine@v1")
    assert done.exit_code == 3
    assert "  why:  " in done.stderr
