"""Jobs for tests: processes with nothing but the environment and the files that a host gives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from broker.client.settings import config_text, load_profile
from tests.e2e.running import COMMAND_SECONDS, PROGRAM, Done, User, environment

_BOUND = """
import ctypes, os, sys
# Root writes where no mode lets it; without CAP_DAC_OVERRIDE (1) modes hold for it too.
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def bound(*words: object) -> list[str]:
    """A command that, even as root, writes nothing that modes forbid."""
    return [sys.executable, "-c", _BOUND, *map(str, words)]


def is_bound() -> bool:
    """Whether :func:`bound` works on this machine."""
    probe = "import os, sys; sys.exit(os.access('/proc/self', os.W_OK))"
    return subprocess.run(bound(sys.executable, "-c", probe)).returncode == 0


def run_job(
    *words: object, env: Mapping[str, object], expect: int | None = 0, cwd: Path, read_only: bool = False
) -> Done:
    """Run ``broker WORDS`` with these variables of ours and no others.

    It is held to its exit status, unless ``expect`` is None.
    """
    command = [*PROGRAM, *map(str, words)]
    clean = {name: value for name, value in environment(NO_COLOR="1").items() if name not in _PERSONAL}
    done = subprocess.run(
        bound(*command) if read_only else command,
        env={**clean, **{name: str(value) for name, value in env.items()}},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_SECONDS,
    )
    found = Done(code=done.returncode, data=done.stdout, err=done.stderr.decode("utf-8", "replace"))
    shown = " ".join(map(str, words))
    assert expect in (None, found.code), (
        f"broker {shown}: exit {found.code}, not {expect}\n{found.out}{found.err}"
    )
    return found


_PERSONAL = {"HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "TMPDIR"}


def project(folder: Path, name: str, text: str) -> Path:
    """A file in a volume as a cluster makes and renews it: links to a folder that is swapped as a whole."""
    number = len(list(folder.glob("..2*"))) if folder.exists() else 0
    data = folder / f"..2025_{number}"
    data.mkdir(parents=True)
    (data / name).write_text(text)
    link = folder / "..data_tmp"
    link.symlink_to(data.name)
    link.replace(folder / "..data")
    if not (folder / name).is_symlink():
        (folder / name).symlink_to(f"..data/{name}")
    return folder / name


def job_config(of: User) -> str:
    """The ``config.toml`` that an administrator gives to jobs: theirs without the principal."""
    return config_text(replace(load_profile(of.profile), principal=""))
