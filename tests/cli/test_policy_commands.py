"""``policy validate``, ``test`` and ``fmt``: a folder of policies, without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.served import run

SHIPPED = Path(__file__).resolve().parents[2] / "policies"
UGLY = '@id("extra") permit(principal,action==Broker::Action::"read",resource) when { resource.tier=="x" };\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "policies"))


def test_the_shipped_policies_are_valid_tested_and_in_style(folder: Path) -> None:
    found = json.loads(run("policy", "validate", str(folder), "-o", "json").stdout)
    assert found["ok"] is True
    assert found["bundle"].startswith("sha256:")
    assert {"readers-by-group", "critical-needs-approval"} <= {row["id"] for row in found["policies"]}
    done = run("policy", "test", str(folder))
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("ok: ")
    assert run("policy", "fmt", str(folder), "--check").exit_code == 0


def test_a_case_that_fails_is_shown_and_ends_with_2(folder: Path) -> None:
    (folder / "extra.cedar").write_text(UGLY.replace('"x"', '"standard"'))
    done = run("policy", "test", str(folder))
    assert done.exit_code == 2
    assert "policy cases fail" in done.stderr
    assert all(line.startswith("no ") for line in done.stdout.splitlines()[1:])
    cases = json.loads(run("policy", "test", str(folder), "--json").stdout)
    assert cases["ok"] is False
    assert {True, False} == {case["passed"] for case in cases["cases"]}


def test_fmt_lays_out_and_then_has_nothing_to_do(folder: Path) -> None:
    (folder / "extra.cedar").write_text(UGLY)
    before = run("policy", "validate", str(folder), "--json").stdout
    checked = run("policy", "fmt", str(folder), "--check")
    assert (checked.exit_code, checked.stdout) == (2, "extra.cedar\n")
    assert (folder / "extra.cedar").read_text() == UGLY
    assert run("policy", "fmt", str(folder)).stdout == "extra.cedar\n"
    assert (folder / "extra.cedar").read_text().startswith('@id("extra")\npermit (\n')
    assert run("policy", "fmt", str(folder)).stdout == ""
    after = run("policy", "validate", str(folder), "--json").stdout
    assert [p["id"] for p in json.loads(after)["policies"]] == [
        p["id"] for p in json.loads(before)["policies"]
    ]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("text", ["permit(", '@id("a") permit(principal,action,resource);' * 2, "(" * 5000])
@pytest.mark.parametrize("verb", ["validate", "test", "fmt"])
def test_what_is_not_policy_is_refused(folder: Path, text: str, verb: str) -> None:
    (folder / "extra.cedar").write_text(text)
    done = run("policy", verb, str(folder))
    assert done.exit_code == 2
    assert "extra.cedar" in done.stderr
    assert (folder / "extra.cedar").read_text() == text


def test_folders_that_are_none(tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        done = run("policy", "validate", str(folder))
        assert done.exit_code == 2
        assert str(folder) in done.stderr


def test_a_folder_without_cases_is_no_success(folder: Path) -> None:
    shutil.rmtree(folder / "tests")
    assert run("policy", "test", str(folder)).exit_code == 2
    (folder / "tests").mkdir()
    done = run("policy", "test", str(folder))
    assert done.exit_code == 2
    assert "no test file" in done.stderr
