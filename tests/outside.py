"""Outside tools for tests: other people's programs and libraries, in virtual environments of their own.

They pin what this project does not (one wants another botocore than the next), so none of them is in the
environment of the tests. Each file of ``outside_requirements/`` is one environment with exact versions; it
is made on first use below ``.outside/``, under a name with the digest of what goes into it, so a changed
requirement is a new environment. ``python -m tests.outside`` makes them all (``make test`` does so first).

An environment that cannot be made fails the tests that need it. ``BROKER_TEST_OUTSIDE=0`` leaves the lane
out: its tests are skipped, and say so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".outside"
REQUIREMENTS = ROOT / "tests" / "outside_requirements"
SWITCH = "BROKER_TEST_OUTSIDE"
LEFT_OUT = f"the lane of outside tools does not run: {SWITCH}=0"
ENVIRONMENTS = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
COMPLETE = ".complete"
"""Written last: a folder without it is what an interrupted installation left."""
PIP_ONLY = "torch"
"""Installed by pip, which knows of wheels on this machine: a build without CUDA, where there is one."""


def is_left_out() -> bool:
    """Whether the outside lane was switched off."""
    return os.environ.get(SWITCH) == "0"


def tool_env(name: str) -> Path:
    """The python of an environment of outside tools; their programs are beside it.

    The client of this checkout is installed in it, editable.

    Raises:
        CalledProcessError: The environment cannot be made. Its output is on stderr.
    """
    if is_left_out():
        pytest.skip(LEFT_OUT)
    folder = _folder(name)
    with _locked(name):
        if not (folder / COMPLETE).exists():
            _make(name, folder)
    return folder / "bin" / "python"


def _requirements(name: str) -> list[str]:
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _folder(name: str) -> Path:
    """Named after what is installed, and after what an editable installation copies from the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = {key: project.get(key) for key in ("dependencies", "scripts", "entry-points")}
    content = json.dumps([sys.version, str(ROOT), _requirements(name), copied], sort_keys=True)
    return HOME / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


@contextmanager
def _locked(name: str) -> Iterator[None]:
    HOME.mkdir(exist_ok=True)
    with open(HOME / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(name: str, folder: Path) -> None:
    import uv

    shutil.rmtree(folder, ignore_errors=True)
    program, python = uv.find_uv_bin(), str(folder / "bin" / "python")
    install = [program, "pip", "install", "--quiet", "--no-deps", "--python", python]
    by_pip = [line for line in _requirements(name) if line.partition("==")[0] == PIP_ONLY]
    by_uv = [line for line in _requirements(name) if line not in by_pip]
    _run([program, "venv", "--quiet", "--no-project", "--python", sys.executable, str(folder)])
    _run([*install, *by_uv])
    if by_pip:
        # With its dependencies: those that every build has are there already.
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
        _run([*pip, "--disable-pip-version-check", "--no-input", *by_pip])
    _run([*install, "--editable", str(ROOT)])
    _run([program, "pip", "check", "--quiet", "--python", python])
    (folder / COMPLETE).touch()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=HOME)


def main() -> None:
    """Make every environment; those of former requirements go."""
    if is_left_out():
        print(LEFT_OUT)
        return
    for name in ENVIRONMENTS:
        tool_env(name)
    current = {_folder(name) for name in ENVIRONMENTS}
    for path in HOME.iterdir():
        # What npm installed for tests/oidc.py goes by its own digest.
        if path.is_dir() and path not in current and not path.name.startswith("oidc-provider-"):
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
