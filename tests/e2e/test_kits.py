"""An evidence kit from the whole stack, checked where nothing of ours is installed; then an erasure."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import cryptography
import pytest

from tests.e2e.running import Stack


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has ``cryptography`` and what that needs, and no broker."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    [site] = (folder / "lib").glob("python*/site-packages")
    installed = Path(cryptography.__file__).parents[1]
    for name in ("cryptography", "cffi", "_cffi_backend*", "pycparser"):
        for found in installed.glob(name):
            (site / found.name).symlink_to(found)
    return folder / "bin" / "python"


def check(python: Path, kit: Path, vkey: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", "-B", str(kit / "verify.py"), "--vkey", vkey]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_kit_verifies_without_us_before_and_after_an_erasure(
    stack: Stack, bare_python: Path, tmp_path: Path
) -> None:
    vkey = str(stack.ready["log"]["vkey"])
    found = subprocess.run([str(bare_python), "-I", "-c", "import broker"], capture_output=True, check=False)
    assert found.returncode != 0, f"there is a broker in {sys.executable}"
    person, aud = stack.add("quitter"), stack.add("examiner", "--role", "auditor")
    person.cli("ls")
    person.cli("get", "acme/unknown@v1", tmp_path / "nothing", expect=5)
    before, after = tmp_path / "before", tmp_path / "after"
    made = aud.cli("ledger", "kit", "--out", before, "actor:quitter", "-o", "json").json()
    assert (made["entries"] >= 2, made["erased"]) == (True, 0)
    done = check(bare_python, before, vkey)
    assert (done.returncode, done.stderr) == (0, "")
    erase = ("admin", "evidence", "erase", "--principal", "quitter", "--reason", "left")
    assert stack.admin.cli(*erase, "-o", "json").json()["evidence"] == made["entries"]
    # Everything on record was deleted at once: another sweep finds nothing.
    config = str(stack.home / "broker.toml")
    swept = stack.admin.cli("admin", "evidence", "sweep", "-o", "json", BROKER_CONFIG=config).json()
    assert (swept["erasures"] >= 1, swept["deleted"]) == (True, 0)
    again = aud.cli("ledger", "kit", "--out", after, "actor:quitter", "-o", "json").json()
    assert (again["entries"], again["erased"]) == (made["entries"], made["entries"])
    done = check(bare_python, after, vkey)
    assert (done.returncode, done.stderr) == (0, "")
    # What was taken home before still holds: an erasure takes back no proof.
    assert check(bare_python, before, vkey).returncode == 0
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True
