"""The start of a command: what it takes beyond an interpreter that does nothing.

Whole processes, in turns, each as a user starts it. ``broker ls`` asks a broker on the same machine for a
list of two artifacts; ``broker --version`` asks nobody.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench import grants, machine
from bench.measure import RESULTS

_TURNS: Final = 8
"""Runs of each command in a round."""
_BARE: Final = "python -c pass"


@dataclass(frozen=True, kw_only=True)
class _Run:
    seconds: float
    cpu: float


def run(*, size_mib: int, rounds: int, name: str) -> int:
    """Measure and write ``bench/results/NAME.json``; 0 when every command ended well.

    ``size_mib`` changes nothing here.
    """
    del size_mib
    with grants.scene() as session:
        profile = session.profile
        if profile is None:
            raise SystemExit("the session has no profile")
        env = {**os.environ, "BROKER_PROFILE_DIR": str(profile.folder), "PYTHONPATH": os.getcwd()}
        broker = [sys.executable, "-P", "-m", "broker"]
        commands = {
            _BARE: [sys.executable, "-c", "pass"],
            "broker --version": [*broker, "--version"],
            "broker ls": [*broker, "ls"],
        }
        runs: dict[str, list[_Run]] = {what: [] for what in commands}
        for _ in range(rounds * _TURNS):
            for what, command in commands.items():
                runs[what].append(_measure(command, env))
    summary = {
        "machine": machine.describe(RESULTS),
        "runs": rounds * _TURNS,
        "commands": {what: _summary(found, runs[_BARE]) for what, found in runs.items()},
    }
    for what, row in summary["commands"].items():
        sys.stdout.write(f"{what:<20} {row}\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _measure(command: Sequence[str], env: Mapping[str, str]) -> _Run:
    began = time.monotonic()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} fails with {child.returncode}")
    return _Run(seconds=seconds, cpu=usage.ru_utime + usage.ru_stime)


def _summary(runs: Sequence[_Run], bare: Sequence[_Run]) -> dict[str, float]:
    beyond = sorted(one.seconds - other.seconds for one, other in zip(runs, bare, strict=True))
    return {
        "seconds": round(statistics.median(one.seconds for one in runs), 4),
        "cpu_seconds": round(statistics.median(one.cpu for one in runs), 4),
        "beyond_bare": round(statistics.median(beyond), 4),
        "least": round(beyond[0], 4),
        "most": round(beyond[-1], 4),
    }
