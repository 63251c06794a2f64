"""Start-up: what a command imports before it has to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "cryptography",
    "urllib3",
    "rfc8785",
    "blake3",
    "jwt",
    "tqdm",
    "rich",
    "rich_click",
    "flask",
    "sqlalchemy",
    "boto3",
    "cedarpy",
    "pydantic",
    "duckdb",
    "pyarrow",
}
OF_OTHERS = {"flask", "sqlalchemy", "boto3", "cedarpy", "pydantic", "duckdb", "pyarrow", "gunicorn"}
"""What servers and auditors need, and whoever fetches does not."""


def imported(*words: str) -> set[str]:
    code = (
        "import sys\n"
        "from broker.cli.root import cli, run\n"
        f"status = run(cli, {list(words)!r})\n"
        "sys.stderr.write(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("get", "--help"), ("completion", "zsh")])
def test_what_needs_nothing_imports_nothing(words: tuple[str, ...]) -> None:
    assert not imported(*words) & HEAVY


def test_a_client_imports_nothing_of_a_server() -> None:
    code = "import sys; from broker import Client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "urllib3" in done.stdout.split()
    assert not OF_OTHERS & set(done.stdout.split())


def test_every_help_is_there_without_the_server(tmp_path: Path) -> None:
    """`pip install model-access-broker` is the client: its help shows every command all the same."""
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'flask','sqlalchemy','boto3','pydantic','cedarpy'}:\n"
        "            raise ModuleNotFoundError('refused', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from broker.cli.reference import render_reference\n"
        "from broker.cli.root import cli, run\n"
        "render_reference()\n"
        f"sys.exit(run(cli, ['policy', 'validate', {str(ROOT / 'policies')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "this command needs cedarpy, which is not installed" in done.stderr
    assert "pip install 'model-access-broker[server]'" in done.stderr


def test_both_ways_to_start_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("broker ")
    assert done.returncode == 0
