"""Logs verified by software of others: Go's own ``sumdb``, over a folder or a served log."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.outside import HOME

SOURCE = Path(__file__).parent / "outside_go" / "verify_log.go"
GO_MODULES = Path("/usr/share/gocode/src/golang.org/x/mod")


@pytest.fixture(scope="module")
def go_verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Go program over golang.org/x/mod/sumdb, built from Debian's package of it."""
    if shutil.which("go") is None or not GO_MODULES.is_dir():
        pytest.skip("the Go lane does not run: golang-go and golang-golang-x-mod-dev are not installed")
    program = tmp_path_factory.mktemp("go") / "verify_log"
    places = {"GOPATH": "/usr/share/gocode", "GOCACHE": str(HOME / "go-cache")}
    subprocess.run(
        ["go", "build", "-o", program, SOURCE],
        env={**os.environ, "GO111MODULE": "off", **places},
        check=True,
        capture_output=True,
    )
    return program


def go_says(program: Path, vkey: str, place: str | Path) -> subprocess.CompletedProcess[str]:
    """What the program says of a log in a folder, or at a URL."""
    return subprocess.run(
        [str(program), vkey, str(place)], capture_output=True, text=True, timeout=60, check=False
    )
